"""How long a run is, where it is a fraction of what the parent was trained on."""

from __future__ import annotations

from dataclasses import replace

import pytest

from rekindle import api
from rekindle.config import resolve
from rekindle.errors import RekindleError
from rekindle.store.folder import open_folder
from rekindle.store.lineage import extended
from rekindle.store.manifest import Manifest, Record
from rekindle.train.budget import tokens_before, with_tokens
from rekindle.train.config import TrainConfig


def record(verb, tokens=0):
    return Record(verb=verb, command="", options={}, tokens=tokens)


@pytest.mark.parametrize(
    ("lineage", "tokens"),
    [
        ([], 0),
        ([("init", 0), ("train", 500)], 500),
        ([("init", 0), ("train", 500), ("train", 70), ("gqa", 0)], 570),
        ([("train", 500), ("gqa", 0), ("train", 25)], 500),
        ([("train", 500), ("upcycle", 0), ("train", 200), ("gqa", 0), ("train", 35)], 700),
        ([("rewrite", 0), ("train", 500)], 0),
    ],
)
def test_the_parent_is_what_the_last_method_was_applied_to(lineage, tokens):
    assert tokens_before([record(*step) for step in lineage]) == tokens


def test_what_sources_share_counts_once():
    trunk = [record("init"), record("train", 500)]
    left, right = ([*trunk, record("train", n)] for n in (70, 30))
    made_of = {name: (name, None, Manifest(version="1", lineage=life)) for name, life in (("l", left), ("r", right))}
    merged = extended(made_of, record("merge"))
    assert tokens_before(merged) == 570, "two states of one run: as far as it came"
    other = [*trunk, replace(record("train", 30), command="another")]
    merged = extended(made_of | {"r": ("r", None, Manifest(version="1", lineage=other))}, record("merge"))
    assert tokens_before(merged) == tokens_before([*merged, record("train", 9)]) == 600
    assert tokens_before([*merged, record("train", 9), record("gqa")]) == 609


def test_uptraining_runs_for_a_fraction_of_the_parents_tokens(small, run, corpus, tmp_path):
    parent, summary = run(small("llama"))
    pooled = api.gqa(parent, kv_heads=1).save(tmp_path / "pooled")
    options = {"data": str(corpus), "batch_tokens": 256, "seq_len": 32, "eval_tokens": 256, "lr": 1e-3}
    tuned = api.train(pooled, tmp_path / "tuned", fraction_of_parent=0.5, **options)
    assert tuned["tokens"] == summary["tokens"] // 2
    again = api.train(tmp_path / "tuned", tmp_path / "again", fraction_of_parent=0.25, **options)
    assert again["tokens"] == summary["tokens"] // 4
    recorded = api.inspect(tmp_path / "tuned")["lineage"][-1]
    assert "--fraction-of-parent 0.5" in recorded["command"]
    assert recorded["tokens"] == tuned["tokens"]


def test_tokens_of_the_parent_can_be_said(small):
    config = resolve(TrainConfig, {"fraction_of_parent": 0.05, "parent_tokens": "15T"}).config
    assert with_tokens(config, open_folder(small("llama"))).tokens == 750_000_000_000


@pytest.mark.parametrize(
    ("options", "words", "hint"),
    [
        ({}, "tokens is not given", "--tokens 50M, or --fraction-of-parent"),
        ({"tokens": "1k", "fraction_of_parent": 0.1}, "one of them says how long", "leave --tokens or"),
        ({"fraction_of_parent": 0}, "fraction_of_parent is 0", "0.05"),
        ({"fraction_of_parent": float("nan")}, "fraction_of_parent is nan", "0.05"),
        ({"fraction_of_parent": float("inf")}, "fraction_of_parent is inf", "0.05"),
        ({"tokens": "1k", "parent_tokens": "1T"}, "no fraction is given", "--fraction-of-parent"),
        ({"fraction_of_parent": 0.1, "parent_tokens": 0}, "parent_tokens is 0", "15T"),
        ({"fraction_of_parent": 0.1}, "is not known", "--parent-tokens"),
    ],
)
def test_refused_with_what_to_type(small, options, words, hint):
    with pytest.raises(RekindleError, match=words) as refused:
        with_tokens(resolve(TrainConfig, options).config, open_folder(small("llama")))
    assert hint in refused.value.hint


def test_a_checkpoint_of_others_has_no_lineage(small, tmp_path):
    import shutil

    shutil.copytree(small("llama"), tmp_path / "theirs")
    (tmp_path / "theirs" / "rekindle.json").unlink()
    with pytest.raises(RekindleError, match="not known") as refused:
        with_tokens(resolve(TrainConfig, {"fraction_of_parent": 0.1}).config, open_folder(tmp_path / "theirs"))
    assert "Rekindle did not make" in refused.value.why


def test_what_is_not_recorded_of_a_parent_is_said(small, run, tmp_path, caplog):
    """What is known is a lower bound then: training says so, and a plan asks."""
    import shutil

    shutil.copytree(small("llama"), tmp_path / "theirs")
    (tmp_path / "theirs" / "rekindle.json").unlink()
    config = resolve(TrainConfig, {"fraction_of_parent": 0.5}).config
    for source, said in ((tmp_path / "theirs", True), (small("llama"), False)):
        caplog.clear()
        tuned, summary = run(source, f"tuned-{said}")
        assert with_tokens(config, open_folder(tuned)).tokens == summary["tokens"] // 2
        assert ("theirs is not recorded: --parent-tokens says more than the" in caplog.text) == said
        if not said:
            assert api.plan(ckpt=str(tuned), tokens="1M").to_dict()["question"]["sunk"] == summary["tokens"]
            continue
        with pytest.raises(RekindleError, match="not given") as refused:
            api.plan(ckpt=str(tuned), tokens="1M")
        assert "theirs is not recorded" in refused.value.why
        assert api.plan(ckpt=str(tuned), tokens="1M", sunk="10M")
