"""Leave a step out of an archive: those coded against it are coded anew, all others copied as they are."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

from rekindle.codec.archive import Archive
from rekindle.codec.block import Tier
from rekindle.codec.container import StepEntry, commit, create, read_directory, write_all
from rekindle.codec.pack import check_whole, lock_of, write_step
from rekindle.codec.shrunk import Errors, Shrunk
from rekindle.store.publish import alone, explained, partial_path, sync


def drop(path: Path, name: int, *, workers: int = 1) -> int:
    """Write the archive without step `name` beside its place, and rename it there. Returns the bytes gained."""
    path = path.resolve()
    partial = partial_path(path)
    with explained(path), alone(lock_of(path), f"changing {path.name}"), Archive(path) as archive:
        check_whole(path, archive.directory)
        gone = archive[name].entry
        partial.unlink(missing_ok=True)
        try:
            create(partial)
            with partial.open("r+b", buffering=0) as file:
                _copy(archive, gone, file.fileno(), partial, workers)
            size = path.stat().st_size
            shutil.copymode(path, partial)
            partial.replace(path)
            sync(path.absolute().parent)
        except BaseException:
            partial.unlink(missing_ok=True)
            raise
    return size - path.stat().st_size


def _copy(archive: Archive, gone: StepEntry, fd: int, partial: Path, workers: int) -> None:
    steps: list[StepEntry] = []
    renamed: dict[str, str] = {}  # digests: other tensors may share a block in what is coded anew
    directory = read_directory(fd, partial)
    end = directory.end
    last = archive.directory.steps[-1]
    for name, entry in zip(archive.names, archive.directory.steps, strict=True):
        if entry.digest == gone.digest:
            continue
        # steps without numbers keep the places they had as their numbers, where one before others goes
        number = entry.step if gone.digest == last.digest else name
        if entry.reference == gone.digest:
            reference = None if gone.reference is None else (archive.by_digest(gone.reference), None)
            step = archive.step(entry)
            shrunk = Shrunk(step.source(), errors=Errors(step.index.errors))
            tier: Tier = "max" if entry.tier == "max" else "fast"
            made = write_step(fd, end, shrunk, number, reference, tier, workers)
            made = replace(made, mode=entry.mode, reference=renamed.get(gone.reference or "", gone.reference))
        else:
            index = replace(entry.index, offset=end + entry.nbytes)
            known = renamed.get(entry.reference or "", entry.reference)
            digest = entry.digest if number == entry.step else archive.step(entry).index.digest(number)
            made = replace(entry, step=number, digest=digest, offset=end, index=index, reference=known)
            _move(archive, entry, fd, end)
        renamed[entry.digest] = made.digest
        steps.append(made)
        end = made.index.end
    commit(fd, directory, tuple(steps), end)


def _move(archive: Archive, entry: StepEntry, fd: int, end: int) -> None:
    at, left = entry.offset, entry.index.end - entry.offset
    while left:
        data = archive.read(at, min(left, 1 << 24))
        write_all(fd, data, end)
        at, end, left = at + len(data), end + len(data), left - len(data)
