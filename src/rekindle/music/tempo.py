"""How fast a tune is played where nobody says: by its metre and its mood."""

from __future__ import annotations

from fractions import Fraction

# metre: the note that is a beat, in whole notes, and how many of them there are a minute
BEATS: dict[str, tuple[Fraction, int]] = {
    "2/2": (Fraction(1, 2), 92), "4/4": (Fraction(1, 4), 160), "2/4": (Fraction(1, 4), 96),
    "3/4": (Fraction(1, 4), 126), "3/8": (Fraction(3, 8), 54), "6/8": (Fraction(3, 8), 108),
    "9/8": (Fraction(3, 8), 108), "12/8": (Fraction(3, 8), 108), "6/4": (Fraction(3, 4), 54),
    "3/2": (Fraction(1, 2), 92), "5/4": (Fraction(1, 4), 126),
}  # fmt: skip
_SLOWER = {"slow": 0.62, "tender": 0.7, "moderate": 0.85}
_DEFAULT = (Fraction(1, 4), 120)


def beat_of(metre: str, mood: str = "") -> tuple[Fraction, int]:
    """The beat, in whole notes, and beats a minute."""
    beat, minute = BEATS.get(metre, _DEFAULT)
    return beat, round(minute * _SLOWER.get(mood, 1.0))


def seconds_per_whole(metre: str, mood: str = "") -> float:
    beat, minute = beat_of(metre, mood)
    return 60 / minute / float(beat)


def spelt(metre: str, mood: str = "") -> str:
    """As a Q: field has it: 3/8=108."""
    beat, minute = beat_of(metre, mood)
    return f"{beat.numerator}/{beat.denominator}={minute}"
