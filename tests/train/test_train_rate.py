"""The peak learning rate where none is given."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from train_helpers import rows

from rekindle import api
from rekindle.config import read_yaml
from rekindle.errors import RekindleError
from rekindle.store.lineage import extended
from rekindle.store.manifest import Manifest, Record
from rekindle.train.rate import suggested


@pytest.fixture
def train(corpus: Path, tmp_path: Path) -> Callable[..., Path]:
    """train(src, "out", lr=...): a few steps as the command line takes them, without a rate unless one is given."""

    def go(src: Path, out: str = "out", **given: Any) -> Path:
        short = {"data": str(corpus), "tokens": 512, "batch_tokens": 256, "seq_len": 32, "eval_tokens": 256}
        api.train(src, tmp_path / out, **(short | given))
        return tmp_path / out

    return go


def peak(folder: Path) -> float:
    return rows(folder, "run")[0]["lr"]


def option(folder: Path) -> dict[str, Any]:
    return api.inspect(folder)["lineage"][-1]["options"]["lr"]


def foreign(folder: Path, to: Path) -> Path:
    """A checkpoint of another program: nothing but weights, config and tokenizer."""
    left_out = shutil.ignore_patterns("rekindle*", "optimizer", "metrics.jsonl")
    return shutil.copytree(folder, to, ignore=left_out)


def test_a_model_from_scratch_takes_the_usual_rate(small: Callable, train: Callable):
    out = train(small())
    assert peak(out) == 1e-3
    assert option(out) == {"value": 1e-3, "origin": "default of an untrained model"}


def test_a_trained_one_goes_on_at_the_peak_it_had(small: Callable, train: Callable, tmp_path: Path):
    parent = train(small(), "parent", lr=3e-4)  # its schedule ended at 0
    moe = api.upcycle(parent, experts=4).save(tmp_path / "moe")
    out = train(moe)
    assert peak(out) == 3e-4
    assert option(out) == {"value": 3e-4, "origin": "parent's peak, in its rekindle.json"}
    assert peak(train(out, "third")) == 3e-4
    assert peak(train(out, "given", lr=1e-4)) == 1e-4
    continued = train(train(small(), "steady", lr=2e-4, schedule="constant"), "continued", schedule="continue")
    assert peak(continued) == 2e-4
    assert peak(train(continued, "after")) == 2e-4


def test_what_was_taken_is_recorded_and_repeats(small: Callable, train: Callable, tmp_path: Path):
    out = train(train(small(), "parent", lr=3e-4))
    assert "--lr 0.0003" in api.inspect(out)["lineage"][-1]["command"]
    assert read_yaml(out / "rekindle.yaml")["steps"][0]["train"]["lr"] == 3e-4
    api.run(out / "rekindle.yaml", tmp_path / "again")
    assert (tmp_path / "again" / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()


def test_moments_without_a_lineage_know_it_too(small: Callable, train: Callable, tmp_path: Path):
    parent = train(small(), "parent", lr=3e-4)
    bare = foreign(parent, tmp_path / "bare")
    assert peak(train(bare, optimizer_state=str(parent / "optimizer"))) == 3e-4


def test_of_a_stranger_it_is_asked_for(small: Callable, train: Callable, tmp_path: Path):
    bare = foreign(small(), tmp_path / "bare")
    with pytest.raises(RekindleError, match="parent was trained at is not known") as caught:
        train(bare)
    assert caught.value.hint == "--lr with the parent's own peak; usual for its size is 6e-05 to 6e-04"
    moe = api.upcycle(bare, experts=4).save(tmp_path / "moe")  # whose lineage begins with a method
    with pytest.raises(RekindleError, match="is not known"):
        train(moe)
    assert not (tmp_path / "out").exists()
    assert peak(train(bare, lr=1e-4)) == 1e-4


@pytest.mark.parametrize("lr", [None, "fast", -1, 0, True, {}, float("nan")])
def test_a_manifest_that_says_no_rate(small: Callable, train: Callable, tmp_path: Path, lr: Any):
    parent = train(small(), "parent", lr=3e-4)
    path = parent / "rekindle.json"
    manifest = json.loads(path.read_text())
    manifest["lineage"][-1]["options"]["lr"] = {"value": lr, "origin": "flag"}
    path.write_text(json.dumps(manifest))
    assert peak(train(parent)) == 3e-4  # as its moments know
    shutil.rmtree(parent / "optimizer")
    with pytest.raises(RekindleError, match="is not known"):
        train(parent, "other")


def test_the_range_is_that_of_the_models_size():
    """Brown et al. 2020, table 2.1: 1.3B parameters at 2e-4, 175B at 0.6e-4."""
    assert suggested(1_300_000_000) == pytest.approx((2e-5, 2e-4))
    assert suggested(175_000_000_000) == pytest.approx((6e-6, 6e-5))
    assert suggested(10) == pytest.approx((6e-5, 6e-4))


def peaked(lr: float, verb: str = "train") -> Record:
    return Record(verb=verb, command=f"{lr}", options={"lr": {"value": lr, "origin": "flag"}})


def merged(folder: Path, *lives: list[Record]) -> Path:
    """A checkpoint whose manifest says that it was merged of these."""
    made_of = {f"{i}": (f"s{i}", None, Manifest(version="1", lineage=life)) for i, life in enumerate(lives)}
    lineage = extended(made_of, Record(verb="merge", command="", options={}))
    Manifest(version="1", lineage=lineage).write(folder)
    return folder


def test_what_was_merged_goes_on_at_the_peak_that_its_parents_had(small: Callable, train: Callable, tmp_path: Path):
    parent = foreign(small(), tmp_path / "parent")
    same = [peaked(1e-4), peaked(3e-4)], [peaked(3e-4), peaked(5e-4, "gqa")], []
    assert peak(train(merged(parent, *same))) == 3e-4
    with pytest.raises(RekindleError, match="different learning rates, 0.0001, 0.0003") as refused:
        train(merged(parent, [peaked(3e-4)], [peaked(1e-4)]), "other")
    assert refused.value.hint == "--lr 0.0001, which forgets least"
    untrained = merged(parent, [peaked(0, "init")], [peaked(1, "init")])
    assert peak(train(untrained, "untrained")) == 1e-3
    with pytest.raises(RekindleError, match="is not known"):  # what one of them was is not known
        train(merged(parent, [peaked(0, "init")], []), "stranger")
