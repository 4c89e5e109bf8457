"""What sounds when: repeats and endings played out, ties joined."""

from __future__ import annotations

import re
from dataclasses import dataclass
from fractions import Fraction

from rekindle.music.abc.reader import Bar, Note, Tune

LONGEST = 4096  # bars that are played


@dataclass(frozen=True, slots=True)
class Sound:
    """A note that is played: `start`, `length` in whole notes; `written`: its number in Tune.notes."""

    pitch: int
    start: Fraction
    length: Fraction
    written: int


def played(tune: Tune) -> list[Sound]:
    """Every note as often as it is played, by its start."""
    first = {}
    number = 0
    for at, bar in enumerate(tune.bars):
        first[at] = number
        number += len(bar.notes)
    sounds: list[Sound] = []
    now, held = Fraction(0), {}
    for at in order(tune.bars):
        bar = tune.bars[at]
        for place, note in enumerate(bar.notes):
            sounds, held = _play(note, now + note.start - bar.start, first[at] + place, sounds, held)
        now += bar.length
    return sounds


def order(bars: tuple[Bar, ...]) -> list[int]:
    """Numbers of bars in the order in which they are played.

    A repeat goes back to the last line that begins one, or behind the one that ended the section before. Of endings
    each turn plays its own.
    """
    found: list[int] = []
    repeated: set[int] = set()
    begin, at, turn, last = 0, 0, 1, False  # last: this is an ending that leads on
    while at < len(bars) and len(found) < LONGEST:
        bar = bars[at]
        if begins(bar.left) and at > begin and at not in repeated:
            begin, turn, last = at, 1, False
        endings = ending(bar.left)
        if endings and turn not in endings:
            at = _next_ending(bars, at, turn)
            continue
        last = last or (bool(endings) and turn > 1)
        found.append(at)
        if ends(bar.right) and at not in repeated and (turn == 1 or _has_ending(bars, at, turn + 1)):
            repeated.add(at)
            at, turn, last = begin, turn + 1, False
            continue
        at += 1
        if ends(bar.right) or (last and is_section(bar.right)):
            begin, turn, last = at, 1, False
    return found


def is_section(line: str) -> bool:
    """Whether a bar line ends a section: a double one, or one of a repeat."""
    return len(_lines(line)) > 1


def begins(line: str) -> bool:
    """Whether a repeat begins at a bar line: |: or ::"""
    return re.search(r"[|\]:]:", _lines(line)) is not None


def ends(line: str) -> bool:
    """Whether a repeat ends at a bar line: :| or ::"""
    return re.search(r":[|:]", _lines(line)) is not None


def ending(line: str) -> set[int]:
    """Which turns play what follows a bar line: {1} of |1, {1, 3} of [1,3; none of a line that begins no ending."""
    found = re.search(r"\d[\d,.\-]*$", line)
    turns: set[int] = set()
    for part in re.split(r"[,.]", found[0]) if found else ():
        low, _, high = part.partition("-")
        if low.isdigit():
            turns |= set(range(int(low), min(int(high) if high.isdigit() else int(low), int(low) + 8) + 1))
    return turns


def _lines(line: str) -> str:
    return re.sub(r"[\d,.\-\[]", "", line)


def _next_ending(bars: tuple[Bar, ...], at: int, turn: int) -> int:
    """The bar behind this ending: the next ending of this turn, or where the endings are over."""
    for there in range(at + 1, len(bars)):
        endings = ending(bars[there].left)
        if turn in endings or (not endings and ends(bars[there].left)):
            return there
        if ends(bars[there].right) and not ending(bars[there].right):
            return there + 1
    return len(bars)


def _has_ending(bars: tuple[Bar, ...], at: int, turn: int) -> bool:
    """Whether what follows a bar is the ending of a later turn, beyond the second."""
    return turn > 2 and at + 1 < len(bars) and turn in ending(bars[at + 1].left)


def _play(
    note: Note, now: Fraction, written: int, sounds: list[Sound], held: dict[int, int]
) -> tuple[list[Sound], dict[int, int]]:
    """`held`: of each pitch that is tied over, which sound it is."""
    now_held: dict[int, int] = {}
    for pitch in note.pitches:
        if pitch in held:
            before = sounds[held[pitch]]
            sounds[held[pitch]] = Sound(pitch, before.start, before.length + note.length, before.written)
            number = held[pitch]
        else:
            number = len(sounds)
            sounds.append(Sound(pitch, now, note.length, written))
        if note.tied:
            now_held[pitch] = number
    return sounds, now_held
