"""Repeats played out, and bars that add up."""

from __future__ import annotations

from fractions import Fraction as F

import pytest
from tune_helpers import corpus, tune

from rekindle.music.abc.bars import adds_up, odd_bars
from rekindle.music.abc.playing import order, played
from rekindle.music.abc.reader import read_tune


@pytest.mark.parametrize(
    ("body", "bars"),
    [
        ("C6|D6:|", "0101"),
        ("|:C6|D6:||:E6|F6:|", "01012323"),
        ("|:C6|1D6:|2E6|]", "0102"),
        ("C|D6|1E5:|2F5||G|A6|B5:|", "012013456456"),
        ("C6|D6::E6|F6:|", "01012323"),
        ("|:C6|[1D6|E6:|[2F6|G6|]", "012034"),
        ("|:C6|D6:|E6|:F6:|", "0101233"),
        ("|:C6:|1D6:|2E6|]", "0012"),
        ("|:C6|1D6:|2E6:|3F6|]", "010203"),
        ("C6|[1,3D6:|[2E6|]", "0102"),
        ("C6|D6|]", "01"),
        (":|C6:|", "00"),
        ("|1C6|2D6|", "0"),
    ],
)
def test_the_order_of_bars(body: str, bars: str):
    assert "".join(map(str, order(read_tune(tune(body)).bars))) == bars


def test_ties_are_one_sound_and_repeats_sound_again():
    found = played(read_tune(tune("|:C2 C-|C2 D:|", M="3/8", K="C")))
    assert [(s.pitch, s.start * 8, s.length * 8, s.written) for s in found] == [
        (60, 0, 2, 0), (60, 2, 3, 1), (62, 5, 1, 3), (60, 6, 2, 0), (60, 8, 3, 1), (62, 11, 1, 3),
    ]  # fmt: skip
    chord = played(read_tune(tune("[CE]2 z2 [CE]2|", K="C")))
    assert [(s.pitch, s.start, s.written) for s in chord] == [
        (60, 0, 0),
        (64, 0, 0),
        (60, F(1, 2), 2),
        (64, F(1, 2), 2),
    ]


@pytest.mark.parametrize(
    ("body", "odd"),
    [
        ("A6|B6|", []),
        ("A|B6|c5|]", []),  # a pick-up, and what it lacks at the end
        ("A|B6|c6|]", []),
        ("A|B6|c5:|d|e6|f5:|", []),
        ("A6|B3:|c3|d6|]", []),  # a bar that the repeat cuts in two
        ("A|B6|1c5:|2c5|]", []),
        ("A6|B5|c6|", [1]),
        ("A6|B7|c6|", [1]),
        ("A7|B6|", [0]),
        ("A6|B5|]", [1]),
        ("A|B6|c4:|", [2]),
        ("A5|", [0]),
    ],
)
def test_odd_bars(body: str, odd: list[int]):
    assert odd_bars(read_tune(tune(body))) == odd
    assert adds_up(read_tune(tune(body))) == (not odd)


def test_a_tune_without_metre_or_bars_adds_up_to_nothing():
    assert odd_bars(read_tune(tune("A6|B6|", M="none"))) == [0, 1]
    assert not adds_up(read_tune(tune("")))


def test_the_books_add_up_as_far_as_they_do():
    """A fifth of the books: nearly all bars, and most tunes without an odd one."""
    tunes = [found for found in map(read_tune, corpus()[::5]) if found.bars and not found.problems]
    bars, odd = sum(len(found.bars) for found in tunes), sum(len(odd_bars(found)) for found in tunes)
    assert 0.98 < 1 - odd / bars < 1
    assert 0.85 < sum(map(adds_up, tunes)) / len(tunes) < 0.97
