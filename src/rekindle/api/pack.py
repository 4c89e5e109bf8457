"""pack and add: checkpoint series into archives."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import Any, get_args

from rekindle.api.archive import Say, archive_info
from rekindle.api.series import refuse_both, steps_of
from rekindle.api.source import located
from rekindle.apply.threads import workers_of
from rekindle.codec.archive import Archive
from rekindle.codec.block import Tier
from rekindle.codec.container import LONGEST
from rekindle.codec.modes import MODES
from rekindle.codec.pack import ELSEWHERE, KEYFRAME_EVERY
from rekindle.codec.rounding import mode_of
from rekindle.codec.shrunk import LOSSLESS
from rekindle.errors import RekindleError, nearest


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
    dry_run: bool = False,
    workers: int | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Make an archive of checkpoints, each coded against the one before; all of each comes back.

    A checkpoint is a folder or a file; a folder of numbered ones stands for these. Numbered checkpoints are packed in
    the order of their numbers. Every `keyframe_every`-th is coded on its own: so many must at most be decoded to read
    one. The tier max takes a little less space and more time. `error`, "rel:X", rounds floats in place of a mode: each
    stays within X of itself. What is packed stays packed if a later one fails; where an archive would have been
    overwritten, it stays instead. Returns `archive_info` and `notes`, or with `dry_run` what would be packed.
    """
    from rekindle.codec.container import create
    from rekindle.codec.pack import lock_of
    from rekindle.store.lock import alone
    from rekindle.store.publish import partial_path
    from rekindle.store.system import explained

    archive, sources, mode = Path(archive), series(checkpoints, step, say), _mode(mode, error)
    if archive.is_dir():
        raise RekindleError(f"{archive} is a folder, not an archive.", hint=f"{archive}.rk")
    threads = workers_of(workers)
    within = _check(sources, archive, tier, keyframe_every)
    if dry_run:
        _check_free(archive, overwrite)
        return _foreseen(sources, archive, mode, within)
    with explained(archive, ELSEWHERE), alone(lock_of(archive, long=True), f"writing {archive.name}"):
        _check_free(archive, overwrite)
        whole = archive.resolve()
        place = partial_path(whole) if whole.exists() else whole  # the old one goes when the new one is whole
        place.unlink(missing_ok=True)
        create(place)
        try:
            notes = _add(sources, place, mode, tier, keyframe_every, threads, say)
            with alone(lock_of(archive), f"changing {archive.name}"):
                place.replace(whole)
        except BaseException:
            if place != whole or not archive_info(archive)["steps"]:
                place.unlink(missing_ok=True)
            raise
    return archive_info(archive) | {"notes": within + notes}


def archive_add(
    checkpoints: str | Path | Sequence[str | Path],
    archive: str | Path,
    *,
    mode: str | None = None,
    error: str | None = None,
    tier: Tier = "fast",
    keyframe_every: int = KEYFRAME_EVERY,
    step: int | None = None,
    dry_run: bool = False,
    workers: int | None = None,
    say: Say = lambda text: None,
) -> dict[str, Any]:
    """Add checkpoints behind the last of an archive; a kill loses at most the one being added. Returns as `pack`."""
    from rekindle.codec.pack import check_name, check_whole, lock_of
    from rekindle.store.lock import alone
    from rekindle.store.system import explained

    archive, sources, mode = Path(archive), series(checkpoints, step, say), _mode(mode, error)
    threads = workers_of(workers)
    within = _check(sources, archive, tier, keyframe_every)
    if dry_run:
        with Archive(archive) as there:
            check_whole(archive, there.directory)
            for _, number in sources:
                check_name(archive, there.directory, number)
        return _foreseen(sources, archive, mode, within)
    with explained(archive, ELSEWHERE), alone(lock_of(archive, long=True), f"writing {archive.name}"):
        notes = _add(sources, archive, mode, tier, keyframe_every, threads, say)
        return archive_info(archive) | {"notes": within + notes}


def series(
    checkpoints: str | Path | Sequence[str | Path], step: int | None, say: Say = lambda text: None
) -> list[tuple[Path, int | None]]:
    """Checkpoints with their step numbers, in the order in which they are packed."""
    given = located(checkpoints, say, whatever=True)
    if not given:
        raise RekindleError("There is no checkpoint to pack.", hint="rekindle pack CKPT... ARCHIVE")
    paths = [one.path for one in given]
    for path in paths:
        refuse_both(path)
    if step is not None and len(paths) > 1:
        raise RekindleError(f"--step {step} names one checkpoint, not {len(paths)}.", hint="one at a time")
    found = list(zip(paths, steps_of(paths) if step is None else [step], strict=True))
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


