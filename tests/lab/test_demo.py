"""The whole way, small: the demo, and optimizer state from a dense run into a mixture's."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from safetensors.torch import load_file

from rekindle import api
from rekindle.errors import CheckFailed, RekindleError
from rekindle.lab.demo import demo
from rekindle.train.session import Session

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("demo")]

TRAINING = {"data": "corpus", "seq_len": 32, "batch_tokens": 512, "eval_tokens": 512}


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A working folder with a corpus and a dense model trained on it."""
    desk = tmp_path_factory.mktemp("life")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        Path("corpus").mkdir()
        for i in range(40):
            Path("corpus", f"{i}.txt").write_text("".join(f"{n} times {i} is {n * i}, and so on.\n" for n in range(80)))
        api.init("start", hidden=32, layers=2, heads=4, ffn=64, tokenizer="bpe:300", data="corpus")
        api.train("start", "dense", tokens="8k", **TRAINING)
        yield desk


def test_optimizer_state_goes_with_the_weights(desk):
    model = api.upcycle("dense", experts=4, top_k=2)
    model.save("moe", optimizer_state="dense/optimizer")
    before = load_file("dense/optimizer/optimizer.safetensors")
    after = load_file("moe/optimizer/optimizer.safetensors")
    steps = json.loads(Path("moe/optimizer/optimizer.json").read_text())["steps"]
    up, expert = "model.layers.1.mlp.up_proj.weight", "model.layers.1.block_sparse_moe.experts.3.w3.weight"
    router = "model.layers.1.block_sparse_moe.gate.weight"
    assert (after[f"{expert}.exp_avg"] == before[f"{up}.exp_avg"] / 4).all()
    assert (after[f"{expert}.exp_avg_sq"] == before[f"{up}.exp_avg_sq"] / 16).all()
    assert not after[f"{router}.exp_avg"].any()
    assert (steps[expert], steps[router]) == (15, 0)
    warm = api.train("moe", "warm", tokens="2k", optimizer_state="moe/optimizer", **TRAINING)
    cold = api.train("moe", "cold", tokens="2k", **TRAINING)
    assert warm["val_loss_before"] == cold["val_loss_before"]
    assert warm["loss"] != cold["loss"]
    assert warm["val_loss"] < warm["val_loss_before"]


def test_a_trained_model_upcycles_exactly_and_remembers_its_life(desk):
    api.upcycle("dense", experts=4).save("moe2")
    verdict = api.verify("moe2", against="dense", data="corpus", tokens=256)
    assert verdict.held
    assert "validation text" in verdict.text
    assert abs(verdict.loss_child - verdict.loss_parent) < 1e-5
    api.train("moe2", "longer", tokens="2k", **TRAINING)
    assert [record["verb"] for record in api.inspect("longer")["lineage"]] == ["init", "train", "upcycle", "train"]
    assert api.load_recipe("moe2/rekindle.yaml")[0].checkpoint.settings.num_experts == 4


def test_a_training_recipe_repeats_the_run(desk):
    assert api.is_training("dense/rekindle.yaml")
    api.run("dense/rekindle.yaml", "again")
    assert Path("again/model.safetensors").read_bytes() == Path("dense/model.safetensors").read_bytes()
    api.run("start/rekindle.yaml", "start2")
    assert Path("start2/model.safetensors").read_bytes() == Path("start/model.safetensors").read_bytes()


def test_demo_runs_and_says_what_it_found(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    said: list[str] = []
    made = demo(Path("demo"), said.append, scale=0.02)
    assert made.page.is_file()
    assert len(made.verdict) > 50
    assert any("the promise (exact) holds" in line for line in said)
    rows = [json.loads((run / "metrics.jsonl").read_text().splitlines()[-1]) for run in made.runs]
    ends = [row["flops"] for row in rows]
    assert max(ends) / min(ends) < 1.1  # equal training FLOPs but for whole steps
    assert all((run / "rekindle.yaml").exists() for run in made.runs)
    commands = [line.split("$ ")[1] for line in said if "$ rekindle" in line]
    assert len(commands) == 9


def test_a_promise_that_is_broken_is_not_said_to_hold(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    real, said = api.verify, list[str]()
    monkeypatch.setattr(api, "verify", lambda *given, **how: replace(real(*given, **how), held=False))
    with pytest.raises(CheckFailed):
        demo(Path("demo"), said.append, scale=0.02)
    assert not any("holds" in line for line in said)


def test_a_demo_that_was_cut_off_goes_on(tmp_path, monkeypatch):
    """In the middle of its second training, and then between two steps; what was there stays as it is."""
    monkeypatch.chdir(tmp_path)
    out, real, calls = Path("demo"), Session._step, 0

    def cut(self, step, boundary, wanted):
        nonlocal calls
        calls += 1
        real(self, step, boundary, wanted)
        return calls == 20

    with monkeypatch.context() as patch:
        patch.setattr(Session, "_step", cut)
        with pytest.raises(KeyboardInterrupt):
            demo(out, lambda text: None, scale=0.02)
    made = {name: (out / name / "model.safetensors").stat().st_mtime_ns for name in ("start", "dense", "moe")}
    with monkeypatch.context() as patch:
        patch.setattr(api, "report", lambda *_, **__: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            demo(out, lambda text: None, scale=0.02)
    assert demo(out, lambda text: None, scale=0.02).page.is_file()
    assert made == {name: (out / name / "model.safetensors").stat().st_mtime_ns for name in made}
    with pytest.raises(RekindleError, match="a demo that has come to its end"):
        demo(out, lambda text: None, scale=0.02)
    other = tmp_path / "other"
    api.init(other / "start", hidden=16, layers=1, heads=2, tokenizer="bpe:300")
    with pytest.raises(RekindleError, match="exists and is not empty"):
        demo(other, lambda text: None, scale=0.02)
