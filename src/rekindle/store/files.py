"""Open files for ranged reads and kernel copies, shared by threads."""

from __future__ import annotations

import errno
import os
import threading
from functools import cache
from types import TracebackType
from typing import Any

from rekindle.store.header import PAGE, broken, unreadable

LOOP_STEP = 1 << 18  # bytes read and written at once where the kernel does not copy: stays in the cache
COPY_STEP = 1 << 26  # bytes handed to the kernel at once, so that Ctrl-C is heard


class Files:
    """Reads ranges of files, each opened once. `read` and `copy` may be called from any thread."""

    def __init__(self) -> None:
        self._open: dict[str, int] = {}
        self._lock = threading.Lock()

    def __enter__(self) -> Files:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for fd in self._open.values():
            os.close(fd)
        self._open.clear()

    def fd(self, path: str) -> int:
        with self._lock:
            if path not in self._open:
                try:
                    self._open[path] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise unreadable(path, error) from None
            return self._open[path]

    def read(self, path: str, offset: int, nbytes: int) -> bytes:
        """Exactly these bytes; a file that has become shorter is an error."""
        fd = self.fd(path)
        data = os.pread(fd, nbytes, offset)
        while len(data) < nbytes:
            more = os.pread(fd, nbytes - len(data), offset + len(data))
            if not more:
                raise broken(path, "it ended while it was read")
            data += more
        return data

    def copy(self, path: str, offset: int, nbytes: int, out: int, at: int) -> None:
        """Move bytes of a file to position `at` of the file descriptor `out`, inside the kernel where it can."""
        fd = self.fd(path)
        while nbytes:
            moved = _copy_once(fd, out, min(nbytes, COPY_STEP), offset, at)
            if not moved:
                raise broken(path, "it ended while it was copied")
            offset, at, nbytes = offset + moved, at + moved, nbytes - moved


# Why a kernel may decline: another file system, an old kernel, a file system without the call.
_DECLINED = {errno.EXDEV, errno.ENOSYS, errno.EOPNOTSUPP, errno.EINVAL, errno.EPERM, errno.EBADF}


def _copy_once(source: int, out: int, nbytes: int, offset: int, at: int) -> int:
    # Where source and target lie differently on their pages the kernel splits each page in two: a loop is twice as fast
    if hasattr(os, "copy_file_range") and (offset - at) % PAGE == 0:
        try:
            if moved := os.copy_file_range(source, out, nbytes, offset, at):
                return moved  # 0 is the end of the file, or a file system that makes its content up
        except OSError as error:
            if error.errno not in _DECLINED:
                raise
    data = os.pread(source, min(nbytes, LOOP_STEP), offset)
    written = 0
    while written < len(data):
        written += os.pwrite(out, data[written:], at + written)
    return len(data)


@cache
def _sync_file_range() -> Any:
    """Linux's call, or None elsewhere."""
    import ctypes

    call = getattr(ctypes.CDLL(None), "sync_file_range", None) if os.name == "posix" else None
    if call is not None:
        call.argtypes = (ctypes.c_int, ctypes.c_int64, ctypes.c_int64, ctypes.c_uint)
    return call


def begin_writeback(fd: int, offset: int, nbytes: int) -> None:
    """Have these bytes start on their way to the disc, without waiting: the flush at the end finds little left."""
    if call := _sync_file_range():
        call(fd, offset, nbytes, 2)  # SYNC_FILE_RANGE_WRITE; advice, so a refusal does not matter