def _foreseen(sources: list[tuple[Path, int | None]], archive: Path, mode: str, within: list[str]) -> dict[str, Any]:
    """What would be packed. How small it becomes is not known before it is coded."""
    from rekindle.codec.layout import pairs
    from rekindle.codec.lossy import RULES, kept_whole
    from rekindle.codec.moments import moments_of
    from rekindle.codec.source import open_source
    from rekindle.store.files import Files

    steps, notes = [], _Notes(len(sources))
    for folder, number in sources:
        with Files() as files:
            source = open_source(folder, files)
            if mode in RULES:
                notes.add(kept_whole(source, moments_of(source)))
            tensors = [tensor for tensor in source.tensors if not tensor.key.endswith(":")]
            steps.append({"checkpoint": str(folder), "step": number, "files": len(source.files),
                          "tensors": len(tensors), "moments": len(pairs(source.tensors)),
                          "bytes": sum(tensor.nbytes for tensor in source.tensors)})  # fmt: skip
    return {"archive": str(archive), "mode": mode, "steps": steps, "bytes": sum(x["bytes"] for x in steps),
            "notes": within + notes.told(mode)}  # fmt: skip


class _Notes:
    """What a mode left as it was, said once for all checkpoints of which it is so."""

    def __init__(self, checkpoints: int):
        self.checkpoints, self.seen = checkpoints, Counter[str]()

    def add(self, note: str | None) -> None:
        self.seen.update([note] if note else [])

    def told(self, mode: str) -> list[str]:
        return [f"{mode}, {n} of {self.checkpoints} checkpoint(s): {note}" for note, n in self.seen.items()]


def _mode(mode: str | None, error: str | None) -> str:
    """What the archive calls the change that was asked for."""
    if mode is not None and mode not in MODES:
        raise RekindleError(f"There is no mode {mode!r}.", hint=nearest(mode, MODES) or " or ".join(MODES))
    if error is None:
        return mode or LOSSLESS
    if mode is not None:
        raise RekindleError(f"A bound on the error is a mode of its own, beside {mode}.", hint="--error without --mode")
    return mode_of(error)


def _check_free(archive: Path, overwrite: bool) -> None:
    if archive.exists() and not overwrite:
        raise RekindleError(f"{archive} exists.", hint="rekindle archive add, to add to it; or --overwrite")
    if archive.exists():
        Archive(archive).close()  # nothing else is ever replaced


def _check(sources: list[tuple[Path, int | None]], archive: Path, tier: Tier, keyframe_every: int) -> list[str]:
    """Refuse all else that can be before anything is written; returns notes on archives within a checkpoint."""
    from rekindle.codec.container import is_archive
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
    notes = []
    for folder, _ in sources:
        with Files() as files:
            source = open_source(folder, files)
        base = folder.parent if folder.is_file() else folder
        inner = [file.path for file in source.files if is_archive(base / file.path)]
        notes += [f"{path} in {folder} is an archive itself: it is kept as any file is, no smaller" for path in inner]
    return notes


def _add(
    sources: list[tuple[Path, int | None]],
    archive: Path,
    mode: str,
    tier: Tier,
    keyframe_every: int,
    workers: int,
    say: Say,
) -> list[str]:
    """Returns what the mode left as it was."""
    from rekindle.codec.pack import add_step
    from rekindle.codec.source import open_source
    from rekindle.store.files import Files

    before, last = None, ExitStack()  # each checkpoint's files stay open while the next is coded against them
    notes = _Notes(len(sources))
    try:
        for folder, number in sources:
            now = ExitStack()
            source = open_source(folder, now.enter_context(Files()))
            entry = add_step(archive, source, number, keyframe_every=keyframe_every, before=before, mode=mode,
                             tier=tier, workers=workers, note=notes.add)  # fmt: skip
            size = entry.nbytes + entry.index.nbytes
            say(f"{folder}  {entry.raw / 1e6:.1f} MB -> {size / 1e6:.1f} MB ({entry.raw / size:.3g} x)")
            last.close()
            before, last = source, now
    finally:
        last.close()
    return notes.told(mode)
