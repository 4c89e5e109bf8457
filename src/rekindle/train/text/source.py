"""What `--data` names: a file, a folder, a dataset, or Python's own sources."""

from __future__ import annotations

import logging
import os
import stat
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rekindle.errors import RekindleError, first_line
from rekindle.train.text.folder import HELD_OUT, files_of
from rekindle.train.text.format import MEANING, ROW_SUFFIXES, SUFFIXES, TEXT_SUFFIXES, identify, suffix_of
from rekindle.train.text.read import documents_of, unreadable
from rekindle.train.text.row import Document, Reading
from rekindle.train.text.stream import LONGEST, too_long

log = logging.getLogger(__name__)

# Rekindle's own dependencies that are written in Python: with the standard library, 60 MB without repeats
PACKAGES = ("accelerate", "datasets", "huggingface_hub", "jinja2", "matplotlib", "networkx", "numpy", "scipy", "sympy")
_NOT_STDLIB = {"test", "tests", "idlelib", "site-packages", "dist-packages", "__pycache__", "lib2to3"}


@dataclass
class Source:
    """Where documents come from. `empty` counts, after `documents`, those that held no text.

    `held_out` are files, or rows, of a split that its makers named for validation; where there is none, documents are
    held out by their content, see train.split.
    """

    name: str  # as the user gave it
    files: list[Path]
    rows: Any = None  # an open dataset, instead of reading `files` ourselves
    reading: Reading = Reading()
    held_out: Source | None = None
    empty: int = field(default=0, init=False)

    @property
    def size(self) -> int:
        """Bytes of all files, those that are held out by name included."""
        return sum(size for _, size, *_ in self.listing())

    def listing(self) -> list[tuple[str, int, int, int, int]]:
        """(path, bytes, mtime, ctime, inode) of each file: what a cache of this text is keyed by.

        A file's mtime can be set back after a change; its ctime cannot.
        """
        try:
            stats = [(path, path.stat()) for path in self.files]
        except OSError as error:
            raise RekindleError(f"The data cannot be read: {error.strerror}.", where=error.filename) from None
        known = [(str(path), s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for path, s in stats]
        if self.rows is not None:  # which may be in memory, or some of its files' rows
            known.append((f"rows {self.rows._fingerprint}", 0, 0, 0, 0))
        return known + ([("held out", 0, 0, 0, 0), *self.held_out.listing()] if self.held_out else [])

    def documents(self) -> Iterator[Document]:
        """Each document with text in it, in a fixed order. Raises RekindleError naming the file and the place."""
        self.empty = 0
        for document in self._all():
            text = document if isinstance(document, str) else document.text
            if not text.strip():
                self.empty += 1
            elif len(text) > LONGEST:
                raise too_long(self.name)
            else:
                yield characters(document) if isinstance(document, str) else document

    def _all(self) -> Iterator[Document]:
        if self.rows is not None:
            for number, row in enumerate(self.rows, 1):
                yield self.reading.document(row, f"{self.name}, row {number}")
            return
        for path in self.files:
            try:
                yield from documents_of(path, self.reading)
            except OSError as error:
                raise RekindleError(f"The data cannot be read: {error.strerror or error}.", where=path) from None


def characters(text: str) -> str:
    """JSON can spell half of a surrogate pair, which is no character."""
    return text if text.isascii() else text.encode("utf-8", "replace").decode("utf-8")


def open_source(data: str, column: str | None = None, *, chat: bool = False, reading: Reading | None = None) -> Source:
    """The documents that `data` names, from the `column` of their rows; or as another `reading` has them.

    Raises RekindleError where there are none. What of a folder is left out is logged.
    """
    reading = reading or Reading(column, chat)
    if not data.strip():
        raise RekindleError("The data has an empty name.", where="option data", hint="--data FILE")
    if data == "stdlib":
        return Source(data, _stdlib(), reading=reading)
    if data == "python":
        return Source(data, [*_stdlib(), *_packages()], reading=reading)
    path = Path(data).expanduser()
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        mode = None
    except (OSError, ValueError) as error:
        raise RekindleError(f"The data cannot be read: {getattr(error, 'strerror', error)}.", where=data[:60]) from None
    if mode is not None and stat.S_ISDIR(mode):
        return _saved(data, path, reading) or _folder(data, path, reading)
    if mode is not None:
        return Source(data, [_file(path, mode, reading)], reading=reading)
    if path.is_absolute() or suffix_of(path) in SUFFIXES or data.startswith((".", "~")):
        raise RekindleError("There is no such file or folder.", where=path)
    return _dataset(data, reading)


def _folder(data: str, path: Path, reading: Reading) -> Source:
    files, held_out = files_of(path, reading)
    apart = Source(data, held_out, reading=reading) if held_out else None
    return Source(data, files, reading=reading, held_out=apart)


def _file(path: Path, mode: int, reading: Reading) -> Path:
    if not stat.S_ISREG(mode):
        raise RekindleError(
            f"This is {special(mode)}, no file.", where=path, why="the data is read more than once", hint="--data FILE"
        )
    try:
        form = identify(path, reading.column)
    except OSError as error:
        raise RekindleError(f"The data cannot be read: {error.strerror or error}.", where=path) from None
    if form.kind is None:
        raise unreadable(path, form)
    if form.kind == "text" and reading.column is not None:
        raise RekindleError(
            f'This is plain text: it has no column "{reading.column}".', where=path, hint="leave out --text-column"
        )
    if (form.kind == "text") != (suffix_of(path) in TEXT_SUFFIXES) and suffix_of(path) not in ROW_SUFFIXES:
        log.warning("%s is read as %s", path, MEANING[form.kind])
    return path


def special(mode: int) -> str:
    kinds = ((stat.S_ISFIFO, "a pipe"), (stat.S_ISSOCK, "a socket"), (stat.S_ISCHR, "a device"))
    return next((name for test, name in kinds if test(mode)), "a device")


def _stdlib() -> list[Path]:
    """The .py sources of the running Python's library, without its tests: text that is on every machine."""
    root = Path(sysconfig.get_path("stdlib"))
    found = _sources(root)
    if not found:
        raise RekindleError("This Python comes without its library's sources.", where=root, hint="--data FILE")
    return found


def _packages() -> list[Path]:
    """The .py sources of the packages that Rekindle needs, without their tests: of the versions installed here."""
    specs = {name: find_spec(name) for name in PACKAGES}
    if missing := [name for name, spec in specs.items() if spec is None or spec.origin is None]:
        raise RekindleError(f"{', '.join(missing)} cannot be found.", hint="--data stdlib")
    return [path for spec in specs.values() for path in _sources(Path(str(spec and spec.origin)).parent)]


def _sources(root: Path) -> list[Path]:
    found = []
    for folder, folders, names in os.walk(root):
        folders[:] = [name for name in folders if name not in _NOT_STDLIB]
        found += [Path(folder, name) for name in names if name.endswith(".py")]
    return sorted(found)


def saved_rows(path: Path) -> Any:
    """A dataset, or several splits, out of a folder that `datasets` saved; None of any other folder."""
    marks = ("dataset_dict.json", "state.json")
    if not ((path / marks[0]).is_file() or ((path / marks[1]).is_file() and (path / "dataset_info.json").is_file())):
        return None
    import datasets

    try:
        return datasets.load_from_disk(str(path))
    except Exception as error:  # the library raises a zoo of types
        raise RekindleError(f"The saved dataset cannot be loaded: {first_line(error)}.", where=path) from None


def named_rows(name: str, split: str | None, hint: str) -> Any:
    """A split, or all, of a dataset from the hub or from its cache; NAME:CONFIG picks a configuration."""
    import datasets

    path, _, configuration = name.partition(":")
    try:
        return datasets.load_dataset(path, configuration or None, split=split)
    except Exception as error:  # the library raises a zoo of types, down to bare connection errors
        what = f"{name} is no file, no folder, and no dataset that can be loaded: {first_line(error)}."
        raise RekindleError(what, hint=f"--data {hint}, or a name from the hub (NAME:CONFIG)") from None


def _saved(data: str, path: Path, reading: Reading) -> Source | None:
    """A folder that `datasets` saved, of a dataset or of several splits: those to train on and to validate by."""
    rows = saved_rows(path)
    if rows is None:
        return None
    import datasets

    if not isinstance(rows, datasets.DatasetDict):
        return _of_rows(data, rows, reading)
    splits = [str(name) for name in rows]
    if "train" not in splits:
        raise RekindleError(f"Of its splits, {', '.join(splits)}, none is called train.", where=path)
    apart = next((name for name in HELD_OUT if name in splits), None)
    if left := [name for name in splits if name not in ("train", apart)]:
        read = " and ".join(name for name in ("train", apart) if name)
        log.warning("%s: reads %s; left out: %s", path, read, ", ".join(left))
    source = _of_rows(data, rows["train"], reading)
    source.held_out = _of_rows(data, rows[apart], reading) if apart else None
    return source


def _dataset(name: str, reading: Reading) -> Source:
    """The train split of a dataset."""
    return _of_rows(name, named_rows(name, "train", "FILE, FOLDER, stdlib, python"), reading)


def _of_rows(name: str, rows: Any, reading: Reading) -> Source:
    chosen = reading.columns(rows.column_names)
    if chosen is None:
        strings = [key for key, kind in rows.features.items() if getattr(kind, "dtype", None) == "string"]
        raise reading.no_column(rows.column_names, strings, name)
    return Source(name, [Path(file["filename"]) for file in rows.cache_files], rows.select_columns(chosen), reading)
