"""Where a SRC is: a folder, a name on the hub, or a step of an archive, unpacked for as long as it is needed."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path

from rekindle.store.hub import locate


def local(source: str | Path) -> Path:
    """The local folder of `source`: a path, `org/model[@revision]`, `hf://org/model` or `ARCHIVE@step`.

    A step is unpacked under the system's folder for temporary files (TMPDIR), and removed when the process ends.
    """
    path, at, number = str(source).rpartition("@")
    if at and number.isascii() and number.isdigit() and Path(path).is_file():
        return _unpacked(str(Path(path).resolve()), int(number))
    return locate(source)


@cache
def _unpacked(archive: str, step: int) -> Path:
    from rekindle.api.archive import unpack

    base = Path(tempfile.mkdtemp(prefix="rekindle-"))
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    unpack(f"{archive}@{step}", base / f"step-{step}")
    return base / f"step-{step}"
