"""No text twice: where trainings begin to read, that the text lasts, and what arms have read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rekindle import api
from rekindle.errors import RekindleError
from rekindle.lab.claims import Claim
from rekindle.lab.study import Seeded, Size, perform
from rekindle.lab.text import by_arm, carried_on, check_text, reads_of, trained
from rekindle.sweep.steps import Step
from rekindle.train.model import load_tokenizer
from rekindle.train.tokens import open_corpus

TRAIN = {"data": "corpus", "seq_len": 32, "batch_tokens": 256, "eval_tokens": 512}
START = {"hidden": 16, "layers": 1, "heads": 2, "ffn": 32, "context": 64, "tokenizer": "bpe:300", "data": "corpus"}


def line(second: dict | None = None) -> list[Step]:
    return [
        Step("start", "init", options=START),
        Step("parent", "train", "start", {**TRAIN, "tokens": 1100}),  # four whole steps
        Step("grown", "upcycle", "parent", {"experts": 2, "top_k": 1}),
        Step("child", "train", "grown", {**TRAIN, "tokens": 512, **(second or {})}),
        Step("beside", "train", "parent", {**TRAIN, "tokens": 512}),
    ]


@pytest.fixture
def corpus(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    Path("corpus").mkdir()
    for i in range(12):
        Path("corpus", f"{i}.txt").write_text("".join(f"{n} times {i} is {n * i}.\n" for n in range(40)))
    return tmp_path


def test_a_training_goes_on_where_its_line_left_off():
    skips = {step.name: step.options.get("skip") for step in carried_on(line())}
    assert skips == {"start": None, "parent": 0, "grown": None, "child": 1024, "beside": 1024}
    assert reads_of(line())["child"].stop == 1536


def test_a_skip_of_its_own_stays_unless_it_goes_back():
    assert reads_of(line({"skip": 4096}))["child"].start == 4096
    with pytest.raises(RekindleError, match="begins at token 768 of its text, of which 1,024 are read"):
        carried_on(line({"skip": 768}))


def test_another_text_begins_at_its_beginning():
    assert reads_of(line({"data": "stdlib"}))["child"].start == 0
    third = [*line({"data": "stdlib"}), Step("back", "train", "child", {**TRAIN, "tokens": 512})]
    assert reads_of(third)["back"].start == 1024


@pytest.mark.parametrize("other", [{"seq_len": 64}, {"seed": 7}])
def test_another_order_of_the_text_would_read_it_again(other):
    with pytest.raises(RekindleError, match="child reads corpus in another order than its parents"):
        carried_on(line(other))


@pytest.mark.slow
def test_a_text_that_does_not_last_is_refused_before_anything_is_trained(corpus):
    said: list[str] = []
    with pytest.raises(RekindleError, match="child reads up to token 101,120 of corpus, which has"):
        perform(carried_on(line({"tokens": 100_096})), Path("runs"), said.append)
    assert sorted(path.name for path in Path("runs").iterdir()) == ["start", "steps.json"]


def test_what_arms_read_is_told_from_their_runs(corpus):
    """Parent and child read other windows, each once; the child's line has both."""
    api.init("start", **START)
    api.train("start", "parent", **TRAIN, tokens="1k")
    skip = reads_of(line())["child"].start
    api.train("parent", "child", **TRAIN, tokens=512, skip=skip)
    found = open_corpus("corpus", load_tokenizer(Path("start")))
    made = trained(Path("child"))
    assert (made.tokens, made.line_tokens, made.digest) == (512, 768 + 512, found.digest)
    assert made.epochs == pytest.approx(1280 / len(found.train))
    read = np.concatenate([found.batch(0, 32, 32, 0), found.batch(skip // 32, 16, 32, 0)])
    assert len(np.unique(read, axis=0)) == len(read)
    again = np.concatenate([found.batch(0, 32, 32, 0), found.batch(0, 16, 32, 0)])
    assert len(np.unique(again, axis=0)) < len(again)
    Path("corpus", "more.txt").write_text("something else\n" * 40)
    api.train("parent", "other", **TRAIN, tokens=512)
    with pytest.raises(RekindleError, match="did not read one text: child corpus"):
        by_arm({"child": "child", "other": "other"}, Path("."))


def test_a_fixed_data_set_may_be_read_again(corpus):
    api.init("runs/start", **START)
    check_text(line(), Path("runs"))
    long = line({"tokens": 100_096})
    with pytest.raises(RekindleError, match="a fixed one"):
        check_text(long, Path("runs"))
    many = Seeded("many", [Claim("k", "", "", "child", "beside")], lambda seed, size: long, lambda runs, size: None)
    assert len(many.steps(Size(2))) == 10
    with pytest.raises(RekindleError, match="equally often: child-0 101,120, beside-0 1,536"):
        replace(many, fixed=True).steps(Size(1))
    assert replace(many, fixed=True, one=lambda seed, size: line()).steps(Size(1))
