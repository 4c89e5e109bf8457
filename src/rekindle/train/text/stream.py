"""Lines and JSON values out of a stream of bytes, with bounded memory."""

from __future__ import annotations

import codecs
import json
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from rekindle.errors import RekindleError

LONGEST = 1 << 26  # bytes of a line, characters of a row or document
_BLOCK_BYTES = 1 << 20
_SPACE = " \t\r\n"


def too_long(where: object) -> RekindleError:
    return RekindleError(
        f"One document, row or line is longer than {LONGEST >> 20} MiB.",
        where=where,
        why="each is held in memory whole, and takes many times its size while it is tokenised",
        hint="shorter documents",
    )


def lines(stream: IO[bytes], path: Path) -> Iterator[bytes]:
    """Each line with its end; raises RekindleError at one that is too long to be held."""
    number = 0
    while line := stream.readline(LONGEST + 1):
        number += 1
        if len(line) > LONGEST:
            raise too_long(f"{path}, line {number}")
        yield line


def blocks(stream: IO[bytes], path: Path) -> Iterator[str]:
    """The text of a stream, piece by piece; raises RekindleError where it is not UTF-8."""
    decoder = codecs.getincrementaldecoder("utf-8-sig")()
    done = 0
    while True:
        block = stream.read(_BLOCK_BYTES)
        try:
            yield decoder.decode(block, final=not block)
        except UnicodeDecodeError as error:
            raise RekindleError(
                f"This text is not UTF-8: byte {error.object[error.start]:#04x} near offset {done + error.start}.",
                where=path,
                hint="iconv -t utf-8 ..., or leave the file out",
            ) from None
        done += len(block)
        if not block:
            return


def json_values(stream: IO[bytes], path: Path) -> Iterator[tuple[int, Any]]:
    """(number, value) of the elements of a JSON array, or of values one after the other. Raises RekindleError."""
    reader = _Reader(blocks(stream, path), path)
    array = reader.next_is("[")
    number = 0
    while not reader.ended():
        if array and reader.next_is("]"):
            if not reader.ended():
                raise RekindleError("Something follows the end of the JSON array.", where=path)
            return
        if array and number and not reader.next_is(","):
            raise RekindleError("A comma is missing between two elements.", where=f"{path}, after row {number}")
        number += 1
        yield number, reader.value(number)
    if array:
        raise RekindleError("The JSON array has no end: the file is cut off.", where=f"{path}, after row {number}")


class _Reader:
    """A window on a text of JSON."""

    def __init__(self, pieces: Iterator[str], path: Path):
        self._pieces, self._path = pieces, path
        self._text, self._at = "", 0
        self._decoder = json.JSONDecoder()

    def _more(self, pieces: int = 1) -> bool:
        read = [piece for _, piece in zip(range(pieces), self._pieces, strict=False)]
        self._text, self._at = self._text[self._at :] + "".join(read), 0
        return bool(read)

    def ended(self) -> bool:
        """Whether nothing but space is left."""
        while True:
            while self._at < len(self._text) and self._text[self._at] in _SPACE:
                self._at += 1
            if self._at < len(self._text):
                return False
            if not self._more():
                return True

    def next_is(self, mark: str) -> bool:
        """Step over `mark` where it comes next."""
        found = not self.ended() and self._text[self._at] == mark
        self._at += found
        return found

    def value(self, number: int) -> Any:
        """The object that comes next; a longer window each time it does not end in this one."""
        where, pieces = f"{self._path}, row {number}", 1
        if self.ended() or self._text[self._at] != "{":
            raise RekindleError("This row is no JSON object.", where=where)
        while True:
            try:
                value, self._at = self._decoder.raw_decode(self._text, self._at)
                return value
            except RecursionError as error:
                raise RekindleError(f"This is not JSON: {error}.", where=where) from None
            except ValueError as error:
                if len(self._text) - self._at > LONGEST:
                    raise too_long(where) from None
                if not self._more(pieces):
                    raise RekindleError(f"This is not JSON: {_reason(error)}.", where=where) from None
                pieces *= 2


def _reason(error: ValueError) -> str:
    """Without the place, which would be that in a window."""
    return error.msg if isinstance(error, json.JSONDecodeError) else str(error)
