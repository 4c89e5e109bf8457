"""Rows and texts out of one file, streamed."""

from __future__ import annotations

import csv
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rekindle.errors import RekindleError, counted, first_line
from rekindle.train.text.docstrings import described
from rekindle.train.text.format import Format, delimiter, identify, opened, suffix_of
from rekindle.train.text.pair import PairReading
from rekindle.train.text.row import FIELD, Document, Reading
from rekindle.train.text.stream import LONGEST, blocks, json_values, lines

DOCUMENT_CHARS = 1 << 16
_ROWS = 256  # of a table at once


def documents_of(path: Path, reading: Reading) -> Iterator[Document]:
    """Every document of a file, empty ones too. Raises RekindleError naming the file and the place."""
    form = identify(path, reading.column)
    if form.kind is None:
        raise unreadable(path, form)
    if form.kind == "parquet":
        yield from _parquet(path, reading)
    elif form.kind == "arrow file":
        yield from _arrow(path, None, reading)
    else:
        with opened(path) as stream:
            if form.kind == "text" and suffix_of(path) == ".py" and isinstance(reading, PairReading):
                yield from described(stream, path)
            elif form.kind == "text":
                yield from _texts(stream, path)
            elif form.kind == "arrow stream":
                yield from _arrow(path, stream, reading)
            else:
                rows = {"jsonl": _json_lines, "csv": _csv}.get(form.kind, _json)(stream, path, reading)
                yield from (reading.document(row, where) for where, row in rows)


def unreadable(path: Path, form: Format) -> RekindleError:
    return RekindleError(
        f"This file cannot be read as text: it is {form.seems}.",
        where=path,
        hint="text, JSON, CSV, Parquet or Arrow; all but the last two also compressed: .gz, .xz, .bz2, .zst",
    )


def _json_lines(stream: IO[bytes], path: Path, reading: Reading) -> Iterator[tuple[str, Any]]:
    for number, line in enumerate(lines(stream, path), 1):
        if not line.strip():
            continue
        where = f"{path}, line {number}"
        try:
            yield where, json.loads(line)
        except (ValueError, RecursionError) as error:  # bad JSON and bad UTF-8 alike
            raise RekindleError(f"This is not JSON: {error}.", where=where) from None


def _json(stream: IO[bytes], path: Path, reading: Reading) -> Iterator[tuple[str, Any]]:
    return ((f"{path}, row {number}", row) for number, row in json_values(stream, path))


def _csv(stream: IO[bytes], path: Path, reading: Reading) -> Iterator[tuple[str, dict[str, str]]]:
    """Rows under a header, parted by what parts the header; raises RekindleError for a row of another length."""
    texts = _decoded(lines(stream, path), path)
    header = next(texts, None)
    if header is None:
        return
    mark = delimiter(header.encode(), reading.leading)
    mark = mark or ("\t" if suffix_of(path) == ".tsv" else max(",\t;|", key=header.count))
    csv.field_size_limit(max(csv.field_size_limit(), LONGEST))  # the module's own, 128 KiB, is for all of a process
    table = csv.reader(_joined(header, texts), delimiter=mark, strict=True)
    try:
        names = [name.strip() for name in next(table)]
        if reading.columns(names) is None:
            raise _without_header(names, reading, path) or reading.no_column(names, names, path)
        if twice := [name for name in reading.columns(names) or [] if names.count(name) > 1]:
            raise RekindleError(f'The header names the column "{twice[0]}" more than once.', where=path)
        for row in table:
            where = f"{path}, line {table.line_num}"
            if row and len(row) != len(names):
                raise RekindleError(
                    f"This row has {len(row)} cells, but the header has {len(names)}.",
                    where=where,
                    hint="cells that hold the separator or a line break stand in double quotes",
                )
            if row:
                yield where, dict(zip(names, row, strict=True))
    except csv.Error as error:
        raise RekindleError(f"This is not CSV: {error}.", where=f"{path}, line {table.line_num}") from None


def _without_header(names: list[str], reading: Reading, path: Path) -> RekindleError | None:
    """What to say of a table whose first line is a row itself, by the looks of it: of numbers, sentences, or empty."""
    if not any(re.fullmatch(r"[-+.\d]*", name) or len(name.split()) > 3 for name in names):
        return None
    return RekindleError(
        f'There is no column "{reading.leading}": the first line, which names the columns, looks like a row.',
        where=f"{path}, line 1",
        hint=f"a first line of {counted(len(names), 'name')} above it, such as id,{FIELD}",
    )


def _joined(first: str, rest: Iterator[str]) -> Iterator[str]:
    yield first
    yield from rest


def _decoded(raw: Iterator[bytes], path: Path) -> Iterator[str]:
    for number, line in enumerate(raw, 1):
        try:
            yield line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError as error:
            raise RekindleError(
                f"This text is not UTF-8: byte {line[error.start]:#04x}.",
                where=f"{path}, line {number}",
                hint="iconv -t utf-8 ...",
            ) from None


def _parquet(path: Path, reading: Reading) -> Iterator[Document]:
    import pyarrow
    from pyarrow import parquet

    try:
        with parquet.ParquetFile(path) as file:
            chosen = _chosen(file.schema_arrow, path, reading)
            yield from _of_table(file.iter_batches(batch_size=_ROWS, columns=chosen), path, reading)
    except pyarrow.ArrowException as error:
        raise RekindleError(f"This Parquet file cannot be read: {first_line(error)}.", where=path) from None


def _arrow(path: Path, stream: IO[bytes] | None, reading: Reading) -> Iterator[Document]:
    """A file mapped into memory, or a stream."""
    import pyarrow
    from pyarrow import ipc

    try:
        if stream is not None:
            with ipc.open_stream(stream) as batches:
                chosen = _chosen(batches.schema, path, reading)
                yield from _of_table((batch.select(chosen) for batch in batches), path, reading)
        else:
            with pyarrow.memory_map(str(path)) as mapped, ipc.open_file(mapped) as file:
                chosen = _chosen(file.schema, path, reading)
                batches = (file.get_batch(number).select(chosen) for number in range(file.num_record_batches))
                yield from _of_table(batches, path, reading)
    except (pyarrow.ArrowException, OSError) as error:
        raise RekindleError(f"This Arrow file cannot be read: {first_line(error)}.", where=path) from None


def _chosen(schema: Any, path: Path, reading: Reading) -> list[str]:
    from pyarrow import types

    names = list(schema.names)
    chosen = reading.columns(names)
    if chosen is None:
        strings = [field.name for field in schema if types.is_string(field.type) or types.is_large_string(field.type)]
        raise reading.no_column(names, strings, path)
    return chosen


def _of_table(batches: Iterator[Any], path: Path, reading: Reading) -> Iterator[Document]:
    number = 0
    for batch in batches:
        for start in range(0, batch.num_rows, _ROWS):
            for row in batch.slice(start, _ROWS).to_pylist():
                number += 1
                yield reading.document(row, f"{path}, row {number}")


def _texts(stream: IO[bytes], path: Path) -> Iterator[str]:
    """A text, cut into documents where it is long."""
    rest = ""
    for piece in blocks(stream, path):
        rest += piece
        while len(rest) > DOCUMENT_CHARS:
            end = cut(rest, DOCUMENT_CHARS)
            yield rest[:end]
            rest = rest[end:]
    yield rest


def cut(text: str, longest: int) -> int:
    """Where to end a piece of a longer text: after the last blank line that fits, else line, else anywhere."""
    for mark in ("\n\n", "\n"):
        found = text.rfind(mark, longest // 2, longest)
        if found >= 0:
            return found + len(mark)
    return longest
