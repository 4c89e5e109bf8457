"""What is asked for, and how tunes begin."""

from __future__ import annotations

from pathlib import Path

import pytest
from tune_helpers import tune

from rekindle.errors import RekindleError
from rekindle.music.config import ComposeConfig
from rekindle.music.request import request


def opening(text: str, begin: str) -> list[str | None]:
    return list(request(text, ComposeConfig(begin=begin)).opening)


@pytest.mark.parametrize(
    ("begin", "bars"),
    [("dAF", ["d", "A", "F"]), ("dAF|", ["d", "A", "F", "|"]),
     ("|:d2>A|B3||", ["|:", "d", "2", ">", "A", "|", "B", "3", "||"]),
     ("dAF|]", ["d", "A", "F", "|]"]), ("dAF:|", ["d", "A", "F", ":|"]), ("(3dAF d", ["(3", "d", "A", "F", " ", "d"]),
     ("~dAF T|", ["d", "A", "F", "|"]), ("A2 d>", ["A", "2", " ", "d", ">"])],
)  # fmt: skip
def test_bars_are_kept_as_they_are_given(begin: str, bars: list[str]):
    assert opening("a jig in G major, 6/8", begin) == ["M:6/8\n", "L:1/8\n", "K:G\n", *bars]


def test_fields_come_from_the_beginning_or_from_the_text():
    assert opening("a tune, 6/8", "A") == ["M:6/8\n", "L:1/8\n", None, "A"]  # the key is the model's
    assert opening("a tune", r"M:C|\nL:1/16\nK:Ador\nA")[:3] == ["M:2/2\n", "L:1/16\n", "K:Ador\n"]
    with pytest.raises(RekindleError, match="which metre"):
        opening("a tune", "A")
    with pytest.raises(RekindleError, match="unusual unit"):
        opening("a tune, 6/8", r"L:1/2\nA")


def test_a_file_says_how_tunes_begin_and_what_they_are(tmp_path: Path):
    path = tmp_path / "one.abc"
    path.write_text(tune("A|dAF DFA|dAF D2A|BGB dBG|FGA D2:|", T="One", R="jig"))
    found = request("", ComposeConfig(like=str(path)))
    assert found.text == "a jig in D major, 6/8 time"
    assert "".join(token or "" for token in found.opening) == "M:6/8\nL:1/8\nK:D\nA|dAF DFA|dAF D2A|"
    moved = request("a jig in G major", ComposeConfig(like=str(path)))
    assert "".join(token or "" for token in moved.opening) == "M:6/8\nL:1/8\nK:G\nd|gdB GBd|gdB G2d|"
    with pytest.raises(RekindleError, match="Both say"):
        request("a jig", ComposeConfig(like=str(path), begin="A"))
    (tmp_path / "no.abc").write_text("nothing")
    with pytest.raises(RekindleError, match="No tune can be made like it"):
        request("", ComposeConfig(like=str(tmp_path / "no.abc")))
