"""pack, unpack and what else is done with archives of checkpoint series."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

from rekindle.api.source import local
from rekindle.apply.threads import cores
from rekindle.codec.archive import Archive
from rekindle.codec.block import Tier
from rekindle.codec.container import LONGEST
from rekindle.codec.modes import MODES
from rekindle.codec.pack import KEYFRAME_EVERY
from rekindle.codec.rounding import mode_of
from rekindle.codec.shrunk import LOSSLESS
from rekindle.errors import RekindleError, nearest

Say = Callable[[str], object]
_NUMBERED = re.compile(r"(?:^|[-_.])(?:global_)?(?:step|checkpoint|ckpt|iter|state)[-_]?(\d+)$")


def pack(
    checkpoints: str | Path | Sequence[str | Path],
    archive: str | Path,
    *,
    mode: str | None = None,
    error: str | None = None,
    tier: Tier = "fast",
    keyframe_every: int = KEYFRAME_EVERY,
    step: int | None = None,
    overwrite: bool = False,
    workers: int | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Make an archive of checkpoint folders, each coded against the one before; all of each folder comes back.

    Numbered checkpoints are packed in the order of their numbers. Every `keyframe_every`-th is coded on its own: so
    many must at most be decoded to read one. The tier max takes a little less space and more time. `error`,
    "rel:X", rounds floats in place of a mode: each stays within X of itself. What is packed stays packed if a later one
    fails. Returns `archive_info`.
    """
    from rekindle.codec.container import create
    from rekindle.store.publish import alone, explained, partial_path

    archive, sources, mode = Path(archive), _sources(checkpoints, step), _mode(mode, error)
    if archive.is_dir():
        raise RekindleError(f"{archive} is a folder, not an archive.", hint=f"{archive}.rk")
    _check(sources, archive, tier, keyframe_every)
    with explained(archive), alone(archive.absolute().parent / f".{archive.name}.pack", f"packing {archive.name}"):
        if archive.exists() and not overwrite:
            hint = "rekindle archive add, to add to it; or --overwrite"
            raise RekindleError(f"{archive} exists.", hint=hint)
        if archive.exists():
            Archive(archive).close()  # nothing else is ever replaced
        place = partial_path(archive) if archive.exists() else archive  # the old one goes when the new one is whole
        place.unlink(missing_ok=True)
        create(place)
        try:
            _add(sources, place, mode, tier, keyframe_every, workers, say)
        except BaseException:
            if place != archive or not archive_info(archive)["steps"]:
                place.unlink(missing_ok=True)
            raise
        place.replace(archive)
    return archive_info(archive)


