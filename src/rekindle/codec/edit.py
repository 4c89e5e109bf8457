"""Leave a step out of an archive: those coded against it are coded anew, all others copied as they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rekindle.codec.archive import Archive
from rekindle.codec.block import Tier
from rekindle.codec.compact import moved, rewrite
from rekindle.codec.container import StepEntry
from rekindle.codec.pack import ELSEWHERE, check_whole, lock_of, write_step
from rekindle.codec.shrunk import Errors, Shrunk
from rekindle.store.lock import alone
from rekindle.store.system import explained


def drop(path: Path, name: int, *, workers: int = 1) -> int:
    """Write the archive without step `name` beside its place, and rename it there. Returns the bytes gained."""
    path = path.resolve()
    with explained(path, ELSEWHERE), alone(lock_of(path), f"changing {path.name}"), Archive(path) as archive:
        check_whole(path, archive.directory)
        gone, size = archive[name].entry, path.stat().st_size
        rewrite(path, lambda fd, end: _copy(archive, gone, fd, end, workers))
    return size - path.stat().st_size


def _copy(archive: Archive, gone: StepEntry, fd: int, end: int, workers: int) -> list[StepEntry]:
    steps: list[StepEntry] = []
    renamed: dict[str, str] = {}  # digests: other tensors may share a block in what is coded anew
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
            known = renamed.get(entry.reference or "", entry.reference)
            digest = entry.digest if number == entry.step else archive.step(entry).index.digest(number)
            made = replace(moved(archive, entry, fd, end), step=number, digest=digest, reference=known)
        renamed[entry.digest] = made.digest
        steps.append(made)
        end = made.index.end
    return steps
