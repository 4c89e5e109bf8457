"""Sentences say what is true of a tune, and what a text asks for is read by the same tables."""

from __future__ import annotations

import pytest
from tune_helpers import corpus, tune

from rekindle.errors import RekindleError
from rekindle.music.abc.keys import Key, parse_key
from rekindle.music.abc.metre import PLAIN
from rekindle.music.abc.reader import read_tune
from rekindle.music.words import Facts, asked, facts, key_holds, metres_of, sentences, title_of

D = Key("D", "major")


def of(body: str = "D6|]", **fields: str) -> Facts:
    return facts(read_tune(tune(body, **fields)))


def test_facts_are_those_of_the_header():
    assert of(T="A Tune", R="Reel", M="C|") == Facts("reel", "2/2", D, title="A Tune")
    assert of(R="slipjig", M="9/8").kind == "slip jig"
    assert of(T="42d Regiment -- Strathspey", M="C").kind == "strathspey"
    assert of(T="The Tulloch Reel", M="C|").kind == "reel"
    assert of(N='"Slow" "collected by F. O\'Neill"').mood == "slow"
    assert of(N='"With spirit"').mood == "lively"
    assert of(O="Galway").origin == "Galway"


def test_what_cannot_be_is_not_said():
    assert of(R="Reel", M="6/8").kind == ""  # no reel has such bars
    assert of(T="The Air of the Mountain").kind == ""  # a title is not enough for an air
    assert of("A6|]").key is None  # it does not end on D
    assert of("^C6|^C6|C6|D6|]", K="Ddor").key is None  # what is sharpened throughout is another key
    assert key_holds(read_tune(tune("F6G6A6^c|d6|]", K="Dm")))


def test_titles_as_one_says_them():
    said = {"Ace and Deuce, The": "The Ace and Deuce", "LARRY O'NEIL'S FAVORITE": "Larry O'Neil's Favorite",
            "Quick Step.": "Quick Step", "X -- Reel": "X"}  # fmt: skip
    assert {title: title_of(read_tune(tune("", T=title))) for title in said} == said


def test_wordings():
    said = sentences(Facts("reel", "2/2", D, "lively", "The Drawn Tune", "a book"))
    assert said[0] == "a lively reel in D major, cut time"
    assert "The Drawn Tune: a reel in D major" in said
    assert len(said) == len(set(said)) == 8
    assert sentences(Facts(metre="6/8"))[:3] == ["a tune, 6/8 time", "a tune", "Tune, 6/8"]


def test_what_is_written_of_the_books_is_read_back():
    """No sentence asks for another kind, metre or key than its tune has; titles, which may hold any words, left out."""
    for source in corpus()[::7]:
        known = facts(read_tune(source))
        for text in sentences(Facts(known.kind, known.metre, known.key, known.mood)):
            if known.metre not in ("", *PLAIN) or (known.key and abs(known.key.sharps) > 5):
                continue  # beyond what is taught
            wanted = asked(text)
            assert wanted.kind in (known.kind, "")
            assert wanted.metre in (known.metre, "")
            assert wanted.key in (known.key, None)


@pytest.mark.parametrize(
    ("text", "key"),
    [("a lively reel in D major", "D"), ("slip jig in A mixolydian", "Amix"), ("a jig in Bb", "Bb"), ("reel, Em", "Em"),
     ("in f sharp minor", "F#m"), ("in the key of E flat major", "Eb"), ("K:Amix M:C|", "Amix"), ("Key-D", "D"),
     ("A minor waltz", "Am"), ("a waltz in A", "A"), ("in B-flat", "Bb"), ("a G dorian air", "Gdor"),
     ("a tune", None), ("in a hurry", None), ("The A team: a reel", None), ("a day in May", None),
     ("I am in awe", None)],
)  # fmt: skip
def test_keys_that_are_asked_for(text: str, key: str | None):
    assert asked(text).key == (parse_key(key) if key else None)


@pytest.mark.parametrize(
    ("text", "metre"),
    [("a jig, 6/8", "6/8"), ("in 9 / 8 time", "9/8"), ("in common time", "4/4"), ("cut time", "2/2"), ("M:C|", "2/2"),
     ("Meter-6/8", "6/8"), ("a reel", ""), ("1/2", "")],
)  # fmt: skip
def test_metres_that_are_asked_for(text: str, metre: str):
    if text == "1/2":
        with pytest.raises(RekindleError, match="no metre"):
            asked(text)
    else:
        assert asked(text).metre == metre


@pytest.mark.parametrize("text", ["in H major", "G# major", "in Q minor", "in C flat major", "K:G#"])
def test_keys_that_do_not_exist(text: str):
    with pytest.raises(RekindleError, match="There is no key"):
        asked(text)


def test_metres_that_are_left():
    assert metres_of(Facts("reel")) == ("2/4", "4/4", "2/2")
    assert metres_of(Facts("reel", "4/4")) == ("4/4",)
    assert metres_of(Facts("air")) == metres_of(Facts()) == ()
