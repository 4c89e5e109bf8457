"""A folder appears whole or not at all: written beside its place, flushed, renamed."""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from rekindle.errors import RekindleError


def partial_path(out: Path, part: str = "") -> Path:
    """Where OUT, or a part of it, is written until it is complete: a hidden sibling, a rename away from its place."""
    return out.parent / f".{out.name}.partial{f'-{part}' if part else ''}"


def check_free(out: Path, overwrite: bool) -> None:
    """Refuse an OUT that is no folder or holds the current one; and one that is not empty, unless `overwrite`."""
    check_is_folder(out)
    with explained(out):
        if out.exists() and Path.cwd().is_relative_to(out.resolve()):
            raise RekindleError(f"{out} holds the folder you are in, and would be replaced.", hint="another OUT")
        if out.exists() and not overwrite and any(out.iterdir()):
            raise RekindleError(f"{out} exists and is not empty.", hint="another OUT, or --overwrite to replace it")


def check_is_folder(out: Path) -> None:
    """Refuse an OUT that is something else."""
    with explained(out):
        if out.is_symlink() or (out.exists() and not out.is_dir()):
            kind = "link" if out.is_symlink() else "file"
            raise RekindleError(f"{out} is a {kind}, not a folder.", hint="another OUT")


@contextmanager
def publishing(
    out: str | Path, *, overwrite: bool = False, keep_partial: bool = False, resume: bool | None = None
) -> Iterator[Path]:
    """Yield an empty folder beside OUT that becomes OUT when the block ends well.

    With `keep_partial` an attempt that is cut short leaves its folder beside OUT, and the next one is given it as it
    stands unless `resume` is False: that is what --resume finds. Refusals leave nothing behind.
    """
    out = Path(os.path.abspath(out))
    check_free(out, overwrite)
    resume = keep_partial if resume is None else resume
    with staged(out, partial_path(out), _publish, keep_partial=keep_partial, resume=resume) as partial:
        yield partial


@contextmanager
def staged(
    out: Path, partial: Path, publish: Callable[[Path, Path], object], *, keep_partial: bool, resume: bool
) -> Iterator[Path]:
    """Yield the folder `partial`, and `publish(partial, out)` when the block ends well."""
    with explained(out):
        if partial.exists() and not resume:
            shutil.rmtree(partial)
        partial.mkdir(parents=True, exist_ok=True)
    try:
        with explained(out):
            yield partial
            publish(partial, out)
    except BaseException as error:
        if not keep_partial or isinstance(error, RekindleError):
            shutil.rmtree(partial, ignore_errors=True)
        raise


@contextmanager
def alone(lock: Path, doing: str) -> Iterator[None]:
    """Hold a lock file; raises RekindleError where a process on any machine that shares the disc holds it.

    The lock goes with its process, so a kill leaves nothing to clear away. Where a file system knows no locks there
    is none.
    """
    busy = RekindleError(f"Another process is {doing}.", where=lock, hint="wait for it, or end it")
    with explained(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
        fd = os.open(lock, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise busy from None
        except OSError:
            pass
        if not _is_still(lock, fd):
            raise busy  # it has just come to its end
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
    finally:
        os.close(fd)


def _is_still(path: Path, fd: int) -> bool:
    try:
        return os.path.samestat(os.stat(path), os.fstat(fd))
    except FileNotFoundError:
        return False


def _publish(partial: Path, out: Path) -> None:
    for path in partial.rglob("*"):
        sync(path)
    sync(partial)
    retired = out.parent / f".{out.name}.retired"
    if out.exists():
        shutil.rmtree(retired, ignore_errors=True)
        out.rename(retired)
        try:
            partial.rename(out)
        except BaseException:
            retired.rename(out)
            raise
    else:
        partial.rename(out)
    sync(out.parent)
    shutil.rmtree(retired, ignore_errors=True)  # also one that a kill between the two renames left


def sync(path: Path) -> None:
    """fsync a file or a folder."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


@contextmanager
def explained(out: Path) -> Iterator[None]:
    """The operating system's refusals as sentences: disc full, no permission, not a folder."""
    try:
        yield
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise RekindleError(
                f"The disc is full: {out} could not be finished.", hint="free some space, or another OUT"
            ) from None
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise RekindleError(
                "No permission to write here.", where=error.filename or out, hint="another OUT"
            ) from None
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise RekindleError("This is a file, not a folder.", where=error.filename or out) from None
        if error.errno == errno.EFBIG:
            raise RekindleError(
                "The file system takes no file this large.", where=out, hint="a smaller --max-shard-size"
            ) from None
        if error.errno in (errno.EIO, errno.ENAMETOOLONG, errno.ELOOP, errno.ESTALE):
            raise RekindleError(f"{error.strerror}.", where=error.filename or out, hint="another OUT") from None
        raise
