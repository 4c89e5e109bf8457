"""What a file is, by its content; its name decides only where the content could be either."""

from __future__ import annotations

import bz2
import gzip
import io
import json
import lzma
import re
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Literal

from rekindle.errors import RekindleError
from rekindle.store.reading import binary, compression
from rekindle.train.text.stream import json_values, lines

Kind = Literal["jsonl", "json", "object", "csv", "parquet", "arrow file", "arrow stream", "text"]
MEANING: dict[Kind, str] = {
    "jsonl": "JSON lines",
    "json": "a JSON array",
    "object": "JSON objects",
    "csv": "a table of cells",
    "parquet": "Parquet",
    "arrow file": "Arrow",
    "arrow stream": "Arrow",
    "text": "plain text",
}

TEXT_SUFFIXES = (".txt", ".text", ".md", ".rst", ".py")
LINES_SUFFIXES = (".jsonl", ".ndjson")
TABLE_SUFFIXES = (".csv", ".tsv")
ROW_SUFFIXES = (*LINES_SUFFIXES, ".json", *TABLE_SUFFIXES, ".parquet", ".arrow")
SUFFIXES = (*TEXT_SUFFIXES, *ROW_SUFFIXES)
COMPRESSED = (".gz", ".xz", ".bz2", ".zst")
_HEAD = 1 << 16
_LOOKED_AT = 100  # rows of a file that is not named as rows

_TABLES: dict[bytes, Kind] = {b"PAR1": "parquet", b"ARROW1\x00\x00": "arrow file", b"\xff\xff\xff\xff": "arrow stream"}


@dataclass(frozen=True)
class Format:
    """`kind`: how the file is read, None where it is not; `seems`: then, what it seems to be."""

    kind: Kind | None
    seems: str = ""


@contextmanager
def opened(path: Path) -> Iterator[IO[bytes]]:
    """The bytes of a file, decompressed where they are compressed, whatever its name."""
    with path.open("rb") as file:
        method = compression(file.read(8))
        file.seek(0)
        try:
            yield _decompressed(file, method)
        except (EOFError, lzma.LZMAError, zlib.error) as error:
            raise OSError(f"the {method} stream is damaged: {error}") from None


def _decompressed(file: IO[bytes], method: str | None) -> Any:
    if method == "gzip":
        return gzip.GzipFile(fileobj=file)
    if method == "xz":
        return lzma.LZMAFile(file)
    if method == "bzip2":
        return bz2.BZ2File(file)
    if method == "zstd":
        import pyarrow

        stream: Any = pyarrow.CompressedInputStream(pyarrow.PythonFile(file, mode="r"), "zstd")
        return io.BufferedReader(stream)
    return file


def suffix_of(path: Path) -> str:
    """The lower-case suffix, without that of a compression."""
    suffixes = [suffix.lower() for suffix in path.suffixes[-2:]]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
        return suffixes[-1] if suffixes else ""
    return suffixes[-1] if suffixes else ""


def identify(path: Path, column: str | None = None) -> Format:
    """What a regular file is. With a `column` a table under any name is recognised by its header."""
    with path.open("rb") as file:
        method = compression(file.read(8))
    with opened(path) as stream:
        head = _head(stream)
    for magic, kind in _TABLES.items():
        if head.startswith(magic):
            if method and kind != "arrow stream":
                return Format(None, f"{MEANING[kind]} compressed with {method}, which is only read unpacked")
            return Format(kind)
    if inner := compression(head):
        return Format(None, f"compressed with {inner}{' twice' if inner == method else f', and then with {method}'}")
    if seems := _other(head):
        return Format(None, seems + (f", compressed with {method}" if method else ""))
    return _textual(path, head, column)


def _head(stream: IO[bytes]) -> bytes:
    parts, size = [], 0
    while size < _HEAD and (part := stream.read(_HEAD - size)):
        parts.append(part)
        size += len(part)
    return b"".join(parts)


