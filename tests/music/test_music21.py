"""Our reader against music21's, on tunes that it brings: pitches of the melody."""

from __future__ import annotations

import random
import warnings
from collections import Counter
from collections.abc import Sequence

import pytest
from tune_helpers import corpus

from rekindle.music.abc.header import Written
from rekindle.music.abc.lexer import tokens
from rekindle.music.abc.reader import read_tune

SEED, MANY = 7, 300
_APART = ("words", "mark", "symbol", "slur", "grace", "comment", "spacer")  # what says nothing of the melody


def bare(source: Written) -> str:
    """For both: what has no part in the melody left out, since music21 (10.5.1) loses notes beside some of it."""
    head = "".join(f"{name}:{source.first(name)}\n" for name in "MLK" if name in source.fields)
    body = "".join(token.text for token in tokens(source.body) if token.kind not in _APART)
    return f"X:1\n{head}{body}\n"


def ours(text: str) -> list[int]:
    """The highest pitch of each note that is struck, that of a tie once."""
    found, before = [], None
    for note in read_tune(text).notes:
        if note.pitches and not (before and before.tied and before.pitches == note.pitches):
            found.append(max(note.pitches))
        before = note
    return found


def theirs(text: str) -> list[int]:
    """As the standard has it, an accidental holds for its octave to the end of the bar; music21 asks to be told."""
    from music21 import converter

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        told = f"%abc-2.1\n%%propagate-accidentals octave\n{text}"
        score = converter.parse(told, format="abc", forceSource=True)
    struck = [note for note in score.recurse().notes if not (note.tie and note.tie.type in ("stop", "continue"))]
    return [int(max(pitch.midi for pitch in note.pitches)) for note in struck if not note.duration.isGrace]


def compared(sources: Sequence[Written]) -> tuple[Counter[str], list[str]]:
    """How many are equal, and whose differences there are, with the titles of those that nothing explains."""
    found: Counter[str] = Counter()
    unexplained = []
    for source in sources:
        text = bare(source)
        here = ours(text)
        try:
            there = theirs(text)
        except Exception as error:  # music21 raises what it likes
            found[f"music21 fails: {type(error).__name__}"] += 1
            continue
        if here == there:
            found["equal"] += 1
        elif here == theirs(untied(text)) == ours(untied(text)):
            found["ambiguous: a tie between two pitches, which music21 takes for one note"] += 1
        elif Counter(here) - Counter(there) or Counter(there) - Counter(here):
            found["ours, or unexplained"] += 1
            unexplained.append(f"{source.first('X')} {source.first('T')}")
    return found, unexplained


def untied(text: str) -> str:
    """Without ties between two pitches."""
    head, _, body = text.partition("\nK:")
    key, _, body = body.partition("\n")
    notes = read_tune(text).notes
    sounds = [note for note in notes if note.pitches]
    apart = {a.place for a, b in zip(sounds, sounds[1:]) if a.tied and a.pitches != b.pitches}
    out, last = "", -1
    for token in tokens(body):
        last = token.place if token.kind in ("note", "chord") else last
        out += "" if token.kind == "tie" and last in apart else token.text
    return f"{head}\nK:{key}\n{out}"


@pytest.mark.slow
def test_300_tunes_have_music21_s_pitches():
    drawn = random.Random(SEED).sample(corpus(), MANY)
    found, unexplained = compared(drawn)
    assert found["equal"] >= 0.95 * MANY, found
    assert len(unexplained) <= 0.01 * MANY, unexplained
