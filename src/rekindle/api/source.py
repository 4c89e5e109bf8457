"""Where a SRC is: a folder, a name on the hub, or a step of an archive, unpacked for as long as it is needed."""

from __future__ import annotations

import atexit
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from rekindle.store.hub import locate

READ = ("data", "scores", "tokenizer", "optimizer_state", "measurements")  # options that name files to read


def local(source: str | Path) -> Path:
    """The local folder of `source`: a path, `org/model[@revision]`, `hf://org/model` or `ARCHIVE@step`.

    A step is unpacked under the system's folder for temporary files (TMPDIR), and removed when the process ends.
    """
    path, at, number = str(source).rpartition("@")
    if at and number.isascii() and number.isdigit() and Path(path).is_file():
        return _unpacked(str(Path(path).resolve()), int(number))
    return locate(source)


def place(source: str | Path) -> Path | None:
    """The folder or the archive here that `source` names; None for a name on the hub."""
    path, at, number = str(source).rpartition("@")
    found = Path(path) if at and number.isdigit() and Path(path).is_file() else Path(source).expanduser()
    return found if found.exists() else None


def files_read(*configs: Any) -> list[str]:
    """What the options of these Configs name to be read: files and folders, or words such as stdlib."""
    values = [getattr(config, name, None) for config in configs for name in READ]
    return [value for value in values if isinstance(value, str)]


def digest_of(source: str | Path) -> str | None:
    """Names what is in the step of an archive, wherever it is unpacked; None for a folder."""
    path, at, number = str(source).rpartition("@")
    if not (at and number.isascii() and number.isdigit() and Path(path).is_file()):
        return None
    from rekindle.codec.archive import Archive

    with Archive(Path(path)) as archive:
        return archive[int(number)].entry.digest


@cache
def _unpacked(archive: str, step: int) -> Path:
    from rekindle.api.archive import unpack

    base = Path(tempfile.mkdtemp(prefix="rekindle-"))
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    unpack(f"{archive}@{step}", base / f"step-{step}")
    return base / f"step-{step}"
