"""A tune out of its text: notes with pitch, onset and duration, in bars.

One voice. What is read is the melody: notes, rests, chords, accidentals to the end of their bar, broken rhythm,
tuplets, ties, bar lines, changes of key, metre and unit. Grace notes take no time. Problems are sentences, never
exceptions.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from fractions import Fraction

from rekindle.music.abc.header import Written, written
from rekindle.music.abc.keys import SEMITONES, Key, parse_key
from rekindle.music.abc.lexer import LENGTH, PITCH, Token, tokens
from rekindle.music.abc.metre import bar_length, default_unit, is_compound, parse_metre

_ACCIDENTALS = {"^": 1, "^^": 2, "_": -1, "__": -2, "=": 0}
_NOTE = re.compile(r"(\^\^|\^|__|_|=)?([A-Ga-g])([,']*)(.*)", re.DOTALL)
_LENGTH = re.compile(r"(\d*)(/*)(\d*)")
_NOTES = re.compile(PITCH + LENGTH)
_IN_TIME_OF = {2: 3, 3: 2, 4: 3, 6: 2, 8: 3}  # of 5, 7 and 9: 3 in compound metres, else 2
LONGEST = 100_000  # characters of a tune
WHOLE = 64  # whole notes: what lasts longer is no note


@dataclass(frozen=True, slots=True)
class Note:
    """`pitches`: MIDI numbers, none of a rest. `start`, `length`: whole notes from the tune's beginning, as written.

    `tied`: it goes on in the next note.
    """

    pitches: tuple[int, ...]
    start: Fraction
    length: Fraction
    place: int  # in the body
    tied: bool = False


@dataclass(frozen=True, slots=True)
class Bar:
    """From `start`, so many whole notes long, of a `metre` ("" is free); `left`, `right`: the lines beside it."""

    start: Fraction
    length: Fraction
    metre: str
    left: str
    right: str
    notes: tuple[Note, ...]


@dataclass(frozen=True)
class Tune:
    text: Written
    key: Key | None
    metre: str | None
    unit: Fraction
    bars: tuple[Bar, ...]
    problems: tuple[str, ...]

    @property
    def notes(self) -> tuple[Note, ...]:
        return tuple(note for bar in self.bars for note in bar.notes)

    @property
    def title(self) -> str:
        return self.text.first("T")


def read_tune(text: str | Written) -> Tune:
    """The melody of one tune.

    >>> [note.pitches[0] for note in read_tune("X:1\\nM:2/4\\nL:1/8\\nK:D\\nDEFG|").notes]
    [62, 64, 66, 67]
    """
    source = text if isinstance(text, Written) else written(text)
    return _Reader(source).read()


@dataclass
class _Reader:
    source: Written
    problems: list[str] = field(default_factory=list)
    now: Fraction = Fraction(0)
    begun: Fraction = Fraction(0)  # the bar
    left: str = ""
    bars: list[Bar] = field(default_factory=list)
    notes: list[Note] = field(default_factory=list)  # of the bar
    held: dict[tuple[str, int], int] = field(default_factory=dict)  # accidentals of the bar
    broken: int = 0  # > behind the last note; < is negative
    tuplet: tuple[int, Fraction] = (0, Fraction(1))  # notes that it still has, and their factor

    def read(self) -> Tune:
        source = self.source
        self.key = parse_key(source.first("K"))
        self.metre = parse_metre(source.first("M"))
        self.unit = _unit(source.first("L")) or default_unit(self.metre)
        given = self.key, self.metre, self.unit
        if "K" not in source.fields:
            self.problems.append("there is no K: field")
        elif self.key is None and source.first("K").lower() not in ("", "none"):
            self.problems.append(f"K:{source.first('K')[:20]} names no key")
        if len(source.body) > LONGEST:
            self.problems.append(f"the tune is longer than {LONGEST:,} characters")
        else:
            for token in tokens(source.body):
                if act := _ACTS.get(token.kind):
                    act(self, token)
            if self.notes:
                self.close("")
        return Tune(source, *given, tuple(self.bars), tuple(self.problems))

    # -- what each kind of token does --

    def on_note(self, token: Token) -> None:
        accidental, letter, octaves, length = _note(token.text)
        self.add((self.pitch(accidental, letter, octaves),), length, token)

    def on_rest(self, token: Token) -> None:
        self.add((), token.text[1:], token)

    def on_chord(self, token: Token) -> None:
        inside, _, after = token.text[1:].rpartition("]")
        names = [_note(text) for text in _NOTES.findall(inside)]
        if not names:
            self.problems.append(f"{token.text[:20]} is no chord")
            return
        pitches = tuple(sorted({self.pitch(accidental, letter, octaves) for accidental, letter, octaves, _ in names}))
        self.add(pitches, after, token, note_length(names[0][3]))

    def on_bars_of_rest(self, token: Token) -> None:
        self.insert((), bar_length(self.metre or "4/4") * min(int(token.text[1:] or 1), WHOLE), token)

    def on_broken(self, token: Token) -> None:
        if self.notes and not self.broken:
            self.broken = len(token.text) if token.text[0] == ">" else -len(token.text)

    def on_tie(self, token: Token) -> None:
        if self.notes:
            last = self.notes[-1]
            self.notes[-1] = Note(last.pitches, last.start, last.length, last.place, tied=bool(last.pitches))

    def on_tuplet(self, token: Token) -> None:
        p, q, r = (int(part) if part else 0 for part in (token.text[1:].split(":") + ["", ""])[:3])
        if p:
            odd = 3 if self.metre and is_compound(self.metre) else 2
            self.tuplet = (r or p, Fraction(q or _IN_TIME_OF.get(p, odd), p))

    def on_bar(self, token: Token) -> None:
        self.close("".join(token.text.split()))

    def on_field(self, token: Token) -> None:
        text = token.text.strip("[]")
        name, value = text[0], text[2:].strip()
        if name == "K" and (key := parse_key(value)):
            self.key = key
        elif name == "M" and (metre := parse_metre(value)):
            self.metre = metre
        elif name == "L" and (unit := _unit(value)):
            self.unit = unit

    def on_stray(self, token: Token) -> None:
        self.problems.append(f"character {token.place + 1} of the body, {token.text!r}, is no music")

    # -- notes and bars --

    def pitch(self, accidental: str, letter: str, octaves: str) -> int:
        """An accidental holds to the end of its bar, for the same letter in the same octave."""
        octave = 5 + letter.islower() + octaves.count("'") - octaves.count(",")
        name = letter.upper(), octave
        if accidental:
            self.held[name] = _ACCIDENTALS[accidental]
        signature = self.key.signature if self.key else {}
        return 12 * octave + SEMITONES[name[0]] + self.held.get(name, signature.get(name[0], 0))

    def add(self, pitches: tuple[int, ...], length: str, token: Token, times: Fraction = Fraction(1)) -> None:
        lasts = self.unit * note_length(length) * times
        left, factor = self.tuplet
        if left:
            lasts *= factor
            self.tuplet = left - 1, factor
        if self.broken and self.notes:
            share = Fraction(1, 2 ** abs(self.broken))
            shares = (2 - share, share) if self.broken > 0 else (share, 2 - share)
            before = self.notes[-1]
            self.now -= before.length * (1 - shares[0])
            self.notes[-1] = Note(before.pitches, before.start, before.length * shares[0], before.place, before.tied)
            lasts *= shares[1]
        self.broken = 0
        self.insert(pitches, lasts, token)

    def insert(self, pitches: tuple[int, ...], lasts: Fraction, token: Token) -> None:
        if not 0 < lasts <= WHOLE or any(not 0 <= pitch < 128 for pitch in pitches):
            self.problems.append(f"{token.text[:20]} is no note that can be played")
            return
        self.notes.append(Note(pitches, self.now, lasts, token.place))
        self.now += lasts

    def close(self, line: str) -> None:
        """A bar line: it ends a bar, or changes the line that the next one begins with."""
        if self.notes:
            bar = Bar(self.begun, self.now - self.begun, self.metre or "", self.left, line, tuple(self.notes))
            self.bars.append(bar)
            self.left = line
        else:
            self.left += line
            if self.bars and line:
                self.bars[-1] = _ended(self.bars[-1], self.left)
        self.notes, self.held, self.begun, self.broken = [], {}, self.now, 0


_ACTS = {
    "note": _Reader.on_note, "rest": _Reader.on_rest, "chord": _Reader.on_chord, "broken": _Reader.on_broken,
    "bars of rest": _Reader.on_bars_of_rest, "tie": _Reader.on_tie, "tuplet": _Reader.on_tuplet,
    "bar": _Reader.on_bar, "field": _Reader.on_field, "stray": _Reader.on_stray,
}  # fmt: skip


def _note(text: str) -> tuple[str, str, str, str]:
    """Accidental, letter, octaves and length."""
    found = _NOTE.match(text)
    assert found, text
    return found[1] or "", found[2], found[3], found[4]


def note_length(text: str) -> Fraction:
    """Times the unit: "3", "3/2", "/" is a half, "//" a quarter; 0 of what cannot be."""
    found = _LENGTH.match(text)
    assert found, text
    above, slashes, below = found.groups()
    if len(above) > 4 or len(below) > 4 or len(slashes) > 8:
        return Fraction(0)
    divisor = int(below) if below else 2 ** len(slashes)
    return Fraction(int(above or 1), divisor) if divisor else Fraction(0)


def _unit(text: str) -> Fraction | None:
    found = re.match(r"1/(\d{1,3})(?!\d)|1(?![\d/])", text.strip())
    return Fraction(1, int(found[1] or 1)) if found and found[1] != "0" else None


def _ended(bar: Bar, line: str) -> Bar:
    return Bar(bar.start, bar.length, bar.metre, bar.left, line, bar.notes)
