"""The grammar: whatever is drawn comes to its end, is read, adds up, and is what was asked for."""

from __future__ import annotations

import random

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tune_helpers import corpus, random_tune

from rekindle.music.abc.bars import odd_bars
from rekindle.music.abc.header import written
from rekindle.music.abc.keys import all_keys
from rekindle.music.abc.metre import PLAIN
from rekindle.music.abc.plain import NotPlain, plain
from rekindle.music.abc.reader import read_tune
from rekindle.music.grammar import RESERVE, Grammar, follow
from rekindle.music.vocabulary import END, pieces, vocabulary


def begun(text: str, **asked: object) -> Grammar:
    return follow(Grammar(**asked), pieces("M:6/8\nL:1/8\nK:D\n" + text) or ())  # type: ignore[arg-type]


@given(st.integers(0, 10**9), st.sampled_from(PLAIN), st.sampled_from(all_keys()), st.sampled_from((90, 150, 400)))
@settings(max_examples=150, deadline=None)
def test_whatever_is_drawn_is_whole(seed: int, metre: str, key, longest: int):
    text = random_tune(seed, longest, metres=(metre,), keys=(key,))
    found = read_tune(written(text))
    assert not found.problems
    assert (found.metre, found.key) == (metre, key)
    assert not odd_bars(found)
    assert text.endswith(("|]", ":|"))
    assert len(pieces(text) or ()) < longest


@given(st.integers(0, 10**9))
@settings(max_examples=60, deadline=None)
def test_even_the_least_likely_tokens_come_to_an_end(seed: int):
    """Always a token that ends nothing where there is one: the tune is brought to its end all the same."""
    rng, grammar = random.Random(seed), Grammar(longest=RESERVE + 40)
    while not grammar.over:
        able = sorted(grammar.allowed() - {END, "|]", ":|", "|"}) or sorted(grammar.allowed())
        grammar = grammar.take(rng.choice(able))
    assert grammar.taken <= RESERVE + 40


def test_the_fields_are_those_that_are_asked_for():
    key = all_keys()[0]
    grammar = Grammar(metres=("6/8", "9/8"), keys=(key,))
    assert grammar.allowed() == {"M:6/8\n", "M:9/8\n"}
    grammar = grammar.take("M:9/8\n")
    assert grammar.allowed() == {"L:1/4\n", "L:1/8\n", "L:1/16\n"}
    assert grammar.take("L:1/8\n").allowed() == {f"K:{key.spelt}\n"}


@pytest.mark.parametrize(
    ("text", "able", "not_able"),
    [
        ("", "A |:", "|]"),
        ("A", "| 2", ":|"),  # a pick-up, or more of it
        ("A6", "|", "B"),
        ("A4B", "|", "4"),
        ("A2B2c2", "|", "d"),
        ("A|B6|c4d", ":|", "4"),  # the pick-up is what is missing
        ("A6|B4c", ":| c", "|]"),  # cut in two, but not at the end
        ("A6|B4c:|", "c", "|"),
        ("A6|B4c:|c", "|", "2 :|"),  # the other part
        ("|:A6|B6", "| :| :: ||", "|] |:"),
        ("|:A6|B6|1", "c", "|"),
        ("|:A6|B6|1c6", ":|2 |", ":| |]"),
        ("A2>", "B z ^", "|"),
        ("A2>B", "2", "3 |"),
        ("(3A", "B z", "| 4 > _"),
        ("(3ABc", "d _", "4"),
        ("^A", "2 3", "-"),  # it would be another note behind the line
        ("A6-", "|", "B"),
        ("A6-|", "A", "B z"),
        ("c'6-|c", "'", "2 |"),
        ("A6|]", "B", "|"),
    ],
)
def test_what_may_come(text: str, able: str, not_able: str):
    """A space is written _, and so is no flat."""
    allowed = {token.replace(" ", "_") for token in begun(text).allowed() - {"_"}}
    assert allowed >= set(able.split()), allowed
    assert not allowed & set(not_able.split()), allowed
    assert begun(text).allowed() <= set(vocabulary())


def test_it_is_over_behind_a_line_that_ends():
    assert {text for text in ("A6|]", "A6:|", "A6||", "A6|", "A") if END in begun(text).allowed()} == {"A6|]", "A6:|"}
    with pytest.raises(ValueError, match="may not come here"):
        begun("A6|").take(END)


def test_most_tunes_of_the_books_pass():
    """Of every tenth plain tune five in six; the rest has what it is narrower than, or bars that do not add up."""
    passed, tried = 0, 0
    for source in corpus()[::10]:
        try:
            tokens = pieces(plain(source).text)
        except NotPlain:
            continue
        tried += 1
        try:
            passed += bool(tokens and follow(Grammar(longest=1000), [*tokens, END]).over)
        except ValueError:
            continue
    assert 0.8 < passed / tried < 0.95
