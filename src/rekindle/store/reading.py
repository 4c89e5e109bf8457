"""Open a file that may be anything, and say what it is where it is not what was expected."""

from __future__ import annotations

import os
import stat
from pathlib import Path
from typing import BinaryIO

from rekindle.errors import RekindleError

# What stands for a file whose content is somewhere else.
POINTERS = {b"version https://git-lfs.github.com/spec/": "Git LFS", b"# xet version": "Xet"}
LARGEST_POINTER = 1024  # bytes

COMPRESSIONS = {b"\x1f\x8b": "gzip", b"\xfd7zXZ\x00": "xz", b"BZh": "bzip2", b"\x28\xb5\x2f\xfd": "zstd"}
TORCH = (b"PK\x03\x04", b"\x80\x02")  # what torch.save writes, and wrote before 1.6

# What a file begins with, and what it is then.
_FORMATS = {
    b"PK\x03\x04": "a zip archive (as torch's .pt and numpy's .npz are)",
    b"%PDF": "a PDF",
    b"\x89PNG": "a PNG picture",
    b"\xff\xd8\xff": "a JPEG picture",
    b"GIF8": "a GIF picture",
    b"RIFF": "a RIFF file (sound, video or a picture)",
    b"\x93NUMPY": "a numpy array",
    b"\x89HDF": "an HDF5 file",
    b"GGUF": "a GGUF model",
    b"REKINDLE": "an archive of checkpoints",
    b"SQLite format 3\x00": "an SQLite database",
    b"\x7fELF": "a program",
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x04\x22\x4d\x18": "compressed with lz4",
    b"Obj\x01": "an Avro file",
    b"ORC": "an ORC file",
    b"FEA1": "a Feather file of version 1",
    b"\xff\xfe": "UTF-16 text, where UTF-8 is read",
    b"\xfe\xff": "UTF-16 text, where UTF-8 is read",
    **{bytes([0x80, protocol]): "a Python pickle" for protocol in range(2, 6)},
    **{pointer: f"a pointer of {kind}, in place of the file (git lfs pull)" for pointer, kind in POINTERS.items()},
}
_PAGES = (b"<!DOCTYPE", b"<!doctype", b"<html")


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
    """Raise RekindleError where a file begins as a pointer of Git LFS or Xet does."""
    for begins, kind in POINTERS.items():
        if head.startswith(begins):
            raise RekindleError(
                f"This is a {kind} pointer: the file itself was not downloaded.",
                where=path,
                hint="git lfs pull in that clone, or `hf download`",
            )


def compression(head: bytes) -> str | None:
    """What a file is compressed with, by its first bytes."""
    return next((name for magic, name in COMPRESSIONS.items() if head.startswith(magic)), None)


def binary(head: bytes) -> str | None:
    """What a file that is not text is by its first bytes, where it is something well known."""
    if inner := compression(head):
        return f"compressed with {inner}"
    if seems := next((name for magic, name in _FORMATS.items() if head.startswith(magic)), None):
        return seems
    if head[8:10] == b'{"' and int.from_bytes(head[:8], "little") < 1 << 30:
        return "a safetensors file"
    return "a tar archive" if head[257:262] == b"ustar" else None


def likeness(head: bytes) -> str | None:
    """What a file seems to be that was taken for weights."""
    return "a web page, perhaps of a download that was refused" if head.startswith(_PAGES) else binary(head)


def broken(path: object, reason: str, hint: str | None = None) -> RekindleError:
    return RekindleError(f"This file is broken: {reason}.", where=path, hint=hint or "download or copy it again")


def unreadable(path: object, error: OSError) -> RekindleError:
    kind = "folder" if os.path.isdir(str(path)) else "file"
    return RekindleError(f"The {kind} cannot be read: {error.strerror}.", where=path)
