"""Write an archive anew without the directories of earlier commits: many tiny steps would be mostly those."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

from rekindle.codec.archive import Archive
from rekindle.codec.container import START, Directory, StepEntry, commit, create, read_directory, write_all
from rekindle.store.publish import partial_path, sync

SPARE = 1 << 20  # bytes of old directories that are never worth it


def is_sparse(directory: Directory) -> bool:
    """Does it have more bytes of directories than of steps? Each commit writes one of all steps."""
    live = sum(step.nbytes + step.index.nbytes for step in directory.steps)
    return directory.end - START - live > max(live, SPARE)


def compact(archive: Archive) -> None:
    """Keep every step as it is, and only the last directory."""

    def copy(fd: int, end: int) -> list[StepEntry]:
        steps = []
        for entry in archive.directory.steps:
            steps.append(moved(archive, entry, fd, end))
            end = steps[-1].index.end
        return steps

    rewrite(archive.path, copy)


def rewrite(path: Path, fill: Callable[[int, int], list[StepEntry]]) -> None:
    """Put an archive in the place of another in one step; `fill` writes steps to a descriptor from an offset on."""
    partial = partial_path(path)
    partial.unlink(missing_ok=True)
    try:
        create(partial)
        with partial.open("r+b", buffering=0) as file:
            directory = read_directory(file.fileno(), partial)
            steps = fill(file.fileno(), directory.end)
            commit(file.fileno(), directory, tuple(steps), steps[-1].index.end if steps else directory.end)
        shutil.copymode(path, partial)
        partial.replace(path)
        sync(path.absolute().parent)
    except BaseException:
        partial.unlink(missing_ok=True)
        raise


def moved(archive: Archive, entry: StepEntry, fd: int, end: int) -> StepEntry:
    """A step copied to offset `end` of another file, byte by byte."""
    at, to, left = entry.offset, end, entry.index.end - entry.offset
    while left:
        data = archive.read(at, min(left, 1 << 24))
        write_all(fd, data, to)
        at, to, left = at + len(data), to + len(data), left - len(data)
    return replace(entry, offset=end, index=replace(entry.index, offset=end + entry.nbytes))
