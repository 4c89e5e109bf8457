"""Open files for ranged reads and kernel copies, shared by threads."""

from __future__ import annotations

import errno
import os
import threading
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cache
from types import TracebackType
from typing import Any

from rekindle.store.header import PAGE
from rekindle.store.reading import broken, unreadable

LOOP_STEP = 1 << 18  # bytes read and written at once where the kernel does not copy: stays in the cache
COPY_STEP = 1 << 26  # bytes handed to the kernel at once, so that Ctrl-C is heard


class Files:
    """Files by path, opened when they are first used. All may be used from any thread.

    Of very many only some stay open, those used last: a process may not have more than its limit.
    """

    def __init__(self, flags: int = os.O_RDONLY):
        self._flags = flags | os.O_CLOEXEC
        self._open: OrderedDict[str, _Opened] = OrderedDict()  # the one used last is last
        self._lock = threading.Lock()
        self._most = _most_open()

    def __enter__(self) -> Files:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        for opened in self._open.values():
            os.close(opened.fd)
        self._open.clear()

    @contextmanager
    def using(self, path: str) -> Iterator[int]:
        """The file descriptor of a file, which stays open until the block ends."""
        with self._lock:
            opened = self._open.get(path) or self._opened(path)
            self._open.move_to_end(path)
            opened.users += 1
        try:
            yield opened.fd
        finally:
            with self._lock:
                opened.users -= 1

    def _opened(self, path: str) -> _Opened:
        idle = (name for name, opened in self._open.items() if not opened.users)
        if len(self._open) >= self._most and (oldest := next(idle, None)):
            os.close(self._open.pop(oldest).fd)
        try:
            opened = self._open[path] = _Opened(os.open(path, self._flags))
        except OSError as error:
            raise unreadable(path, error) from None
        return opened

    def read(self, path: str, offset: int, nbytes: int) -> bytes:
        """Exactly these bytes; a file that has become shorter is an error."""
        with self.using(path) as fd:
            data = os.pread(fd, nbytes, offset)
            while len(data) < nbytes:
                more = os.pread(fd, nbytes - len(data), offset + len(data))
                if not more:
                    raise broken(path, "it ended while it was read")
                data += more
        return data

    def copy(self, path: str, offset: int, nbytes: int, out: int, at: int) -> None:
        """Move bytes of a file to position `at` of the file descriptor `out`, inside the kernel where it can."""
        with self.using(path) as fd:
            while nbytes:
                moved = _copy_once(fd, out, min(nbytes, COPY_STEP), offset, at)
                if not moved:
                    raise broken(path, "it ended while it was copied")
                offset, at, nbytes = offset + moved, at + moved, nbytes - moved


@dataclass
class _Opened:
    fd: int
    users: int = 0


def _most_open() -> int:
    """A quarter of what the process may open: others of its files, and other `Files`, need some too."""
    import resource

    return max(8, min(1024, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4))


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
