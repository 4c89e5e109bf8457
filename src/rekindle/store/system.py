"""What the operating system refuses, as sentences."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from rekindle.errors import RekindleError

OURS = re.compile(r"\.(.+?)(?:\.training)?\.(?:lock|retired|partial.*)")  # names beside an OUT, which nobody has given


class DiscFull(RekindleError):
    """There is no space left where something is written."""


@contextmanager
def explained(out: Path, other: str = "another OUT") -> Iterator[None]:
    """The operating system's refusals as sentences: disc full, no permission, not a folder. `other`: a way around."""
    try:
        yield
    except Exception as error:
        number = error_number(error)
        where = Path(getattr(error, "filename", None) or out)
        if ours := OURS.fullmatch(where.name):
            where = where.with_name(ours[1])
        if number in (errno.ENOSPC, errno.EDQUOT):
            raise DiscFull(
                f"The disc is full: {out} could not be finished.", hint=f"free some space, or {other}"
            ) from None
        if number in (errno.EACCES, errno.EPERM, errno.EROFS):
            raise RekindleError("No permission to write here.", where=where, hint=other) from None
        if number in (errno.ENOTDIR, errno.EEXIST):
            there = next(path for path in (where, *where.parents) if path.exists())
            raise RekindleError("This is a file, not a folder.", where=there) from None
        if number == errno.EFBIG:
            raise RekindleError(
                "The file system takes no file this large.", where=out, hint="a smaller --max-shard-size"
            ) from None
        if number in _TOLD:
            raise RekindleError(f"{os.strerror(number)}.", where=where, hint=other) from None
        raise


_TOLD = {
    errno.EIO,
    errno.ENOENT,
    errno.EINVAL,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.ESTALE,
    errno.EBUSY,
    errno.EXDEV,
    errno.ENOTEMPTY,
}


def error_number(error: Exception) -> int | None:
    """The system's number of an error, also where a library in another language gives it in words."""
    if isinstance(error, OSError):
        return error.errno
    found = re.search(r"\(os error (\d+)\)", str(error))
    return int(found[1]) if found else None
