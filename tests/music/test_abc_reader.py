"""Tokens, header, keys, metres and notes of ABC; against closed forms, and against anything at all."""

from __future__ import annotations

from fractions import Fraction as F

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tune_helpers import tune

from rekindle.music.abc.header import tunes_of, written
from rekindle.music.abc.keys import MODES, Key, all_keys, parse_key
from rekindle.music.abc.lexer import TABLE, tokens
from rekindle.music.abc.metre import bar_length, default_unit, parse_metre
from rekindle.music.abc.reader import read_tune

ABC = st.text(alphabet="ABCDEFGabcdefg^_=,'/0123456789|:[](){}<>-zxZ \n\"!~.%\\&+KMLTuv", max_size=120)


def pitches(body: str, **fields: str) -> list[int]:
    return [pitch for note in read_tune(tune(body, **fields)).notes for pitch in note.pitches]


def lengths(body: str, **fields: str) -> list[F]:
    """In units of an eighth."""
    return [note.length * 8 for note in read_tune(tune(body, **fields)).notes]


@given(ABC)
def test_tokens_joined_are_the_text(body: str):
    found = list(tokens(body))
    assert "".join(token.text for token in found) == body
    assert all(body.startswith(token.text, token.place) for token in found)
    assert {token.kind for token in found} <= TABLE.keys()


@given(ABC | st.text(max_size=60))
def test_no_text_is_too_odd_to_be_read(body: str):
    found = read_tune(tune(body))
    assert all(note.length > 0 for note in found.notes)
    assert sum((bar.length for bar in found.bars), F(0)) == sum((note.length for note in found.notes), F(0))
    assert [note.start for note in found.notes] == sorted(note.start for note in found.notes)


def test_pitches_follow_the_key_and_accidentals_hold_to_the_bar_line():
    assert pitches("CDEF GABc", K="C") == [60, 62, 64, 65, 67, 69, 71, 72]
    assert pitches("CF", K="D") == [61, 66]
    assert pitches("C,c'", K="C") == [48, 84]
    assert pitches("^FFf|F", K="C") == [66, 66, 77, 65]  # not in another octave, nor behind the line
    assert pitches("=F_B__B^^c", K="D") == [65, 70, 69, 74]


def test_lengths_broken_rhythm_and_tuplets():
    assert lengths("A A2 A/ A// A3/2 A/4 A0") == [1, 2, F(1, 2), F(1, 4), F(3, 2), F(1, 4)]
    assert lengths("A>B A<B A>>B") == [F(3, 2), F(1, 2), F(1, 2), F(3, 2), F(7, 4), F(1, 4)]
    assert lengths("A> B", M="4/4") == [F(3, 2), F(1, 2)]
    assert lengths("(3ABc d") == [F(2, 3)] * 3 + [1]
    assert lengths("(2AB (4ABcd") == [F(3, 2)] * 2 + [F(3, 4)] * 4
    assert lengths("(5ABcde", M="6/8") == [F(3, 5)] * 5
    assert lengths("(5ABcde", M="4/4") == [F(2, 5)] * 5
    assert lengths("(3:2:4ABcd e") == [F(2, 3)] * 4 + [1]
    assert lengths("[Ac]2 [A2c2] z2", M="4/4") == [2, 2, 2]
    assert lengths('{gef}A (A~B) "Am"c !trill!d') == [1] * 5  # grace notes take no time


def test_what_stands_on_the_way_changes_what_follows():
    found = read_tune(tune("CF|[K:D]CF|[M:2/4][L:1/4]C|", K="C"))
    assert [note.pitches[0] for note in found.notes] == [60, 65, 61, 66, 61]
    assert [bar.metre for bar in found.bars] == ["6/8", "6/8", "2/4"]
    assert found.notes[-1].length == F(1, 4)
    assert found.key == Key("C", "major")  # the tune's own


