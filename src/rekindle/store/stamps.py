"""Has a file changed since it was opened? Asked again when all has been read."""

from __future__ import annotations

import errno
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

from rekindle.errors import RekindleError
from rekindle.store.reading import unreadable


class Stamp(NamedTuple):
    """What no change leaves as it was, be it in place or by another file under the same name."""

    size: int
    mtime_ns: int
    ctime_ns: int
    inode: int


Stamps = Mapping[str, Stamp]  # by path


def stamp(path: str | Path) -> Stamp | None:
    """Of a file, or of what a link leads to; None where there is none."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return Stamp(found.st_size, found.st_mtime_ns, found.st_ctime_ns, found.st_ino)


def stamps(paths: Iterable[str | Path]) -> dict[str, Stamp]:
    """Of those that are there."""
    return {str(path): found for path in paths if (found := stamp(path))}


def stamps_in(folder: Path) -> dict[str, Stamp]:
    """Of everything in a folder; {} where there is no folder."""
    try:
        return stamps(folder.iterdir())
    except (OSError, ValueError):  # which whoever opens it says
        return {}


@contextmanager
def unchanged(check: Callable[[], None]) -> Iterator[None]:
    """Check before, after, and where something breaks in between: a file that was changed is the reason it did."""
    check()
    try:
        yield
    except RekindleError:
        check()
        raise
    check()


def check_unchanged(before: Stamps, read: Iterable[str | Path]) -> None:
    """Refuse what was made of files that have changed since: it may be of one state here, and of another there."""
    changed = [path for path in sorted(map(str, read)) if path in before and stamp(path) != before[path]]
    if not changed:
        return
    if not os.path.exists(changed[0]):
        raise unreadable(changed[0], FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT)))
    more = f" and {len(changed) - 1} more" if len(changed) > 1 else ""
    raise RekindleError(
        f"The source was changed while it was read: {Path(changed[0]).name}{more}.",
        where=changed[0],
        why="the result would be of two states of it",
        hint="the same command, once nothing writes there; or a copy of it",
    )
