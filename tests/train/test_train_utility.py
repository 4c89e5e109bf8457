"""Scores of experts: what they are, that they are found whatever the batching, and what is refused."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from rekindle import api
from rekindle.anatomy import runtime_names
from rekindle.apply.load import load_model
from rekindle.cli.verbs import rekindle
from rekindle.errors import CheckFailed, RekindleError
from rekindle.train.model import load_tokenizer
from rekindle.train.tokens import open_corpus

PART = "model.layers.{}.block_sparse_moe.experts.{}.{}.weight"


@pytest.fixture
def options(corpus: Path) -> dict[str, Any]:
    return {"data": str(corpus), "batches": 3, "batch_tokens": 256, "seq_len": 32}


def scores(found: dict[str, Any]) -> torch.Tensor:
    return torch.tensor(list(found["layers"].values()))


def test_gradient_score_is_the_squared_norm_of_each_experts_gradient(small: Callable[..., Path], options: dict):
    folder = small("mixtral")
    found = api.utility(folder, **options)
    model, corpus = load_model(folder), open_corpus(options["data"], load_tokenizer(folder))
    expected = torch.zeros(2, 4)
    for number in range(3):
        tokens = torch.from_numpy(corpus.batch(8 * number, 8, 32, 0))
        logits = model(input_ids=tokens[:, :-1], use_cache=False).logits
        model.zero_grad()
        torch.nn.functional.cross_entropy(logits.flatten(0, 1), tokens[:, 1:].flatten()).backward()
        for layer, block in enumerate(model.model.layers):
            for p in block.mlp.experts.parameters():
                expected[layer] += p.grad.square().sum((1, 2)) / 3
    torch.testing.assert_close(scores(found), expected, rtol=1e-4, atol=0)
    assert (found["tokens"], found["seq_len"], found["score"]) == (768, 32, "gradient")
    assert list(found["layers"]) == ["0", "1"]


def test_weight_score_is_the_squared_norm_of_each_experts_weights(small: Callable[..., Path], options: dict):
    weights = load_file(small("mixtral") / "model.safetensors")
    expected = [
        [sum(float(weights[PART.format(layer, e, w)].square().sum()) for w in ("w1", "w2", "w3")) for e in range(4)]
        for layer in range(2)
    ]
    found = scores(api.utility(small("mixtral"), score="weight", **options))
    torch.testing.assert_close(found, torch.tensor(expected), rtol=1e-5, atol=0)


def test_weight_gradient_of_one_batch_is_the_product_of_the_norms(small: Callable[..., Path], options: dict):
    one = options | {"batches": 1}
    gradient, weight, both = (
        scores(api.utility(small("olmoe"), score=score, **one)) for score in ("gradient", "weight", "weight-gradient")
    )
    torch.testing.assert_close(both, (gradient * weight).sqrt(), rtol=1e-5, atol=0)


@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe", "flex_olmo"])
def test_micro_batches_change_nothing(small: Callable[..., Path], options: dict, family: str):
    whole, split = (scores(api.utility(small(family), **options, micro_batch=size)) for size in (8, 3))
    torch.testing.assert_close(split, whole, rtol=1e-4, atol=0)


@pytest.mark.parametrize("family", ["mixtral", "qwen3_moe"])
def test_half_precision_gives_nearly_the_same_scores(small: Callable[..., Path], options: dict, family: str):
    exact, half = (scores(api.utility(small(family), **options, precision=precision)) for precision in ("fp32", "bf16"))
    torch.testing.assert_close(half, exact, rtol=0.1, atol=0)


def test_layers_without_experts_have_no_scores(small: Callable[..., Path], options: dict, tmp_path: Path):
    sparse = api.upcycle(small("qwen3"), experts=3, layers="1").save(tmp_path / "sparse")
    found = api.utility(sparse, **options)
    assert {layer: len(row) for layer, row in found["layers"].items()} == {"1": 3}


def test_scores_of_grouped_experts_decide_their_copies(
    tiny: Callable[..., Path], small: Callable[..., Path], options: dict, tmp_path: Path
):
    parent = Path(shutil.copytree(tiny("deepseek_v3", vocab_size=300), tmp_path / "parent"))
    for file in small("llama").glob("tokenizer*"):
        shutil.copy(file, parent)
    found = api.utility(parent, tmp_path / "scores.json", **options)
    assert {layer: len(row) for layer, row in found["layers"].items()} == {"1": 8, "2": 8}
    model = api.grow_experts(parent, top_k="keep", copies="utility", scores=str(tmp_path / "scores.json"))
    assert not any("another checkpoint" in note for note in model.checkpoint.notes)
    verdict = api.verify(model.save(tmp_path / "out"), against=parent, tokens=128, data=options["data"])
    assert (verdict.promise, verdict.held) == ("lossy", True)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"batches": 0}, "0 batches give no gradient"),
        ({"batch_tokens": 16}, "A batch of 16 tokens holds no sequence of 32"),
        ({"seq_len": 65}, "the model's context is 64 tokens"),
        ({"micro_batch": 0}, "micro_batch is 0"),
    ],
)
def test_what_cannot_be_measured_is_refused(small: Callable[..., Path], options: dict, changes: dict, words: str):
    with pytest.raises(RekindleError, match=words):
        api.utility(small("mixtral"), **(options | changes))


def test_a_dense_model_has_no_experts(small: Callable[..., Path], options: dict):
    with pytest.raises(RekindleError, match="no experts to score") as error:
        api.utility(small("llama"), **options)
    assert error.value.hint.startswith("rekindle upcycle")


def test_a_score_that_is_no_number_is_an_error(small: Callable[..., Path], options: dict, tmp_path: Path):
    broken = api.rewrite(small("mixtral")).save(tmp_path / "broken")
    weights = load_file(broken / "model.safetensors")
    weights[PART.format(1, 2, "w3")][0, 0] = float("nan")
    save_file(weights, broken / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(CheckFailed, match="expert 2 of layer 1 is nan"):
        api.utility(broken, **(options | {"score": "weight"}))


def test_only_experts_are_given_gradients(small: Callable[..., Path], options: dict, monkeypatch: pytest.MonkeyPatch):
    from rekindle.train import utility

    loaded = []
    monkeypatch.setattr(utility, "load_model", lambda folder: loaded.append(load_model(folder)) or loaded[0])
    api.utility(small("mixtral"), **options)
    names = runtime_names(json.loads((small("mixtral") / "config.json").read_text()))
    stacked = {name for name, disk in names.items() if not isinstance(disk, str)}
    assert {name for name, p in loaded[0].named_parameters() if p.requires_grad} == stacked


def test_the_command_writes_what_the_function_returns(small: Callable[..., Path], options: dict, tmp_path: Path):
    out = tmp_path / "scores.json"
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    command = ["utility", str(small("mixtral")), *flags, "--out", str(out)]
    ran = CliRunner().invoke(rekindle, command, catch_exceptions=False)
    assert ran.exit_code == 0
    assert [line.split()[0] for line in ran.stdout.splitlines()] == ["layer", "0", "1"]
    assert json.loads(out.read_text()) == api.utility(small("mixtral"), **options)
    with pytest.raises(RekindleError, match="exists already"):
        api.utility(small("mixtral"), out, **options)
    shown = CliRunner().invoke(rekindle, [*command, "--overwrite", "--format", "json"], catch_exceptions=False)
    assert json.loads(shown.stdout) == json.loads(out.read_text())
