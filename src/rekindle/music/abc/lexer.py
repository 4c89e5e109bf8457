"""The tokens of a tune's body: one table of patterns, first match wins.

Source: the abc music standard 2.1 (abcnotation.com/wiki/abc:standard:v2.1), sections 4 and 8.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass

LENGTH = r"\d*(?:/+\d*)?"
PITCH = r"(?:\^\^|\^|__|_|=)?[A-Ga-g][,']*"
# Kinds that say how a tune goes; what stands under `dropped` says how it is played, laid out or sung.
TABLE = {
    "comment": r"%[^\n]*",
    "field": r"\[[A-Za-z]:[^\]\n]*\]|(?:(?<=\n)|\A)[A-Za-z]:[^|\n][^\n]*",
    "words": r'"[^"\n]*"',
    "mark": r"![^!|\s]+!|\+[^+|\s]+\+",
    "grace": r"\{[^}\n]*\}",
    "bar": r"(?:\[\||\||:)[|:]*\]?(?:\[?\d[\d,.\-]*|(?=\s*\[\d)\s*\[\d[\d,.\-]*)?|\[\d[\d,.\-]*",
    "tuplet": r"\(\d(?::\d?){0,2}",
    "note": PITCH + LENGTH,
    "rest": r"[zx]" + LENGTH,
    "bars of rest": r"Z\d*",
    "chord": r"\[(?:[^\[\]|:\n])+\]" + LENGTH,
    "broken": r">+|<+",
    "tie": r"-",
    "slur": r"[()]",
    "symbol": r"[H-Wh-w~.]",
    "space": r"[ \t]+",
    "continued": r"\\[ \t]*(?=%|\n|\Z)",
    "line": r"\n",
    "spacer": r"y\d*|[*;!`]",
    "stray": r"(?s:.)",
}
_TOKEN = re.compile("|".join(f"(?P<{name.replace(' ', '_')}>{pattern})" for name, pattern in TABLE.items()))


@dataclass(frozen=True, slots=True)
class Token:
    kind: str  # a key of TABLE
    text: str
    place: int  # of its first character in the body


def tokens(body: str) -> Iterator[Token]:
    """All of a body, in its order: joined they are the body again.

    >>> [token.text for token in tokens("|:A2>B (3cde :|2")]
    ['|:', 'A2', '>', 'B', ' ', '(3', 'c', 'd', 'e', ' ', ':|2']
    """
    for found in _TOKEN.finditer(body):
        yield Token((found.lastgroup or "").replace("_", " "), found[0], found.start())
