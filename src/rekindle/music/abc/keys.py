"""Keys and modes: what a K: field says, and which notes it sharpens or flattens."""

from __future__ import annotations

import re
from dataclasses import dataclass

LETTERS = "CDEFGAB"
SEMITONES: dict[str, int] = dict(zip(LETTERS, (0, 2, 4, 5, 7, 9, 11), strict=True))
_FIFTHS = "FCGDAEB"  # sharps come in this order, flats in the other
# mode: its name in a sentence, its spelling in K:, the sharps that it has more than the major key of its tonic
MODES = {
    "major": ("", 0),
    "minor": ("m", -3),
    "mixolydian": ("mix", -1),
    "dorian": ("dor", -2),
    "phrygian": ("phr", -4),
    "lydian": ("lyd", 1),
    "locrian": ("loc", -5),
}
_SPELLINGS = {spelt[:3].lower(): mode for mode in MODES for spelt in (mode, MODES[mode][0]) if spelt}
_SPELLINGS |= {"": "major", "m": "minor", "ion": "major", "aeo": "minor", "maj": "major", "min": "minor"}
_KEY = re.compile(r"([A-G])([#b\u266f\u266d]?)[ \t]*([A-Za-z]*)")
MOST = 7  # sharps or flats of a signature


@dataclass(frozen=True)
class Key:
    """A tonic, such as F#, and a mode: a key of MODES."""

    tonic: str
    mode: str

    @property
    def sharps(self) -> int:
        """Of the signature; flats are negative."""
        at = _FIFTHS.index(self.tonic[0]) - 1 + 7 * (self.tonic.count("#") - self.tonic.count("b"))
        return at + MODES[self.mode][1]

    @property
    def signature(self) -> dict[str, int]:
        """Semitones that each letter is raised by: 1, 0 or -1."""
        return signature(self.sharps)

    @property
    def spelt(self) -> str:
        """As a K: field has it: Amix."""
        return self.tonic + MODES[self.mode][0]

    @property
    def words(self) -> str:
        """As a sentence has it: A mixolydian, F sharp minor."""
        return f"{self.tonic[0]}{ {'#': ' sharp', 'b': ' flat'}.get(self.tonic[1:], '') } {self.mode}"


def signature(sharps: int) -> dict[str, int]:
    raised: dict[str, int] = dict.fromkeys(LETTERS, 0)
    for letter in _FIFTHS[:sharps] if sharps > 0 else _FIFTHS[sharps:] if sharps else "":
        raised[letter] = 1 if sharps > 0 else -1
    return raised


def parse_key(text: str) -> Key | None:
    """Of a K: field: "D", "Em", "A Mixolydian", "Bb"; None of one that names no key.

    >>> parse_key("A Mixolydian").words
    'A mixolydian'
    """
    text = text.split("%")[0].strip()
    if text in ("HP", "Hp"):  # the Highland bagpipes': two sharps
        return Key("D", "major")
    found = _KEY.match(text)
    if found is None:
        return None
    mode = "minor" if found[3] == "m" else _SPELLINGS.get(found[3][:3].lower())
    if mode is None:
        mode = "major"  # another word follows, such as a clef's
    key = Key(found[1] + found[2].replace("\u266f", "#").replace("\u266d", "b"), mode)
    return key if abs(key.sharps) <= MOST else None


def all_keys(most: int = 5) -> list[Key]:
    """Every key of at most so many sharps or flats, by its tonic and mode; no locrian one, which nobody writes in."""
    tonics = [letter + accidental for letter in LETTERS for accidental in ("", "#", "b")]
    found = [Key(tonic, mode) for mode in MODES if mode != "locrian" for tonic in tonics]
    return [key for key in found if abs(key.sharps) <= most]
