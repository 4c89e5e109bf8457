"""What is in an archive and comes out of it, whether it is whole, and changes to it."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from rekindle.api.source import split_name
from rekindle.apply.threads import workers_of
from rekindle.codec.archive import Archive
from rekindle.errors import RekindleError
from rekindle.store.publish import check_free

Say = Callable[[str], object]


def unpack(
    source: str | Path,
    out: str | Path,
    *,
    overwrite: bool = False,
    dry_run: bool = False,
    workers: int | None = None,
) -> dict[str, Any]:
    """Write a step, `ARCHIVE@step` or the last of ARCHIVE, as the folder it was, every file to the byte."""
    from rekindle.codec.unpack import unpack as write
    from rekindle.store.publish import check_spares

    workers, (path, number) = workers_of(workers), split_name(source)
    check_spares(Path(out), None, path)
    with Archive(path) as archive:
        if not len(archive):
            raise RekindleError("The archive has no steps yet.", where=path, hint="rekindle archive add")
        name = archive.names[-1] if number is None else number
        step = archive[name]
        if dry_run:
            check_free(Path(out), overwrite)
        else:
            write(step, Path(out), overwrite=overwrite, workers=workers)
        return {"out": str(out), "step": name, "files": len(step.index.files), "bytes": step.entry.raw,
                "digest": step.entry.digest, "damage": list(archive.directory.torn)}  # fmt: skip


def archive_info(archive: str | Path) -> dict[str, Any]:
    """Steps of an archive, with what each takes; sizes in bytes."""
    path, step = split_name(archive)
    if step is not None:
        raise RekindleError(f"{archive} is one step; all of an archive is asked for.", hint=f"{path}")
    with Archive(path) as found:
        steps = [
            {
                "step": name,
                "raw": entry.raw,
                "bytes": entry.nbytes + entry.index.nbytes,
                "ratio": entry.raw / (entry.nbytes + entry.index.nbytes),
                "keyframe": entry.reference is None,
                "mode": entry.mode,
                "tier": entry.tier,
                "digest": entry.digest,
            }
            for name, entry in zip(found.names, found.directory.steps, strict=True)
        ]
        raw, size = sum(step["raw"] for step in steps), path.stat().st_size
        return {"archive": str(path), "bytes": size, "raw": raw, "ratio": raw / size, "steps": steps,
                "damage": list(found.directory.torn)}  # fmt: skip


def archive_contents(source: str | Path) -> dict[str, Any]:
    """Files and tensors of one step, and what each tensor takes (of a block shared by several, its share)."""
    path, number = split_name(source)
    with Archive(path) as archive:
        if not len(archive):
            raise RekindleError("The archive has no steps yet.", where=path, hint="rekindle archive add")
        name = archive.names[-1] if number is None else number
        step = archive[name]
        index, taken = step.index, [0.0] * len(step.index.tensors)
        for block in index.blocks:
            for part in block.parts:
                taken[part.tensor] += block.nbytes * part.count / block.n
        return {
            "step": name,
            "files": [file.path for file in index.files],
            "tensors": [
                {
                    "name": t.key,
                    "dtype": t.dtype,
                    "shape": list(t.shape),
                    "raw": t.nbytes,
                    "bytes": round(size),
                    "error": dict(zip(("largest", "relative_rms"), index.errors[i])) if i in index.errors else None,
                }
                for i, (t, size) in enumerate(zip(index.tensors, taken, strict=True))
            ],
        }


def archive_verify(archive: str | Path, *, workers: int | None = None, say: Say = lambda text: None) -> list[str]:
    """What is wrong with an archive, reading and decoding all of it; empty where it is whole."""
    from rekindle.codec.check import check as prove

    return prove(Path(archive), say, workers=workers_of(workers))


def archive_drop(source: str | Path, *, workers: int | None = None) -> dict[str, Any]:
    """Remove `ARCHIVE@step`; what was coded against it is coded anew. Returns `archive_info`.

    The others keep their names: where no step has a number, and one before others goes, their places become theirs.
    """
    from rekindle.codec.edit import drop

    path, step = split_name(source)
    if step is None:
        raise RekindleError("Which step?", where=path, hint=f"{path}@N; rekindle archive ls {path}")
    drop(path, step, workers=workers_of(workers))
    return archive_info(path)


def archive_diff(archive: str | Path, first: int, second: int) -> list[dict[str, Any]]:
    """How each tensor of step `first` differs in `second`: share of values changed, and the largest change."""
    from rekindle.codec.compare import compare

    with Archive(archive) as found:
        return compare(found[first], found[second])
