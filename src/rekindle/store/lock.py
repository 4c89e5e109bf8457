"""Lock files: who writes an OUT, or trains into it, is alone with it."""

from __future__ import annotations

import fcntl
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rekindle.errors import RekindleError
from rekindle.store.system import explained


def lock_of(out: Path) -> Path:
    """The lock of whoever writes OUT."""
    return out.parent / f".{out.name}.lock"


def long_lock_of(out: Path) -> Path:
    """The lock of a run that will end in OUT, or writes to it now and then: held for as long as the run takes."""
    return out.parent / f".{out.name}.training.lock"


@contextmanager
def training_into(out: Path) -> Iterator[None]:
    """Hold the long lock of OUT; raises RekindleError where another process trains into OUT, or writes it just now."""
    with alone(long_lock_of(out), f"training into {out.name}"):
        with alone(lock_of(out), f"writing {out}"):
            pass
        yield


def check_not_trained(out: Path) -> None:
    """Refuse an OUT that another process trains into; asked under the lock of OUT, with which none begins to."""
    with alone(long_lock_of(out), f"training into {out.name}", shared=True):
        pass


@contextmanager
def alone(lock: Path, doing: str, *, shared: bool = False) -> Iterator[None]:
    """Hold a lock file; raises RekindleError where a process on any machine that shares the disc holds it.

    `shared`: others may hold it too, who share it. The lock goes with its process, so a kill leaves nothing to clear
    away. Where a file system knows no locks there is none.
    """
    with explained(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        fd = _locked(lock, shared)
        for _ in range(PATIENCE if shared else 0):  # whoever ends takes it alone for a moment
            if fd is None:
                time.sleep(0.05)
                fd = _locked(lock, shared)
    if fd is None:
        raise RekindleError(f"Another process is {doing}.", where=lock, hint="wait for it, or end it")
    try:
        yield
    finally:
        if not shared or _is_last(fd):
            lock.unlink(missing_ok=True)
        os.close(fd)


PATIENCE = 20  # times that a lock is tried which others share


def _locked(lock: Path, shared: bool) -> int | None:
    """The lock file, open and locked; None where another process has it, or has just come to its end."""
    fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o666)
    try:
        fcntl.flock(fd, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(fd)
        return None
    except OSError:
        pass
    if not _is_still(lock, fd):
        os.close(fd)
        return None
    return fd


def _is_last(fd: int) -> bool:
    """Whether nobody else holds a lock that was shared; of those who ask at once the last is told so."""
    try:
        fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def _is_still(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False
