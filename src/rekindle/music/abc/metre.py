"""Metres: what an M: field says."""

from __future__ import annotations

import re
from fractions import Fraction

_NAMED = {"C": "4/4", "C|": "2/2"}
_METRE = re.compile(r"(\d+(?:\+\d+)*)/(\d+)")
PLAIN = ("2/4", "3/4", "4/4", "2/2", "6/8", "9/8", "12/8", "3/8", "6/4", "3/2", "5/4")  # that models are taught


def parse_metre(text: str) -> str | None:
    """6/8, 2/2 of C|; None of what is no metre, such as none."""
    text = text.split("%")[0].strip().strip("()").replace(" ", "")
    text = _NAMED.get(text, text)
    found = _METRE.fullmatch(text)
    if found is None or not 0 < int(found[2]) <= 64 or not 0 < sum(map(int, found[1].split("+"))) <= 64:
        return None
    return f"{sum(map(int, found[1].split('+')))}/{found[2]}"


def bar_length(metre: str) -> Fraction:
    """In whole notes."""
    above, _, below = metre.partition("/")
    return Fraction(int(above), int(below))


def default_unit(metre: str | None) -> Fraction:
    """The note length where there is no L:, see the standard, section 3.1.7."""
    return Fraction(1, 16) if metre and bar_length(metre) < Fraction(3, 4) else Fraction(1, 8)


def is_compound(metre: str) -> bool:
    """Whether beats have three parts."""
    above, _, below = metre.partition("/")
    return int(above) % 3 == 0 and int(above) > 3 and int(below) >= 4