def archive_add(
    checkpoints: str | Path | Sequence[str | Path],
    archive: str | Path,
    *,
    mode: str | None = None,
    error: str | None = None,
    tier: Tier = "fast",
    keyframe_every: int = KEYFRAME_EVERY,
    step: int | None = None,
    workers: int | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Add checkpoints behind the last of an archive; a kill loses at most the one being added. Returns `info`."""
    archive, sources, mode = Path(archive), _sources(checkpoints, step), _mode(mode, error)
    _check(sources, archive, tier, keyframe_every)
    _add(sources, archive, mode, tier, keyframe_every, workers, say)
    return archive_info(archive)


def _mode(mode: str | None, error: str | None) -> str:
    """What the archive calls the change that was asked for."""
    if mode is not None and mode not in MODES:
        raise RekindleError(f"There is no mode {mode!r}.", hint=nearest(mode, MODES) or " or ".join(MODES))
    if error is None:
        return mode or LOSSLESS
    if mode is not None:
        raise RekindleError(f"A bound on the error is a mode of its own, beside {mode}.", hint="--error without --mode")
    return mode_of(error)


def _check(sources: list[tuple[Path, int | None]], archive: Path, tier: Tier, keyframe_every: int) -> None:
    """All else that can be refused before anything is written."""
    from rekindle.codec.source import open_source
    from rekindle.store.files import Files

    if tier not in get_args(Tier):
        raise RekindleError(f"There is no tier {tier!r}.", hint=" or ".join(get_args(Tier)))
    if not 0 < keyframe_every <= LONGEST:
        what = f"keyframe_every is {keyframe_every}: from 1 to {LONGEST}, since so many may have to be decoded."
        raise RekindleError(what, hint=f"--keyframe-every {KEYFRAME_EVERY}")
    if not archive.exists() and not archive.absolute().parent.is_dir():
        raise RekindleError(f"The folder {archive.parent} is not there.", hint=f"mkdir -p {archive.parent}")
    if inside := [folder for folder, _ in sources if archive.resolve().is_relative_to(folder.resolve())]:
        raise RekindleError(f"{archive} lies in {inside[0]}, and would be packed into itself.", hint="another place")
    for folder, _ in sources:
        with Files() as files:
            open_source(folder, files)


def _add(
    sources: list[tuple[Path, int | None]],
    archive: Path,
    mode: str,
    tier: Tier,
    keyframe_every: int,
    workers: int | None,
    say: Say,
) -> None:
    from rekindle.codec.pack import add_step
    from rekindle.codec.source import open_source
    from rekindle.store.files import Files

    before, last = None, ExitStack()  # each checkpoint's files stay open while the next is coded against them
    try:
        for folder, number in sources:
            now = ExitStack()
            source = open_source(folder, now.enter_context(Files()))
            entry = add_step(archive, source, number, keyframe_every=keyframe_every, before=before, mode=mode,
                             tier=tier, workers=workers or cores())  # fmt: skip
            size = entry.nbytes + entry.index.nbytes
            say(f"{folder}  {entry.raw / 1e6:.1f} MB -> {size / 1e6:.1f} MB ({entry.raw / size:.3g} x)")
            last.close()
            before, last = source, now
    finally:
        last.close()


def _sources(checkpoints: str | Path | Sequence[str | Path], step: int | None) -> list[tuple[Path, int | None]]:
    """Folders with their step numbers, in the order in which they are packed."""
    given = [checkpoints] if isinstance(checkpoints, (str, Path)) else list(checkpoints)
    found = [(local(path), step) for path in given]
    if step is not None and len(found) > 1:
        raise RekindleError(f"--step {step} names one checkpoint, not {len(found)}.", hint="one at a time")
    if step is None:
        found = [(path, step_of(path)) for path, _ in found]
    if all(number is not None for _, number in found):
        found.sort(key=lambda pair: pair[1] or 0)
    for (path, number), (other, after) in zip(found, found[1:]):
        if number is None or after is None:
            if number != after:
                without = path if number is None else other
                what = "Some of these checkpoints have a step number, and this one has none."
                raise RekindleError(what, where=without, hint="--step, one at a time")
        elif number == after:
            raise RekindleError(f"Two of these are step {number}: {path} and {other}.", hint="leave one out")
    return found


def step_of(folder: Path) -> int | None:
    """A checkpoint's step: from what its trainer wrote, or from the folder's name."""
    for name, key in (("trainer_state.json", "global_step"), ("state.json", "step")):
        try:
            number = json.loads((folder / name).read_text(encoding="utf-8"))[key]
        except (OSError, ValueError, KeyError, TypeError):
            continue
        if type(number) is int and number >= 0:
            return number
    match = _NUMBERED.search(folder.resolve().name)
    return int(match[1]) if match else None


def unpack(
    source: str | Path, out: str | Path, *, overwrite: bool = False, workers: int | None = None
) -> dict[str, Any]:
    """Write a step, `ARCHIVE@step` or the last of ARCHIVE, as the folder it was, every file to the byte."""
    from rekindle.codec.unpack import unpack as write
    from rekindle.store.publish import check_spares

    path, number = split_name(source)
    check_spares(Path(out), None, path)
    with Archive(path) as archive:
        if not len(archive):
            raise RekindleError("The archive has no steps yet.", where=path, hint="rekindle archive add")
        name = archive.names[-1] if number is None else number
        step = archive[name]
        write(step, Path(out), overwrite=overwrite, workers=workers or cores())
        return {"out": str(out), "step": name, "files": len(step.index.files), "bytes": step.entry.raw,
                "digest": step.entry.digest, "damage": list(archive.directory.torn)}  # fmt: skip


def split_name(source: str | Path) -> tuple[Path, int | None]:
    """ "runs.rk@1200" -> runs.rk, 1200."""
    text = str(source)
    path, at, number = text.rpartition("@")
    if not at or os.path.exists(text):
        return Path(text), None
    if not (number.isascii() and number.isdigit()):
        raise RekindleError(f"{number!r} is no step.", where=text, hint=f"{path}@0; rekindle archive ls {path}")
    return Path(path), int(number)


def archive_info(archive: str | Path) -> dict[str, Any]:
    """Steps of an archive, with what each takes; sizes in bytes."""
    path, _ = split_name(archive)
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

    return prove(Path(archive), say, workers=workers or cores())


def archive_drop(source: str | Path, *, workers: int | None = None) -> dict[str, Any]:
    """Remove `ARCHIVE@step`; what was coded against it is coded anew. Returns `archive_info`.

    The others keep their names: where no step has a number, and one before others goes, their places become theirs.
    """
    from rekindle.codec.edit import drop

    path, step = split_name(source)
    if step is None:
        raise RekindleError("Which step?", where=path, hint=f"{path}@N; rekindle archive ls {path}")
    drop(path, step, workers=workers or cores())
    return archive_info(path)


def archive_diff(archive: str | Path, first: int, second: int) -> list[dict[str, Any]]:
    """How each tensor of step `first` differs in `second`: share of values changed, and the largest change."""
    from rekindle.codec.compare import compare

    with Archive(archive) as found:
        return compare(found[first], found[second])
