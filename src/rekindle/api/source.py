"""Where a SRC is: a folder, a name on the hub, or a step of an archive, unpacked for as long as it is needed."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path

from rekindle.errors import RekindleError
from rekindle.store.hub import locate

LONGEST = 18  # digits of a step: the format's limit is 2^62


def local(source: str | Path) -> Path:
    """The local folder of `source`: a path, `org/model[@revision]`, `hf://org/model` or `ARCHIVE@step`.

    A step is unpacked under the system's folder for temporary files (TMPDIR), and removed when the process ends.
    """
    if Path(str(source).rpartition("@")[0]).is_file():
        path, step = split_name(source)
        if step is not None:
            return _unpacked(str(path.resolve()), step)
    return locate(source)


def split_name(source: str | Path) -> tuple[Path, int | None]:
    """ "runs.rk@1200" -> runs.rk, 1200; what is there under its whole name is all path. Raises RekindleError."""
    text = str(source)
    path, at, number = text.rpartition("@")
    if not at or os.path.exists(text):
        return Path(text), None
    if not (number.isascii() and number.isdigit() and len(number) <= LONGEST):
        what = f"{number!r} is no step: a number of at most {LONGEST} digits."
        raise RekindleError(what, where=text, hint=f"rekindle archive ls {path}")
    return Path(path), int(number)


@cache
def _unpacked(archive: str, step: int) -> Path:
    from rekindle.api.archive import unpack

    base = Path(tempfile.mkdtemp(prefix="rekindle-"))
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    unpack(f"{archive}@{step}", base / f"step-{step}")
    return base / f"step-{step}"
