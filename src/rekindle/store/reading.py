"""Open a file that may be anything, and say what it is where it is not what was expected."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from rekindle.errors import RekindleError

LFS_POINTER = b"version https://git-lfs.github.com/spec/"

# What a file begins with that is often found in a checkpoint's place, and what it is called.
_BEGINNINGS = (
    (b"PK\x03\x04", "a zip file, as torch.save writes"),
    (b"\x80\x02", "a pickle"),
    (b"GGUF", "a GGUF file, for llama.cpp"),
    (b"\x1f\x8b", "gzip data"),
    (b"\x28\xb5\x2f\xfd", "zstd data"),
    (b"<!DOCTYPE", "a web page, perhaps of a download that was refused"),
    (b"<html", "a web page, perhaps of a download that was refused"),
)


def opened(path: str | Path) -> BinaryIO:
    """A regular file, open for reading. Raises OSError, and RekindleError for what would block or never end."""
    fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | getattr(os, "O_NONBLOCK", 0))
    mode = os.fstat(fd).st_mode
    if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
        os.close(fd)
        kind = {stat.S_IFIFO: "pipe", stat.S_IFSOCK: "socket"}.get(stat.S_IFMT(mode), "device")
        raise RekindleError(f"This is a {kind}, not a file.", where=path)
    return open(fd, "rb")


def refuse_pointer(path: object, head: bytes) -> None:
    """Raise RekindleError where a file begins as a Git LFS pointer does: its content is somewhere else."""
    if head.startswith(LFS_POINTER):
        raise RekindleError(
            "This is a Git LFS pointer: the file itself was not downloaded.",
            where=path,
            hint="git lfs pull in that clone, or `hf download`",
        )


def likeness(head: bytes) -> str | None:
    """What a file seems to be by its first bytes, where it is something well known."""
    return next((name for begins, name in _BEGINNINGS if head.startswith(begins)), None)


def broken(path: object, reason: str) -> RekindleError:
    return RekindleError(f"This file is broken: {reason}.", where=path, hint="download or copy it again")


def unreadable(path: object, error: OSError) -> RekindleError:
    return RekindleError(f"The file cannot be read: {error.strerror}.", where=path)
