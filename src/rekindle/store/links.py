"""Links in a checkpoint folder: which of them may be followed when its files are copied."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rekindle.errors import RekindleError


def check_links(folder: Path, paths: Iterable[Path]) -> None:
    """Refuse files of `folder` that are links to a file outside: whoever copies one would give that file away.

    In the hub's cache each file of a snapshot is a link to a blob of the same repository, which belongs to it.
    """
    home = folder.resolve()
    blobs = (home.parent.parent / "blobs").resolve() if home.parent.name == "snapshots" else None
    for path in paths:
        target = path.resolve()
        if not target.is_relative_to(home) and target.parent != blobs:
            what = f"{path.name} is a link to a file outside {folder}."
            why = f"{target} would be copied with the model"
            raise RekindleError(what, where=path, why=why, hint="put a copy there, or remove the link")
