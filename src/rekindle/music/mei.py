"""A tune as MEI, the notation that engravers read (music-encoding.org/guidelines/v5).

What the reader makes of a text is what is drawn, so that the score shows what sounds: lengths, ties, tuplets, repeats
and endings are the reader's. Grace notes, chord symbols and the commonest ornaments come from the text itself. Beams go
by the beat. Slurs, words and layout are left out.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import groupby
from xml.etree.ElementTree import Element, SubElement, tostring

from rekindle.errors import RekindleError
from rekindle.music.abc.keys import parse_key
from rekindle.music.abc.lexer import Token, tokens
from rekindle.music.abc.metre import bar_length, is_compound
from rekindle.music.abc.playing import begins, ending, ends
from rekindle.music.abc.reader import Bar, Note, Tune

ID = "written-"  # and the number of a note in Tune.notes; further parts of one have -1, -2 behind that
_XML_ID = "{http://www.w3.org/XML/1998/namespace}id"
_PITCH = re.compile(r"(\^\^|\^|__|_|=)?([A-Ga-g])([,']*)")
_ACCIDENTALS = {"^": "s", "^^": "x", "_": "f", "__": "ff", "=": "n"}
_ORNAMENTS = {"~": "turn", "T": "trill", "H": "fermata", "M": "mordent", "P": "mordent"}
_ORNAMENTS |= {f"!{name}!": name for name in ("trill", "turn", "fermata", "mordent")} | {"!roll!": "turn"}
# Whole notes: (dur, dots), the longest first.
_VALUES = {
    Fraction(2) / 2**k * (2 - Fraction(1, 2**dots)): (str(2**k // 2) if k else "breve", dots)
    for k in range(10)
    for dots in range(3)
}
_VALUES = dict(sorted(_VALUES.items(), reverse=True))
_TIES = {(True, False): "i", (True, True): "m", (False, True): "t"}  # of (goes on, came from before)


@dataclass(frozen=True, slots=True)
class _Item:
    """A note of the tune: its number there, its text, what stands in the text before it, and whether it is tied to."""

    number: int
    note: Note
    text: str
    before: tuple[Token, ...]
    tied_to: bool

    @property
    def odd(self) -> int:
        """Notes of the tuplet that it is of, such as 3; 1 of none."""
        return _odd(self.note.length)

    @property
    def values(self) -> list[tuple[str, int]]:
        """The note values that it is written with: one, or several that are tied."""
        left = self.note.length * self.odd / _base(self.odd)
        found: list[tuple[str, int]] = []
        while left:
            value = next((value for value in _VALUES if value <= left), None)
            if value is None or self.odd > 15:
                raise RekindleError(
                    f"A length of {self.note.length} of a whole note cannot be written.", where=self.text
                )
            found += [_VALUES[value]]
            left -= value
        return found


def mei(tune: Tune) -> str:
    """The document; the note of number 5 in `Tune.notes` has the id written-5 in it.

    Raises RekindleError of a tune without notes, or with a length that no note has.

    >>> 'pname="d" oct="5"' in mei(read_tune("X:1\\nM:2/4\\nL:1/8\\nK:D\\nd2 A2|"))
    True
    """
    if not tune.notes:
        raise RekindleError("There is no note to be written.")
    sharps = tune.key.sharps if tune.key else 0
    root, section = _frame(sharps, tune.metre)
    place, metre, was_short = section, tune.metre or "", True
    items = iter(_items(tune))
    for bar in tune.bars:
        own = [next(items) for _ in bar.notes]
        if (now := _sharps(own, sharps)) != sharps or bar.metre != metre:
            SubElement(
                section, "scoreDef", _signs(now if now != sharps else None, bar.metre if bar.metre != metre else "")
            )
            sharps, metre = now, bar.metre
        if turns := ending(bar.left):
            place = SubElement(section, "ending", n=", ".join(map(str, sorted(turns))))
        whole = bar_length(metre) if metre else bar.length
        _measure(place, bar, own, whole - bar.length if was_short and bar.length < whole else Fraction(0))
        was_short = bar.length < whole
        if ends(bar.right) or "||" in bar.right or "]" in bar.right:
            place = section
    return tostring(root, encoding="unicode")


def _items(tune: Tune) -> Iterable[_Item]:
    notes, before, held = {note.place: (i, note) for i, note in enumerate(tune.notes)}, [], frozenset[int]()
    for token in tokens(tune.text.body):
        if token.place not in notes:
            before.append(token)
            continue
        number, note = notes[token.place]
        yield _Item(number, note, token.text, tuple(before), bool(held & set(note.pitches)))
        before, held = [], frozenset(note.pitches if note.tied else ())


def _frame(sharps: int, metre: str | None) -> tuple[Element, Element]:
    root = Element("mei", xmlns="http://www.music-encoding.org/ns/mei", meiversion="5.1")
    score = root
    for name in ("music", "body", "mdiv", "score"):
        score = SubElement(score, name)
    definition = SubElement(score, "scoreDef", _signs(sharps, metre or ""))
    staff = {"n": "1", "lines": "5", "clef.shape": "G", "clef.line": "2"}
    SubElement(SubElement(definition, "staffGrp"), "staffDef", staff)
    return root, SubElement(score, "section")


def _signs(sharps: int | None, metre: str) -> dict[str, str]:
    """Attributes of a key and a metre, of those that are given."""
    found = {} if sharps is None else {"keysig": f"{abs(sharps)}{'s' if sharps > 0 else 'f'}" if sharps else "0"}
    return found | (dict(zip(("meter.count", "meter.unit"), metre.split("/"), strict=True)) if metre else {})


def _sharps(items: Sequence[_Item], sharps: int) -> int:
    """After what the text says of the key before these notes."""
    fields = [token.text.strip("[]") for item in items for token in item.before if token.kind == "field"]
    keys = [key for text in fields if text.startswith("K:") and (key := parse_key(text[2:].strip()))]
    return keys[-1].sharps if keys else sharps


def _measure(place: Element, bar: Bar, items: Sequence[_Item], late: Fraction) -> None:
    """`late`: so far into the metre does the bar begin, where it is an upbeat."""
    right = "rptend" if ends(bar.right) else "end" if "]" in bar.right else "dbl" if "||" in bar.right else "single"
    lines = {"right": right} | ({"left": "rptstart"} if begins(bar.left) else {})
    measure = SubElement(place, "measure", lines)
    layer = SubElement(SubElement(measure, "staff", n="1"), "layer", n="1")
    beat = _beat(bar.metre)
    beamed = [(_beam(unit, bar.start - late, beat), unit) for unit in _units(items)]
    for beam, run in groupby(beamed, lambda pair: pair[0]):
        units = [unit for _, unit in run]
        inside = SubElement(layer, "beam") if beam is not None and sum(map(len, units)) > 1 else layer
        for unit in units:
            odd = {"num": str(unit[0].odd), "numbase": str(_base(unit[0].odd))}
            group = SubElement(inside, "tuplet", odd) if unit[0].odd > 1 else inside
            for item in unit:
                group.extend(_written(item))
    for item in items:
        measure.extend(_above(item))


def _units(items: Sequence[_Item]) -> Iterable[list[_Item]]:
    """Notes alone, and tuplets: as many of one kind as make a plain length."""
    unit: list[_Item] = []
    for item in items:
        if unit and item.odd != unit[0].odd:
            yield unit
            unit = []
        unit.append(item)
        if _odd(sum((item.note.length for item in unit), Fraction(0))) == 1:
            yield unit
            unit = []
    if unit:
        yield unit


def _beam(unit: Sequence[_Item], begun: Fraction, beat: Fraction) -> int | None:
    """The number of the beat that a unit is beamed in; None where it has no flags."""
    flags = all(item.note.pitches and int(item.values[0][0].replace("breve", "0")) > 4 for item in unit)
    return (unit[0].note.start - begun) // beat if flags else None


def _beat(metre: str) -> Fraction:
    """How long beams are, in whole notes."""
    if metre in ("4/4", "2/2"):
        return Fraction(1, 2)
    below = int(metre.partition("/")[2] or 4)
    return Fraction(3, below) if metre and (is_compound(metre) or metre == "3/8") else Fraction(1, min(below, 4))


def _written(item: _Item) -> Iterable[Element]:
    for token in item.before:
        if token.kind == "grace" and (names := _PITCH.findall(token.text)):
            group = Element("graceGrp")
            inside = SubElement(group, "beam") if len(names) > 1 else group
            inside.extend(_pitched(name, {"dur": "8" if len(names) == 1 else "16", "grace": "unacc"}) for name in names)
            yield group
    names = _PITCH.findall(item.text.rpartition("]")[0] or item.text) if item.note.pitches else []
    for part, (dur, dots) in enumerate(item.values):
        says = {"dur": dur, _XML_ID: f"{ID}{item.number}" + (f"-{part}" if part else "")}
        says |= {"dots": str(dots)} if dots else {}
        tie = _TIES.get((item.note.tied or part + 1 < len(item.values), item.tied_to or part > 0))
        if len(names) < 2:
            yield _pitched(names[0], says, tie, accidental=not part) if names else Element("rest", says)
            continue
        chord = Element("chord", says)
        chord.extend(_pitched(name, {}, tie, accidental=not part) for name in names)
        yield chord


def _pitched(
    name: tuple[str, str, str], says: dict[str, str], tie: str | None = None, accidental: bool = True
) -> Element:
    sign, letter, octaves = name
    octave = 4 + letter.islower() + octaves.count("'") - octaves.count(",")
    says = {"pname": letter.lower(), "oct": str(octave)} | says | ({"tie": tie} if tie else {})
    return Element("note", says | ({"accid": _ACCIDENTALS[sign]} if sign and accidental else {}))


def _above(item: _Item) -> Iterable[Element]:
    """Ornaments and chord symbols."""
    at = {"startid": f"#{ID}{item.number}"}
    for token in item.before:
        words = "".join(filter(str.isprintable, token.text.strip('"')))
        if token.kind == "words" and words:
            said = Element(
                "dir" if words[0] in "^_<>@" else "harm", at | {"place": "below" if words[0] == "_" else "above"}
            )
            said.text = words.lstrip("^_<>@")
            yield said
        elif item.note.pitches and (name := _ORNAMENTS.get(token.text)):
            yield Element(name, at)


def _odd(length: Fraction) -> int:
    """What of the denominator is no power of two."""
    return length.denominator // (length.denominator & -length.denominator)


def _base(odd: int) -> int:
    """In the time of how many notes so many are played: 3 in that of 2, 5 and 7 in that of 4."""
    return 1 << odd.bit_length() - 1
