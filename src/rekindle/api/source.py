"""Where a SRC is: a folder, a name on the hub, or a step of an archive, unpacked for as long as it is needed."""

from __future__ import annotations

import atexit
import os
import shutil
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from rekindle.errors import RekindleError, counted
from rekindle.store.hub import locate
from rekindle.store.stamps import Stamp, stamp

READ = ("data", "scores", "tokenizer", "optimizer_state", "measurements")  # options that name files to read

LONGEST = 18  # digits of a step: the format's limit is 2^62


def local(source: str | Path) -> Path:
    """The local folder of `source`: a path, `org/model[@revision]`, `hf://org/model` or `ARCHIVE@step`.

    A step is unpacked under the system's folder for temporary files (TMPDIR), and removed when the process ends.
    """
    archive, step = _step(source)
    if archive:
        return _unpacked(str(archive.resolve()), step, stamp(archive))
    if os.path.isfile(source):
        _refuse_archive(Path(source))
    return locate(source)


def _refuse_archive(path: Path) -> None:
    """All of an archive is no checkpoint: name its steps."""
    from rekindle.codec.archive import Archive
    from rekindle.codec.container import is_archive

    if is_archive(path):
        with Archive(path) as found:
            steps = found.names
        what = f"{path} is an archive of {counted(len(steps), 'step')}, not a checkpoint."
        raise RekindleError(what, hint=f"{path}@{steps[-1]}, its last; rekindle archive ls {path}" if steps else None)


def place(source: str | Path) -> Path | None:
    """The folder or the archive here that `source` names; None for a name on the hub."""
    found = _step(source)[0] or Path(os.path.expanduser(source))
    return found if os.path.exists(found) else None


def files_read(*configs: Any) -> list[str]:
    """What the options of these Configs name to be read: files and folders, or words such as stdlib."""
    values = [getattr(config, name, None) for config in configs for name in READ]
    return [path for value in values for path in ([value] if isinstance(value, str) else value or ())]


def digest_of(folder: Path) -> str | None:
    """Names what is in a step that was unpacked here, wherever that is; None for any other folder."""
    return _DIGESTS.get(folder)


_DIGESTS: dict[Path, str] = {}


def _step(source: str | Path) -> tuple[Path | None, int]:
    if os.path.isfile(str(source).rpartition("@")[0]):
        path, step = split_name(source)
        if step is not None:
            return path, step
    return None, 0


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
def _unpacked(archive: str, step: int, state: Stamp | None) -> Path:
    from rekindle.api.archive import unpack

    base = Path(tempfile.mkdtemp(prefix="rekindle-"))
    atexit.register(shutil.rmtree, base, ignore_errors=True)
    folder = base / f"step-{step}"
    _DIGESTS[folder] = unpack(f"{archive}@{step}", folder)["digest"]
    return folder
