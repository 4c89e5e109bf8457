"""Adam's moments on disk: the weights' names and layout, both ways."""

from __future__ import annotations

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file, save_file

from rekindle.apply.load import load_model
from rekindle.apply.moments import read_info
from rekindle.errors import RekindleError
from rekindle.train.held import whole_of
from rekindle.train.optimizer import load_optimizer, make_optimizer, save_optimizer

SCHEDULE = {"name": "constant", "peak": 1e-3, "total": 10, "warmup": 0, "decay": 0, "start": 10, "rewarm": 0}


@pytest.fixture(params=["llama", "tied", "mixtral", "qwen2_moe"])
def trained(request: pytest.FixtureRequest, small: Callable[..., Path]) -> tuple[Path, Any, torch.optim.AdamW]:
    """A folder, its model and an optimizer after two steps."""
    folder = small("qwen2", tie_embeddings=True) if request.param == "tied" else small(request.param)
    return folder, *after_steps(folder)


def after_steps(folder: Path, steps: int = 2) -> tuple[Any, torch.optim.AdamW]:
    model = load_model(folder)
    optimizer = make_optimizer(model, 0.1, 0.95)
    torch.manual_seed(1)
    for _ in range(steps):
        tokens = torch.randint(0, 300, (2, 16))
        model(input_ids=tokens, labels=tokens).loss.backward()
        optimizer.step()
    return model, optimizer


def config(folder: Path) -> dict:
    return json.loads((folder / "config.json").read_text())


def test_round_trip(trained: tuple, tmp_path: Path):
    folder, model, optimizer = trained
    save_optimizer(whole_of(model, optimizer), config(folder), tmp_path, SCHEDULE)
    other = load_model(folder)
    loaded = make_optimizer(other, 0.1, 0.95)
    load_optimizer(other, loaded, config(folder), tmp_path)
    for old, new in zip(model.parameters(), other.parameters(), strict=True):
        for key in ("step", "exp_avg", "exp_avg_sq"):
            assert torch.equal(optimizer.state[old][key], loaded.state[new][key])
    tokens = torch.arange(16).view(1, 16)
    other.load_state_dict(model.state_dict())
    for each, its in ((model, optimizer), (other, loaded)):
        each.zero_grad()
        each(input_ids=tokens, labels=tokens).loss.backward()
        its.param_groups[0]["lr"] = its.param_groups[1]["lr"] = 1e-2
        its.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), other.parameters(), strict=True))


def test_names_and_shapes_are_those_of_the_weights(trained: tuple, tmp_path: Path):
    folder, model, optimizer = trained
    save_optimizer(whole_of(model, optimizer), config(folder), tmp_path, SCHEDULE)
    weights, moments = load_file(folder / "model.safetensors"), load_file(tmp_path / "optimizer.safetensors")
    assert set(moments) == {f"{name}.{moment}" for name in weights for moment in ("exp_avg", "exp_avg_sq")}
    assert all(moments[f"{name}.exp_avg"].shape == weight.shape for name, weight in weights.items())
    assert all(tensor.dtype == torch.float32 for tensor in moments.values())
    described = read_info(tmp_path)
    assert described["steps"] == dict.fromkeys(described["steps"], 2)
    assert set(described["steps"]) == set(weights)
    assert (described["betas"], described["eps"], described["schedule"]) == ([0.9, 0.95], 1e-8, SCHEDULE)


def test_an_experts_part_is_its_slice_of_the_stack(small: Callable[..., Path], tmp_path: Path):
    folder = small("mixtral")
    model, optimizer = after_steps(folder)
    save_optimizer(whole_of(model, optimizer), config(folder), tmp_path, SCHEDULE)
    experts = model.model.layers[1].mlp.experts
    with safe_open(tmp_path / "optimizer.safetensors", "pt") as file:
        prefix = "model.layers.1.block_sparse_moe.experts.2"
        stack_EGD = optimizer.state[experts.gate_up_proj]["exp_avg"]
        assert torch.equal(file.get_tensor(f"{prefix}.w1.weight.exp_avg"), stack_EGD[2, :32])
        assert torch.equal(file.get_tensor(f"{prefix}.w3.weight.exp_avg"), stack_EGD[2, 32:])
        assert torch.equal(
            file.get_tensor(f"{prefix}.w2.weight.exp_avg_sq"), optimizer.state[experts.down_proj]["exp_avg_sq"][2]
        )