def _other(head: bytes) -> str | None:
    """What a head that is not text seems to be."""
    if seems := binary(head):
        return seems
    zeros = head.count(0)
    if not zeros:
        return None
    if zeros > len(head) // 4 and zeros in (head[::2].count(0), head[1::2].count(0)):
        return "UTF-16 text, where UTF-8 is read"
    return "binary"


def _textual(path: Path, head: bytes, column: str | None) -> Format:
    suffix = suffix_of(path)
    start = head.removeprefix(b"\xef\xbb\xbf").lstrip()
    array = re.match(rb"\[\s*(\{|\]|$)", start) is not None
    if suffix in LINES_SUFFIXES:
        return Format("json" if array else "jsonl")
    if suffix in TABLE_SUFFIXES:
        return Format("csv")
    if suffix in (".parquet", ".arrow"):
        return Format(None, f"no {suffix[1:].title()}, whatever its name: it begins with {_shown(head)}")
    if suffix == ".json":
        if start and not array and start[:1] != b"{":
            return Format(None, _values(start) or f"no JSON of rows, whatever its name: it begins with {_shown(start)}")
        return Format("json" if array else _lines_or_object(path))
    rows: Kind = "json" if array else "jsonl"
    if (array or start[:1] == b"{") and _share_a_text(path, rows):
        return Format(rows)
    if start[:1] == b"{" and suffix not in TEXT_SUFFIXES and _lines_or_object(path) == "jsonl":
        return Format("jsonl")
    if column is not None and delimiter(next(lines_of(path), b""), column):
        return Format("csv")
    return Format("text")


def _values(start: bytes) -> str | None:
    """What JSON whose rows are no objects seems to be."""
    found = re.match(rb'\[\s*(?:(")|(\[)|[-\d]|[tfn])', start)
    if not found:
        return None
    what = "strings" if found[1] else "arrays" if found[2] else "plain values"
    return f'a JSON array of {what}, where rows are objects such as {{"text": "..."}}'


def _shown(head: bytes) -> str:
    return repr(head[:16].decode("utf-8", "backslashreplace"))


def lines_of(path: Path) -> Iterator[bytes]:
    """The lines of a file that are not empty; raises RekindleError at one that is too long."""
    with opened(path) as stream:
        yield from (line for line in lines(stream, path) if line.strip())


def _lines_or_object(path: Path) -> Kind:
    """Whether the first line of JSON is a row, or the file is an object of many lines, or of one alone."""
    try:
        found = list(islice(lines_of(path), 2))
        rows = not found or (len(found) == 2 and isinstance(json.loads(found[0]), dict))
    except (ValueError, RecursionError, RekindleError):
        rows = False
    return "jsonl" if rows else "object"


def _share_a_text(path: Path, kind: Kind) -> bool:
    """Whether the first rows of a file are objects that share a field of text, or of chat messages."""
    shared: dict[str, bool] | None = None  # name: whether it held something
    try:
        for row in islice(_rows(path, kind), _LOOKED_AT):
            able = {name: value is not None for name, value in row.items() if _is_text(value)}
            shared = able if shared is None else {n: held or able[n] for n, held in shared.items() if n in able}
    except (ValueError, RecursionError, AttributeError, RekindleError):
        return False
    return any((shared or {}).values())


def _rows(path: Path, kind: Kind) -> Iterator[Any]:
    if kind == "jsonl":
        yield from map(json.loads, lines_of(path))
    else:
        with opened(path) as stream:
            yield from (row for _, row in json_values(stream, path))


def _is_text(value: Any) -> bool:
    return isinstance(value, str | None) or (isinstance(value, list) and bool(value) and isinstance(value[0], dict))


def delimiter(header: bytes, column: str) -> str | None:
    """What parts a line of names among which `column` is."""
    line = header.decode("utf-8-sig", "replace").strip("\r\n")
    for mark in ",\t;|":
        if column in (name.strip().strip('"') for name in line.split(mark)):
            return mark
    return None
