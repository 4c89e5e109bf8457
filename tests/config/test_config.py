"""Configs: strict, with origins, and every problem at once."""

from __future__ import annotations

import os
from dataclasses import dataclass
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekindle.config import Count, Size, dump_yaml, option, parse, read_yaml, resolve, to_dict
from rekindle.errors import RekindleError


@dataclass(frozen=True, kw_only=True)
class Config:
    tokens: Count = option(help="tokens")
    shard: Size = option(Size(5_000_000_000), help="bytes")
    lr: float = option(1e-3, help="rate")
    kind: Literal["a", "b"] = option("a", help="kind")
    names: tuple[str, ...] = option((), help="names")
    limit: int | None = option(None, help="limit")
    flag: bool = option(False, help="flag")


@pytest.mark.parametrize(
    ("text", "kind", "value"),
    [
        ("50M", Count, 50_000_000),
        ("5e7", Count, 50_000_000),
        ("1.5k", Count, 1500),
        (1000, Count, 1000),
        ("5GB", Size, 5_000_000_000),
        ("4GiB", Size, 4 * 2**30),
        ("500 mb", Size, 500_000_000),
        ("1_000", int, 1000),
        ("none", int | None, None),
        (None, int | None, None),
        ("7", int | None, 7),
        ("a,b", tuple[str, ...], ("a", "b")),
        (["a", "b"], tuple[str, ...], ("a", "b")),
        ("3e-4", float, 3e-4),
    ],
)
def test_values_are_read_as_written(text, kind, value):
    assert parse(text, kind) == value


@pytest.mark.parametrize(
    ("text", "kind"),
    [("1.5", Count), ("5GB", Count), ("50Q", Count), (True, Count), ("x", float), (True, float), ("yes", bool)]
    + [("c", Literal["a"]), ("", int), ("--", int), ({"a": 1}, str), (3, tuple[str, ...]), ("nan", Count)]
    + [("1e400", Size)],
)  # fmt: skip
def test_nonsense_is_refused(text, kind):
    with pytest.raises(ValueError, match="it must be"):
        parse(text, kind)


@given(st.integers(0, 10**15))
def test_counts_survive_text(number):
    assert parse(str(number), Count) == parse(number, Count) == number


def test_flags_over_file_over_default():
    resolved = resolve(Config, {"tokens": "1M"}, {"tokens": 5, "lr": 0.1})
    assert (resolved.config.tokens, resolved.config.lr, resolved.config.kind) == (1_000_000, 0.1, "a")
    assert (resolved.origins["tokens"], resolved.origins["lr"], resolved.origins["kind"]) == ("flag", "file", "default")
    assert to_dict(resolved.config)["names"] == []


def test_all_problems_at_once_and_each_once():
    with pytest.raises(RekindleError) as error:
        resolve(Config, {"tokens": "some", "kinds": "a", "flag": 3})
    text = str(error.value)
    assert "3 problems" in text
    assert "tokens is 'some'" in text
    assert "tokens is not given" not in text
    assert "no option 'kinds'" in text
    assert "kind" in text


def test_a_missing_value_says_what_to_type():
    with pytest.raises(RekindleError, match="--tokens"):
        resolve(Config, {})
    with pytest.raises(RekindleError, match=r"try:   tokens: \.\.\."):
        resolve(Config, {}, {"lr": 0.1})


def test_broken_yaml_names_the_line(tmp_path):
    for text, says in (("a: [1\nb: 2", "line 2"), ("- a", "keys and values"), ("a: \x00", "not YAML")):
        (tmp_path / "c.yaml").write_text(text)
        with pytest.raises(RekindleError, match=says):
            read_yaml(tmp_path / "c.yaml")
    with pytest.raises(RekindleError, match="No such file"):
        read_yaml(tmp_path / "gone.yaml")


BOMB = "a: &a [x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{b}: &{b} [{', '.join([f'*{a}'] * 9)}]\n" for a, b in zip("abcdefgh", "bcdefghi", strict=True)
)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (BOMB, "stands for more than 100000 values"),
        ("a: &a [*a]", "holds itself|more than 100000 values"),
        ("1: x", "The key 1 is not a text"),
        ("a: {2020-01-01: x}", "is not a text"),
        ("a: 2020-01-01", "is a date"),
        ("a: 2024-02-30", "day is out of range|not YAML"),
        ("a: !!binary aGk=", "is a bytes"),
        ("a: !!set {x}", "is a set"),
        ("a: !!python/object:os.system x", "not YAML"),
        ("a: " + "[" * 3000 + "]" * 3000, "not YAML"),
        ("a: " + "9" * 5000, "not YAML"),
        ("a: b\n" * 3, "a"),
        ("x" * (1 << 23), "too long"),
    ],
    ids=lambda value: value[:20],
)
def test_yaml_that_is_more_than_plain_values_is_refused(tmp_path, text, words):
    (tmp_path / "x.yaml").write_text(text)
    if words == "a":
        assert read_yaml(tmp_path / "x.yaml") == {"a": "b"}
        return
    with pytest.raises(RekindleError, match=words):
        read_yaml(tmp_path / "x.yaml")


def test_a_value_may_be_repeated(tmp_path):
    shared = [1, 2]
    (tmp_path / "x.yaml").write_text(dump_yaml({"a": shared, "b": shared}) + "c: &c [3]\nd: *c\n")
    assert read_yaml(tmp_path / "x.yaml") == {"a": [1, 2], "b": [1, 2], "c": [3], "d": [3]}


def test_what_is_no_file_is_not_waited_for(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path / "pipe", "/dev/zero", tmp_path):
        with pytest.raises(RekindleError):
            read_yaml(path)


def test_a_long_value_is_cut_short_in_an_error():
    with pytest.raises(RekindleError) as refused:
        resolve(Config, {"tokens": "x" * 10**6})
    assert len(str(refused.value)) < 1000
