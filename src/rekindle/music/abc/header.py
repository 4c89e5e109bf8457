"""Tunes out of a file, and the fields above each."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

_FIELD = re.compile(r"([A-Za-z]):(?!\|):*[ \t]*(.*)")
_KEY = re.compile(r"^K:", re.MULTILINE)
_ABOUT = ("%", *(f"{letter}:" for letter in "BCDHINOPQRSTWZw"))
_BEGINS = re.compile(r"^X:", re.MULTILINE)


@dataclass(frozen=True)
class Written:
    """A tune as it stands in a file: the values of each field, in their order, and what follows K:."""

    fields: dict[str, tuple[str, ...]]
    body: str

    def first(self, name: str) -> str:
        """The first value of a field; "" where there is none."""
        return next(iter(self.fields.get(name, ())), "")


def tunes_of(text: str) -> Iterator[Written]:
    """The tunes of a file or of a book: each begins at X:, or where there is none, the text is one tune."""
    text = text.replace("\r\n", "\n").replace("\r", "\n").lstrip("\ufeff")
    starts = [found.start() for found in _BEGINS.finditer(text)]
    for start, end in zip(starts or [0], [*starts[1:], len(text)] if starts else [len(text)], strict=True):
        yield written(text[start:end])


def written(text: str) -> Written:
    """The header ends with its K:, whatever else stands above that; where there is none, with its last field."""
    fields: dict[str, list[str]] = {}
    lines = text.split("\n")
    has_key = _KEY.search(text) is not None
    for number, line in enumerate(lines):
        found = _FIELD.match(line)
        if found is None and line.strip() and not line.startswith("%") and not has_key:
            return Written(_frozen(fields), _body(lines[number:]))
        if found is None:
            continue
        fields.setdefault(found[1], []).append(found[2].split("%")[0].strip())
        if found[1] == "K":
            return Written(_frozen(fields), _body(lines[number + 1 :]))
    return Written(_frozen(fields), "")


def _frozen(fields: dict[str, list[str]]) -> dict[str, tuple[str, ...]]:
    return {name: tuple(values) for name, values in fields.items()}


def _body(lines: list[str]) -> str:
    """Up to the first blank line, without lines that are about the music or its words."""
    kept: list[str] = []
    for line in lines:
        if not line.strip():
            if any(map(str.strip, kept)):
                break
            continue
        if not line.startswith(_ABOUT):
            kept.append(line)
    return "\n".join(kept)