def test_bars_have_the_lines_beside_them():
    found = read_tune(tune("|:A3|1B3:|2c3||d3|]"))
    assert [(bar.left, bar.right) for bar in found.bars] == [("|:", "|1"), ("|1", ":|2"), (":|2", "||"), ("||", "|]")]
    assert [(bar.left, bar.right) for bar in read_tune(tune("A|\n|B|")).bars] == [("", "||"), ("||", "|")]
    assert [bar.right for bar in read_tune(tune("A|[1B:|  [2c|]")).bars] == ["|[1", ":|[2", "|]"]


def test_problems_are_sentences():
    assert read_tune("X:1\nM:2/4\nAB").problems == ("there is no K: field",)
    assert read_tune(tune("A", K="H")).problems == ("K:H names no key",)
    assert "'@'" in read_tune(tune("A@B")).problems[0]
    assert "can be played" in read_tune(tune("A9999")).problems[0]
    assert "longer than" in read_tune(tune("A" * 200_000)).problems[0]
    assert not read_tune(tune("A2B c|", K="none")).problems


def test_the_header_and_the_books():
    first = "X:1\nT:One\nT:Also\n3/8=120\nM:6/8\nK:D % not sure\nABc\n%%x\nw:la la\ndef\n\nwords\n"
    two = f"% a book\n\n{first}X:2\nT:Two\nK:G\nGG\n"
    one, other = [found for found in tunes_of(two) if "X" in found.fields]
    assert (one.fields["T"], one.first("K"), one.body) == (("One", "Also"), "D", "ABc\ndef")
    assert (other.first("T"), other.body) == ("Two", "GG")
    assert written("M:2/4\nABc").body == "ABc"  # no key at all
    assert [found.body for found in tunes_of("X:1\r\nK:D\r\nAB\r\n")] == ["AB"]


@pytest.mark.parametrize(
    ("text", "words", "sharps"),
    [("D", "D major", 2), ("Em", "E minor", 1), ("A Mixolydian", "A mixolydian", 2), ("Bb", "B flat major", -2),
     ("F#m", "F sharp minor", 3), ("Ador", "A dorian", 1), ("GMix % typo", "G mixolydian", 0),
     ("C minor", "C minor", -3),
     ("Hp", "D major", 2), ("D clef=treble", "D major", 2), ("Aphr", "A phrygian", -1), ("Eaeo", "E minor", 1)],
)  # fmt: skip
def test_keys(text: str, words: str, sharps: int):
    key = parse_key(text)
    assert key
    assert (key.words, key.sharps) == (words, sharps)


def test_no_keys():
    assert [parse_key(text) for text in ("", "H", "none", "major", "G#", "Fb minor")] == [None] * 6


def test_a_signature_makes_the_steps_of_its_mode():
    steps = {"major": [0, 2, 4, 5, 7, 9, 11], "minor": [0, 2, 3, 5, 7, 8, 10], "dorian": [0, 2, 3, 5, 7, 9, 10],
             "mixolydian": [0, 2, 4, 5, 7, 9, 10], "phrygian": [0, 1, 3, 5, 7, 8, 10],
             "lydian": [0, 2, 4, 6, 7, 9, 11], "locrian": [0, 1, 3, 5, 6, 8, 10]}  # fmt: skip
    assert steps.keys() == MODES.keys()
    for key in [*all_keys(7), Key("B", "locrian")]:
        scale = "CDEFGABcdefgab"
        at = scale.index(key.tonic[0])
        found = pitches(scale[at : at + 7], K=key.spelt)
        assert [pitch - found[0] for pitch in found] == steps[key.mode], key
        assert parse_key(key.spelt) == key


def test_metres():
    spelt = ["6/8", "C", "C|", "2/4", "3+2/8", "(2+3)/4", "9/8 % as printed", "none", "FREI4/4", "0/4", "4/0"]
    assert [parse_metre(text) for text in spelt] == [
        "6/8", "4/4", "2/2", "2/4", "5/8", None, "9/8", None, None, None, None,
    ]  # fmt: skip
    assert bar_length("6/8") == F(3, 4)
    assert [default_unit(metre) for metre in ("2/4", "3/4", "6/8", None)] == [F(1, 16), F(1, 8), F(1, 8), F(1, 8)]
