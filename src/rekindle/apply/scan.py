"""Look through a checkpoint's bytes: NaN and infinite values, checksums. A window at a time."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path

from rekindle.apply.write import WINDOW
from rekindle.edit.expressions import Leaf
from rekindle.errors import CheckFailed, RekindleError
from rekindle.store.dtypes import BITS, COMPUTED, count_not_finite
from rekindle.store.files import Files
from rekindle.store.folder import Folder
from rekindle.store.manifest import Manifest


def not_finite(folder: Folder) -> dict[str, int]:
    """{tensor: number of NaN and infinite values} of those that have any."""
    found: dict[str, int] = {}
    with Files() as files:
        for name, stored in folder.tensors.items():
            if stored.dtype in COMPUTED:
                leaf = Leaf(name, stored)
                rows = max(1, WINDOW * 8 // max(1, leaf.row_size * BITS[leaf.dtype]))
                starts = range(0, leaf.num_rows, rows)
                bad = sum(
                    count_not_finite(leaf.raw(lo, min(lo + rows, leaf.num_rows), files), leaf.dtype) for lo in starts
                )
                if bad:
                    found[name] = bad
    return found


def sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def check_shards(folder: Path, manifest: Manifest | None) -> Iterator[str]:
    """Compare every shard with its recorded SHA-256; yields each file that agrees, raises CheckFailed for one not."""
    recorded = {file: entry for file, entry in (manifest.shards if manifest else {}).items() if "sha256" in entry}
    if not recorded:
        raise RekindleError(
            "No checksums were recorded for this checkpoint.",
            where=folder,
            hint="rekindle rewrite SRC OUT --checksum",
        )
    for file, entry in recorded.items():
        path = folder / file
        if not path.is_file():
            raise CheckFailed(f"The shard {file} is missing.", where=path)
        found = sha256(path)
        if found != entry["sha256"]:
            raise CheckFailed(
                f"The bytes of {file} are not those that were written.",
                where=path,
                why=f"SHA-256 is {found[:16]}..., recorded was {entry['sha256'][:16]}...",
                hint="copy the file again",
            )
        yield file
