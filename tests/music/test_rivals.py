"""What a model has to beat, and how two are compared."""

from __future__ import annotations

import numpy as np
import pytest
from tune_helpers import random_tune

from rekindle.music.abc.header import written
from rekindle.music.abc.reader import read_tune
from rekindle.music.evaluate import MEASURES, Score, compared
from rekindle.music.rivals import NGram, Retrieval
from rekindle.music.vocabulary import pieces

TUNE = "M:6/8\nL:1/8\nK:D\nA|dAF DFA|dAF D2A|BGB dBG|FGA D2:|"


def test_a_5_gram_of_one_tune_writes_it():
    assert NGram([TUNE]).compose("a tune", 0)[0].startswith("M:6/8\nL:1/8\nK:D\nA|dAF D")
    ended = [NGram([TUNE]).compose("a tune", seed, longest=2000)[1] for seed in range(3)]
    assert all(ended)


def test_a_5_gram_sees_four_tokens_and_no_more():
    tunes = [random_tune(seed, 200) for seed in range(20)]
    grams = NGram(tunes)
    seen = {
        tuple(tokens[at : at + 5]) for tune in tunes for tokens in [pieces(tune) or ()] for at in range(len(tokens))
    }
    text, _ = grams.compose("a tune", 1, 300)
    tokens = pieces(text) or []
    whole = [tuple(tokens[at : at + 5]) for at in range(len(tokens) - 4)]
    assert np.mean([one in seen for one in whole]) > 0.8  # the others where it knew less
    assert grams.compose("a tune", 1, 300) == grams.compose("a tune", 1, 300) != grams.compose("a tune", 2, 300)


def test_a_5_gram_keeps_the_metre_and_key_that_are_asked_for():
    grams = NGram([random_tune(seed, 150) for seed in range(60)])
    found = read_tune(written(grams.compose("a slip jig in G major", 3)[0]))
    assert (found.metre, found.key and found.key.words) == ("9/8", "G major")


def test_the_nearest_text():
    found = Retrieval.of([("a reel in D major", "one"), ("a jig in D major", "two"), ("a waltz", "three")])
    assert [found.compose(text, 0) for text in ("a jig in D minor", "A REEL in D major!", "waltz")] == [
        "two",
        "one",
        "three",
    ]
    assert {found.compose("in D major", seed) for seed in range(20)} == {"one", "two"}


def score(values: list[float]) -> Score:
    return Score({name: np.array(values) for name in MEASURES})


def test_a_difference_is_paired_by_text():
    rng = np.random.default_rng(0)
    base = rng.normal(0, 10, 200)
    more, p = compared(score(list(base + 1 + rng.normal(0, 1, 200))), score(list(base)), "BLEU")
    assert more == pytest.approx(1, abs=0.3)
    assert p < 0.001  # though texts differ far more than that
    _, p = compared(score(list(base)), score(list(base + rng.normal(0, 1, 200))), "BLEU")
    assert p > 0.01
    _, p = compared(score(list(base)), score(list(base)), "BLEU")
    assert p == 1
    more, _ = compared(score([1, np.nan, 3]), score([0, 5, np.nan]), "BLEU")
    assert more == 1