def test_a_recycled_state_has_new_tensors_at_zero(small: Callable[..., Path], tmp_path: Path):
    folder = small("mixtral")
    model, optimizer = after_steps(folder)
    save_optimizer(whole_of(model, optimizer), config(folder), tmp_path, SCHEDULE)
    moments, described = load_file(tmp_path / "optimizer.safetensors"), read_info(tmp_path)
    router = "model.layers.0.block_sparse_moe.gate.weight"
    expert = "model.layers.0.block_sparse_moe.experts.1.w1.weight"
    for name in (router, expert):
        moments[f"{name}.exp_avg"].zero_()
        moments[f"{name}.exp_avg_sq"].zero_()
        described["steps"][name] = 0
    # in two shards, as a large state is written
    keys = sorted(moments)
    files = {key: f"optimizer-0000{1 + number % 2}-of-00002.safetensors" for number, key in enumerate(keys)}
    for file in set(files.values()):
        save_file({key: moments[key] for key in keys if files[key] == file}, tmp_path / file)
    (tmp_path / "optimizer.safetensors").unlink()
    (tmp_path / "optimizer.safetensors.index.json").write_text(json.dumps({"weight_map": files}))
    (tmp_path / "optimizer.json").write_text(json.dumps(described))
    loaded = make_optimizer(model, 0.1, 0.95)
    load_optimizer(model, loaded, config(folder), tmp_path)
    layer = model.model.layers[0].mlp
    assert loaded.state[layer.gate.weight]["step"] == 0
    stack = loaded.state[layer.experts.gate_up_proj]
    assert stack["step"] == 2
    assert not stack["exp_avg"][1, :32].any()
    assert stack["exp_avg"][1, 32:].any()


def test_decay_is_for_matrices(small: Callable[..., Path]):
    model = load_model(small("mixtral"))
    matrices, vectors = make_optimizer(model, 0.1, 0.95).param_groups
    assert (matrices["weight_decay"], vectors["weight_decay"]) == (0.1, 0.0)
    assert all(p.ndim == 1 for p in vectors["params"])
    assert len(matrices["params"]) + len(vectors["params"]) == len(list(model.parameters()))


def test_what_does_not_fit_is_named(small: Callable[..., Path], tmp_path: Path):
    folder = small("llama")
    model, optimizer = after_steps(folder)
    save_optimizer(whole_of(model, optimizer), config(folder), tmp_path, SCHEDULE)
    moments, described = load_file(tmp_path / "optimizer.safetensors"), read_info(tmp_path)

    def refused(entries: dict, text: dict = described) -> str:
        save_file(entries, tmp_path / "optimizer.safetensors")
        (tmp_path / "optimizer.json").write_text(json.dumps(text))
        with pytest.raises(RekindleError) as caught:
            load_optimizer(model, make_optimizer(model, 0.1, 0.95), config(folder), tmp_path)
        return str(caught.value)

    assert "has no model.norm.weight.exp_avg." in refused(
        {key: value for key, value in moments.items() if key != "model.norm.weight.exp_avg"}
    )
    assert "No weight is called extra.exp_avg" in refused(moments | {"extra.exp_avg": torch.zeros(2)})
    shorter = refused(moments | {"model.norm.weight.exp_avg": torch.zeros(3)})
    assert "has the shape [3], but its weight has [16]" in shorter
    assert "no step for model.norm.weight" in refused(
        moments, described | {"steps": {k: v for k, v in described["steps"].items() if k != "model.norm.weight"}}
    )
    assert "not of adamw" in refused(moments, {"algorithm": "muon"})
    for step in ("12", None, [3], True, -1, math.nan, math.inf):
        strange = refused(moments, described | {"steps": described["steps"] | {"model.norm.weight": step}})
        assert f"that of model.norm.weight is {step!r}" in strange
    (tmp_path / "optimizer.json").unlink()
    with pytest.raises(RekindleError, match="holds no optimizer state"):
        read_info(tmp_path)
