"""Documents out of text files, JSONL, Parquet, folders of those, a `datasets` name, or Python's own sources.

A document is a JSONL line's or a Parquet row's field "text", a dataset's row, or a text file; a long text file
is cut at blank lines into documents of about 64 KiB. Everything streams: no file is ever in memory whole.
"""

from __future__ import annotations

import codecs
import json
import os
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rekindle.errors import RekindleError

FIELD = "text"
TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst", ".py")
SUFFIXES = (*TEXT_SUFFIXES, ".jsonl", ".ndjson", ".parquet")
DOCUMENT_CHARS = 1 << 16
_BLOCK_BYTES = 1 << 20
# Rekindle's own dependencies that are written in Python: with the standard library, 60 MB without repeats
PACKAGES = ("accelerate", "datasets", "huggingface_hub", "jinja2", "matplotlib", "networkx", "numpy", "scipy", "sympy")
_NOT_STDLIB = {"test", "tests", "idlelib", "site-packages", "dist-packages", "__pycache__", "lib2to3"}


@dataclass
class Source:
    """Where documents come from. `empty` counts, after `documents`, those that held no text."""

    name: str  # as the user gave it
    files: list[Path]
    rows: Any = None  # an open dataset, instead of reading `files` ourselves
    empty: int = field(default=0, init=False)

    @property
    def size(self) -> int:
        """Bytes of all files."""
        return sum(path.stat().st_size for path in self.files)

    def listing(self) -> list[tuple[str, int, int]]:
        """(path, bytes, mtime in ns) of each file: what a cache of this text is keyed by."""
        stats = [(path, path.stat()) for path in self.files]
        return [(str(path), stat.st_size, stat.st_mtime_ns) for path, stat in stats]

    def documents(self) -> Iterator[str]:
        """Each document with text in it, in a fixed order. Raises RekindleError naming the file and the place."""
        self.empty = 0
        for text in self._all():
            if not text.strip():
                self.empty += 1
            elif text.isascii():
                yield text
            else:  # JSON can spell half of a surrogate pair, which is no character
                yield text.encode("utf-8", "replace").decode("utf-8")

    def _all(self) -> Iterator[str]:
        if self.rows is not None:
            yield from (row[FIELD] or "" for row in self.rows)
            return
        for path in self.files:
            try:
                yield from _read(path)
            except OSError as error:
                raise RekindleError(f"The data cannot be read: {error.strerror or error}.", where=path) from None


def open_source(data: str) -> Source:
    """The documents that `data` names; raises RekindleError where there are none."""
    if data == "stdlib":
        return Source(data, _stdlib())
    if data == "python":
        return Source(data, [*_stdlib(), *_packages()])
    path = Path(data).expanduser()
    if path.is_dir():
        files = sorted(p for p in path.rglob("*") if p.suffix.lower() in SUFFIXES and p.is_file())
        if not files:
            raise RekindleError(f"The folder has no file of text: none ends in {', '.join(SUFFIXES)}.", where=path)
        return Source(data, files)
    if path.is_file():
        return Source(data, [path])
    if path.is_absolute() or path.suffix.lower() in SUFFIXES or data.startswith((".", "~")):
        raise RekindleError("There is no such file or folder.", where=path)
    return _dataset(data)


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


def _dataset(name: str) -> Source:
    """The train split of a dataset from the hub or from its cache; NAME:CONFIG picks a configuration."""
    import datasets

    path, _, configuration = name.partition(":")
    try:
        rows = datasets.load_dataset(path, configuration or None, split="train")
    except Exception as error:  # the library raises a zoo of types, down to bare connection errors
        raise RekindleError(
            f"{name} is no file, no folder, and no dataset that can be loaded: {_first_line(error)}.",
            hint="--data FILE, FOLDER, stdlib, python, or a name from the hub with a text column (NAME:CONFIG)",
        ) from None
    if FIELD not in rows.column_names:
        raise _no_field(name, rows.column_names)
    return Source(name, [Path(file["filename"]) for file in rows.cache_files], rows.select_columns([FIELD]))


def _read(path: Path) -> Iterator[str]:
    suffix = path.suffix.lower()
    if suffix in (".jsonl", ".ndjson"):
        return _read_jsonl(path)
    if suffix == ".parquet":
        return _read_parquet(path)
    return _read_text(path)


def _read_jsonl(path: Path) -> Iterator[str]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.strip():
                continue
            where = f"{path}, line {number}"
            try:
                row = json.loads(line)
            except (ValueError, RecursionError) as error:  # bad JSON and bad UTF-8 alike
                raise RekindleError(f"This is not JSON: {error}.", where=where) from None
            if not isinstance(row, dict) or FIELD not in row:
                raise _no_field(where, row if isinstance(row, dict) else ())
            if not isinstance(row[FIELD], str | None):
                raise RekindleError(f'"{FIELD}" holds {type(row[FIELD]).__name__}, not text.', where=where)
            yield row[FIELD] or ""


def _read_parquet(path: Path) -> Iterator[str]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            if FIELD not in file.schema_arrow.names:
                raise _no_field(path, file.schema_arrow.names)
            for batch in file.iter_batches(batch_size=256, columns=[FIELD]):
                for value in batch.column(0).to_pylist():
                    if not isinstance(value, str | None):
                        raise RekindleError(f'"{FIELD}" holds {type(value).__name__}, not text.', where=path)
                    yield value or ""
    except pyarrow.ArrowException as error:
        raise RekindleError(f"This Parquet file cannot be read: {_first_line(error)}.", where=path) from None


def _read_text(path: Path) -> Iterator[str]:
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    done, rest = 0, ""
    with path.open("rb") as file:
        while True:
            block = file.read(_BLOCK_BYTES)
            try:
                rest += decoder.decode(block, final=not block)
            except UnicodeDecodeError as error:
                raise RekindleError(
                    f"This text is not UTF-8: byte {error.object[error.start]:#04x} near offset {done + error.start}.",
                    where=path,
                    hint="iconv -t utf-8 ..., or leave the file out",
                ) from None
            done += len(block)
            while len(rest) > DOCUMENT_CHARS:
                cut = _cut(rest)
                yield rest[:cut]
                rest = rest[cut:]
            if not block:
                yield rest
                return


def _cut(text: str) -> int:
    """Where to end a document in a longer text: at the last blank line that fits, else line, else anywhere."""
    for mark in ("\n\n", "\n"):
        found = text.rfind(mark, DOCUMENT_CHARS // 2, DOCUMENT_CHARS)
        if found >= 0:
            return found + len(mark)
    return DOCUMENT_CHARS


def _no_field(where: object, present: Any) -> RekindleError:
    names = ", ".join(map(str, present)) or "nothing"
    return RekindleError(
        f'There is no field "{FIELD}", only {names}.', where=where, hint=f'rename the column with the text to "{FIELD}"'
    )


def _first_line(error: Exception) -> str:
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
