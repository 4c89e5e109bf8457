"""Which token may come next, so that a tune is whole whatever a model draws: a state machine over plain tunes.

What it lets through is read without a problem, has bars that add up, ends with a bar line, and has a metre and a key of
those that were asked for. Every beginning that it lets through can be ended within `longest` tokens.

Narrower than plain tunes are: a length is a note value, with two dots at most; the notes of a tuplet, and both of a
broken pair, have one, without dots; a tie leads to the same note; octaves are those of a fiddle; endings are a first
and a second one.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, replace
from fractions import Fraction
from functools import cache

from rekindle.music.abc.keys import LETTERS, Key, all_keys
from rekindle.music.abc.metre import PLAIN, bar_length, is_compound
from rekindle.music.abc.plain import UNITS, length_text
from rekindle.music.vocabulary import END

GRID = Fraction(1, 8)  # of the unit: what a length is a multiple of
RESERVE = 96  # tokens before the last, from which on a tune is brought to its end
_ACCIDENTALS = frozenset("^_=")
_LETTERS = frozenset(LETTERS + LETTERS.lower())
_DIGITS = frozenset("0123456789/")


@cache
def tuplets(metre: str) -> dict[str, tuple[int, int]]:
    """So many notes in the time of so many."""
    return {"(2": (2, 3), "(3": (3, 2), "(4": (4, 3), "(5": (5, 3 if is_compound(metre) else 2), "(6": (6, 2)}


@cache
def lengths(most: Fraction, times: Fraction = Fraction(1), dots: int = 2) -> frozenset[str]:
    """Spellings of the note values, in units, that `times` over are at most so long, on the grid; with so many dots."""
    values = [GRID * 2**k * dotted for k in range(12) for dotted in (1, 3, 7)[: dots + 1]]
    fit = [value for value in values if value * times <= most and (value * times / GRID).denominator == 1]
    return frozenset(map(length_text, fit))


@cache
def length_of(text: str) -> Fraction:
    """In units."""
    above, slash, below = text.partition("/")
    return Fraction(int(above or 1), int(below or 2) if slash else 1)


@dataclass(frozen=True)
class Bar:
    """Of `goal` units `filled` are; `first` of its section; the `owed` second part of a bar that a line cuts in two."""

    goal: Fraction = Fraction(0)
    filled: Fraction = Fraction(0)
    first: bool = True
    owed: bool = False
    altered: frozenset[str] = frozenset()  # letters that had an accidental

    @property
    def left(self) -> Fraction:
        return self.goal - self.filled


@dataclass(frozen=True)
class Note:
    """The one that is being written. `choices`: lengths that it may have, of which it is `time` each."""

    pitch: str
    choices: frozenset[str]
    time: Fraction
    length: str = ""
    tied: bool = False
    in_group: bool = False  # of a tuplet or a broken pair

    @property
    def may_end(self) -> bool:
        return self.length in self.choices

    def goes_on(self) -> set[str]:
        """The next characters of its length."""
        begun = len(self.length)
        return {text[begun] for text in self.choices if len(text) > begun and text.startswith(self.length)}


@dataclass(frozen=True)
class Group:
    """Notes that have to come: so many, each `time` of its length, which is one for all once it is known."""

    notes: int
    time: Fraction
    length: str | None = None


@dataclass(frozen=True)
class Grammar:
    """One tune so far. `metres`, `keys`: those that are asked for; none is any."""

    metres: tuple[str, ...] = ()
    keys: tuple[Key, ...] = ()
    longest: int = 400
    taken: int = 0
    metre: str = ""
    unit: Fraction = Fraction(0)
    key: str = ""
    over: bool = False
    bar: Bar = Bar()
    accidental: str = ""
    note: Note | None = None
    group: Group | None = None
    tied: str = ""  # the pitch that the next note has
    last: str = ""  # the last token of the body
    pickups: frozenset[Fraction] = frozenset()
    repeating: bool = False  # |: is open
    ending: int = 0

    # -- what may come --

    def allowed(self) -> frozenset[str]:
        if self.over:
            return frozenset({END})
        if not self.key:
            return frozenset(self._fields())
        if self.accidental:
            return _LETTERS
        if self.note is None:
            return frozenset(self._between())
        if self.tied and self.tied != self.note.pitch:
            return frozenset(self.tied[-1])
        found = self._of_note(self.note)
        return frozenset(found | self._ended()._between() if self.note.may_end else found)

    @property
    def closing(self) -> bool:
        return self.longest - self.taken <= RESERVE

    def _fields(self) -> set[str]:
        if not self.metre:
            return {f"M:{metre}\n" for metre in self.metres or PLAIN}
        if not self.unit:
            return {f"L:{unit}\n" for unit in UNITS}
        return {f"K:{key.spelt}\n" for key in self.keys or all_keys()}

    def _of_note(self, note: Note) -> set[str]:
        """How the note goes on: octave, length, and what ties it to the next."""
        if note.tied:
            return set()
        found = note.goes_on()
        if self.closing:
            return self._longest(note) if not note.in_group else found if not note.may_end else set()
        if self.last in _LETTERS and not self.tied:
            found.add("'" if note.pitch[-1].islower() else ",")
        if note.may_end and not note.in_group:
            left = self.bar.left - length_of(note.length)
            plain = note.length in lengths(left, dots=0)
            found |= {"<", ">"} if plain else set()
            found |= {"-"} if note.pitch != "z" and note.pitch.strip("^_=',") not in self.bar.altered else set()
        return found

    def _longest(self, note: Note) -> set[str]:
        """The next character of the longest length that it can still have; none once it has that."""
        able = [text for text in note.choices if text.startswith(note.length)]
        best = max(able, key=length_of)
        return {best[len(note.length)]} if best != note.length else set()

    def _between(self) -> set[str]:
        """What may stand behind a whole note, a space or a line."""
        left = self.bar.left
        if self.tied:
            space = {" "} if self.bar.filled and self.last != " " else set()
            return {self.tied[0], *space} if left else {"|"}
        if self.group:
            return {*_LETTERS} if self.closing else {*_LETTERS, *_ACCIDENTALS, "z"}
        lines = self._lines()
        if self.closing:
            return lines or {*_LETTERS}
        if left:
            lines |= {*_LETTERS, *_ACCIDENTALS, "z"}
            lines |= {token for token, (_, time) in tuplets(self.metre).items() if lengths(left, Fraction(time), 0)}
            lines |= {" "} if self.bar.filled and self.last != " " else set()
        return lines

    def _lines(self) -> set[str]:
        """Bar lines, where the bar is whole or short for a reason; the end, behind a line that ends."""
        bar = self.bar
        if self.last == " ":
            return set()
        if not bar.filled:
            opening = {"|:"} if not self.last and not self.closing else set()
            return (
                {END} if self.closing and self._may_be_over() else opening | {END} if self._may_be_over() else opening
            )
        if bar.owed:
            return {"|"} if not bar.left else set()
        if self.closing:
            return self._sections() if not bar.left or bar.left in self.pickups else set()
        found = {"|"} if not bar.left or bar.first else set()
        if not bar.left or bar.left in self.pickups:
            found |= self._sections()
        elif not bar.first and not self.ending:
            found |= self._sections() - {"|]"}  # the bar is cut in two
        if bar.first and bar.left and not self.repeating and not self.ending:
            found.add("|:")
        return found | ({"|1"} if not bar.left and not bar.first and not self.ending else set())

    def _may_be_over(self) -> bool:
        return self.last in ("|]", ":|") and not self.bar.owed

    def _sections(self) -> set[str]:
        if self.ending == 1:
            return {":|2"}
        if self.closing:
            return {":|"} if self.repeating else {"|]"}
        if self.ending == 2:
            return {"||", "|]", "|:"}
        return {":|", "::", "||"} if self.repeating else {":|", "::", "||", "|]", "|:"}

    # -- what is taken --

    def take(self, token: str) -> Grammar:
        """The state behind a token; raises ValueError for one that is not allowed."""
        if token not in self.allowed():
            raise ValueError(f"{token!r} may not come here")
        counted = replace(self, taken=self.taken + 1)
        if token == END:
            return replace(counted, over=True)
        if not self.key:
            return counted._with_field(token[2:].strip())
        note = self.note
        if note and token in _DIGITS:
            found = replace(counted, note=replace(note, length=note.length + token))
        elif note and token in "',":
            found = replace(counted, note=replace(note, pitch=note.pitch + token))
        elif note and token == "-":
            found = replace(counted, note=replace(note, tied=True))
        elif note and token in "<>":
            group = Group(1, Fraction(1), note.length)
            found = replace(counted._ended(), group=group)
        else:
            found = counted._ended()._with(token)
        return replace(found, last=token)

    def _with_field(self, value: str) -> Grammar:
        if not self.metre:
            return replace(self, metre=value)
        if not self.unit:
            return replace(self, unit=Fraction(value), bar=Bar(bar_length(self.metre) / Fraction(value)))
        return replace(self, key=value)

    def _with(self, token: str) -> Grammar:
        """Behind a token that begins something."""
        if token in _ACCIDENTALS:
            return replace(self, accidental=token)
        if token in _LETTERS or token == "z":
            return self._with_note(self.accidental + token)
        if token == " ":
            return self
        if token in tuplets(self.metre):
            notes, time = tuplets(self.metre)[token]
            return replace(self, group=Group(notes, Fraction(time, notes)))
        return self._with_line(token)

    def _with_note(self, pitch: str) -> Grammar:
        group, left = self.group, self.bar.left
        if group is None:
            note = Note(pitch, lengths(left), Fraction(1))
        else:
            free = lengths(left, group.time * group.notes, 0)
            one = frozenset({group.length}) if group.length is not None else free
            note = Note(pitch, one, group.time, in_group=True)
        bar = replace(self.bar, altered=self.bar.altered | {pitch[1:]}) if self.accidental else self.bar
        return replace(self, note=note, accidental="", bar=bar)

    def _ended(self) -> Grammar:
        """With the note that was being written in the bar."""
        note, group = self.note, self.group
        if note is None:
            return self
        if group:
            group = Group(group.notes - 1, group.time, note.length) if group.notes > 1 else None
        bar = replace(self.bar, filled=self.bar.filled + length_of(note.length) * note.time)
        return replace(self, note=None, bar=bar, group=group, tied=note.pitch if note.tied else "")

    def _with_line(self, line: str) -> Grammar:
        bar, whole = self.bar, bar_length(self.metre) / self.unit
        inside = line in ("|", "|1", ":|2") or (line == "||" and self.repeating)
        pickup = bool(bar.left) and (line == "|" or (line == "|:" and bar.first and bar.left not in self.pickups))
        cut = bool(bar.left) and not pickup and bar.left not in self.pickups
        pickups = self.pickups | {bar.filled} if pickup else self.pickups
        return replace(
            self,
            bar=Bar(
                bar.left if cut else whole, first=line not in ("|", "|1", ":|2") and not cut and not pickup, owed=cut
            ),
            pickups=pickups,
            repeating=line in ("|:", "::") or (self.repeating and inside and line != ":|2"),
            ending={"|": self.ending, "|1": 1, ":|2": 2}.get(line, 0),
        )


def follow(grammar: Grammar, tokens: Iterable[str]) -> Grammar:
    """The state behind these tokens; raises ValueError at the first that is not allowed."""
    for token in tokens:
        grammar = grammar.take(token)
    return grammar
