"""No text twice, and one text in a study: where trainings begin to read, that it lasts, and what arms have read."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from rekindle import api
from rekindle.errors import RekindleError
from rekindle.lab.claims import Claim
from rekindle.lab.cost import training_flops
from rekindle.lab.page import _spent
from rekindle.lab.spent import End, by_arm, trained
from rekindle.lab.study import Seeded, Size, perform
from rekindle.lab.text import carried_on, check_equal, check_one_text, check_text, reads_of, texts_of
from rekindle.store.lineage import sunk
from rekindle.store.manifest import read_manifest
from rekindle.sweep.steps import Step
from rekindle.train.model import load_tokenizer
from rekindle.train.objectives.span_corruption import SpanCorruption
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
    assert made.epochs == pytest.approx(1280 / (32 * found.windows(32)))
    read = np.concatenate([found.batch(0, 32, 32, 0), found.batch(skip // 32, 16, 32, 0)])
    assert len(np.unique(read, axis=0)) == len(read)
    again = np.concatenate([found.batch(0, 32, 32, 0), found.batch(0, 16, 32, 0)])
    assert len(np.unique(again, axis=0)) < len(again)
    Path("corpus", "more.txt").write_text("something else\n" * 40)
    api.train("parent", "other", **TRAIN, tokens=512)
    with pytest.raises(RekindleError, match="did not read one text: child corpus"):
        by_arm({"child": End("child"), "other": End("other")}, Path("."))


def test_an_arm_that_is_read_off_early_has_cost_what_it_had_by_then(corpus):
    """Before any training that is nothing, and its line has read what the parent has."""
    api.init("start", **START)
    api.train("start", "parent", **TRAIN, tokens="1k")
    api.train("parent", "child", **TRAIN, tokens=1024, skip=768)
    whole, early, before = (trained(Path("child"), step) for step in (None, 1, 0))
    assert [made.tokens for made in (whole, early, before)] == [1024, 256, 0]
    assert [made.line_tokens for made in (whole, early, before)] == [1792, 1024, 768]
    assert [made.flops for made in (early, before)] == [whole.flops / 4, 0]
    assert whole.flops == training_flops(Path("child"), 1024, 32)
    steps = carried_on(line({"tokens": 1024}))
    check_equal([End("child", 2), End("beside")], steps)
    with pytest.raises(RekindleError, match="equally often: child 1,280, beside 1,536"):
        check_equal([End("child", 1), End("beside")], steps)


def test_a_run_whose_states_were_averaged_has_read_its_text_once(corpus):
    api.init("start", **START)
    api.train("start", "run", **TRAIN, tokens=2048, archive="run.rk", save_every=512)
    api.merge(["run.rk@*"], how="mean").save("average")
    api.train("average", "after", **TRAIN, tokens=512, lr=1e-3)
    manifest = read_manifest(Path("after"))
    assert trained(Path("after")).line_tokens == sunk(manifest.lineage).tokens < 2048 + 512 + 1


def test_what_a_step_measured_on_the_text_is_told_apart_from_what_was_trained_on(corpus):
    api.init("start", **START)
    api.train("start", "parent", **TRAIN, tokens="1k")
    api.apply("gqa", "parent", kv_heads=1, pool="aligned", data="corpus", data_tokens=512).save("pooled")
    api.train("pooled", "child", **TRAIN, tokens=512, skip=768)
    assert trained(Path("child")).measured_tokens == 512
    assert trained(Path("parent")).measured_tokens == 0
    assert trained(Path("child"), 0).line_tokens == 768
    note = _spent({"pooled before": trained(Path("child"), 0), "parent": trained(Path("parent"))}).note
    assert "pooled before (512) came from a step that ran the model on so many tokens" in note


def test_how_long_a_text_lasts_is_what_the_objective_says(corpus):
    """Of span corruption a row takes more of the text than the tokens it is read in."""
    api.init("runs/start", **START | {"family": "t5", "context": None})
    found = open_corpus("corpus", load_tokenizer(Path("runs/start")))
    rows = SpanCorruption(found, 32, (), 0).rows
    assert rows < found.windows(32)
    whole = {**TRAIN, "batch_tokens": 32, "tokens": rows * 32}
    begun = Step("start", "init", options=START)
    check_text([begun, Step("t5", "train", "start", whole)], Path("runs"))
    longer = whole | {"tokens": rows * 32 + 32}
    with pytest.raises(RekindleError, match=f"which has {rows * 32:,} to train on"):
        check_text([begun, Step("t5", "train", "start", longer)], Path("runs"))


def test_a_study_does_not_go_on_over_another_text(corpus):
    """Neither where one training is there and the next would read other files, nor where both are."""
    api.init("runs/start", **START)
    api.train("runs/start", "runs/parent", **TRAIN, tokens="1k")
    for fixed in (False, True):
        check_text(line(), Path("runs"), fixed=fixed)
    Path("corpus", "more.txt").write_text("something else\n" * 40)
    for fixed in (False, True):
        with pytest.raises(RekindleError, match="corpus is not one text: parent read .*, from start on it is now"):
            check_text(line(), Path("runs"), fixed=fixed)
    check_one_text(texts_of(line(), Path("runs")), Path("runs"))
    api.train("runs/parent", "runs/beside", **TRAIN, tokens=512)
    api.train("runs/start", "runs/made/inside", **TRAIN, tokens=512)
    with pytest.raises(RekindleError, match="corpus is not one text: parent read .*, beside read"):
        check_one_text(texts_of(line(), Path("runs")), Path("runs"))
    inside = [line()[1], Step("made", "some:function", "start")]
    with pytest.raises(RekindleError, match="corpus is not one text: parent read .*, made read"):
        check_one_text(texts_of(inside, Path("runs")), Path("runs"))


@pytest.mark.slow
def test_a_study_that_is_called_again_over_another_text_is_refused_before_anything_is_made(corpus):
    many = Seeded("many", [], lambda seed, size: line(), lambda runs, size: None)
    perform(carried_on(many.steps(Size(1))), Path("runs"), print)
    made = sorted(path.name for path in Path("runs").iterdir())
    Path("corpus", "more.txt").write_text("something else\n" * 40)
    with pytest.raises(RekindleError, match="corpus is not one text"):
        perform(carried_on(many.steps(Size(2))), Path("runs"), print)
    assert sorted(path.name for path in Path("runs").iterdir()) == made
    perform(carried_on(many.steps(Size(1))), Path("runs"), print)  # all is there, and was one text


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
