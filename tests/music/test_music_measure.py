"""Measures of tunes: of one, of pairs, and of many."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from tune_helpers import random_tune

from rekindle.music.abc.header import written
from rekindle.music.abc.keys import Key
from rekindle.music.abc.plain import plain
from rekindle.music.abc.reader import read_tune
from rekindle.music.likeness import Known, likeness, shapes
from rekindle.music.measure import bleu, diversity, edit_similarity, judge, words_of
from rekindle.music.tempo import BEATS, seconds_per_whole, spelt
from rekindle.music.words import Facts

TUNE = "M:6/8\nL:1/8\nK:D\nA|dAF DFA|dAF D2A|BGB dBG|FGA D2:|"
LETTERS = st.text(alphabet="abc", max_size=9)


def shape(text: str) -> frozenset:
    return shapes(read_tune(written(text)))


def naive(one: str, other: str) -> int:
    row = list(range(len(other) + 1))
    for at, letter in enumerate(one, 1):
        new = [at]
        for there, wanted in enumerate(other, 1):
            new.append(min(row[there] + 1, new[-1] + 1, row[there - 1] + (letter != wanted)))
        row = new
    return row[-1]


@given(LETTERS, LETTERS)
def test_edit_similarity_is_by_levenshtein(one: str, other: str):
    longest = max(len(one), len(other))
    assert edit_similarity(one, other) == pytest.approx(1 - naive(one, other) / longest if longest else 1)
    assert edit_similarity(one, other) == edit_similarity(other, one)


def test_likeness_does_not_hear_key_and_rhythm():
    first = random_tune(3, longest=300, keys=(Key("D", "major"),))
    moved = plain(written(first)).transposed("G").text
    assert likeness(shape(first), shape(moved)) == 1
    assert likeness(shape(first), shape(first.replace("2", "3"))) == 1
    assert likeness(shape(first), shape(random_tune(4, longest=300))) < 0.3
    assert likeness(shape("M:2/4\nL:1/8\nK:D\nAB|]"), shape(first)) == 0  # too short to say


def test_the_nearest_tune_and_groups():
    texts = [random_tune(seed, longest=300, keys=(Key("D", "major"),)) for seed in (3, 5, 6)]
    known = Known([*map(shape, texts), shape(plain(written(texts[0])).transposed("C").text)])
    assert known.nearest(shape(texts[1])) == (1.0, 1)
    assert known.nearest(known.tunes[0], besides=0) == (1.0, 3)
    groups = known.groups()
    assert groups[0] == groups[3]
    assert len(set(groups)) == 3
    assert Known([]).nearest(shape(texts[0])) == (0.0, -1)


def test_a_tune_is_judged_by_what_was_asked():
    found = judge(TUNE, Facts("jig", "", Key("D", "major")))
    assert found.valid
    assert (found.key_kept, found.metre_kept, found.ends_on_tonic, found.bars) == (True, True, True, 5)
    other = judge(TUNE, Facts("reel", "", Key("G", "major")), ended=False)
    assert (other.key_kept, other.metre_kept, other.valid) == (False, False, False)
    nothing = judge(TUNE, Facts())
    assert (nothing.key_kept, nothing.metre_kept) == (None, None)
    assert judge(TUNE, Facts(), Known([shape(TUNE)])).nearest == (1.0, 0)


@pytest.mark.parametrize("text", ["", "nonsense", "M:6/8\nL:1/8\nK:D\n", "M:6/8\nL:1/8\nK:D\nA@|", "\x00"])
def test_what_is_no_tune_is_not_valid(text: str):
    assert not judge(text, Facts()).valid


def test_an_odd_bar_and_few_notes_are_not_valid():
    assert judge(TUNE.replace("BGB dBG", "BGB dB"), Facts()).odd == 1
    assert not judge("M:6/8\nL:1/8\nK:D\nABc def|D6|]", Facts()).valid


def test_bleu_is_over_notes_and_lines():
    assert words_of("M:2/4\nL:1/8\nK:D\nA2 B>c|d4|]") == ["M:2/4", "L:1/8", "K:D", "A2", "B", ">", "c", "|", "d4", "|]"]
    same, other = bleu([TUNE, random_tune(1)], [[TUNE], [TUNE]])
    assert same == pytest.approx(100)
    assert other < 50
    assert bleu([TUNE.replace(" ", "")], [[TUNE]])[0] == pytest.approx(100)


def test_diversity_is_the_unlikeness_of_pairs():
    assert diversity([TUNE, TUNE]) == 0
    assert diversity([TUNE]) == 0
    assert diversity([random_tune(3, 300), random_tune(4, 300)]) > 0.7


def test_tempo():
    assert seconds_per_whole("2/2") == pytest.approx(60 / 92 * 2)
    assert seconds_per_whole("6/8", "slow") > seconds_per_whole("6/8")
    assert spelt("6/8") == "3/8=108"
    assert spelt("7/8") == "1/4=120"
    assert all(10 < minute < 200 for _, minute in BEATS.values())
