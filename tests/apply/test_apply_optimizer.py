"""Adam's moments recycled with the weights: what was copied keeps its state, what is new starts empty."""

from __future__ import annotations

import json

import numpy as np
import pytest
from apply_moments import moments_of, write_moments
from safetensors.numpy import load_file
from store.folders import write_llama
from store.safetensors_bytes import file_of

from rekindle import api
from rekindle.errors import RekindleError
from rekindle.store.header import read_header

E = 3
PARTS = {"w1": "gate_proj", "w3": "up_proj", "w2": "down_proj"}


@pytest.fixture
def parent(tmp_path):
    return write_llama(tmp_path / "parent")


@pytest.fixture
def state(parent, tmp_path):
    return write_moments(tmp_path / "state", parent, steps={"model.norm.weight": 7})


def recycled(out):
    """({name.moment: array}, optimizer.json)"""
    files = sorted((out / "optimizer").glob("*.safetensors"))
    return {k: v for file in files for k, v in load_file(file).items()}, json.loads(
        (out / "optimizer" / "optimizer.json").read_text()
    )


def experts(layer, expert):
    for child, ours in PARTS.items():
        yield (
            f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{child}.weight",
            f"model.layers.{layer}.mlp.{ours}.weight",
        )


def test_experts_share_the_gradient(parent, state, tmp_path):
    """Each of E copies saw 1/E of it: m/E and v/E^2, at the parent's step."""
    made, info = recycled(api.upcycle(parent, experts=E).save(tmp_path / "out", optimizer_state=str(state)))
    was = load_file(state / "optimizer.safetensors")
    for layer in (0, 1):
        for expert in range(E):
            for child, ours in experts(layer, expert):
                np.testing.assert_allclose(made[f"{child}.exp_avg"], was[f"{ours}.exp_avg"] / E, rtol=1e-6)
                np.testing.assert_allclose(made[f"{child}.exp_avg_sq"], was[f"{ours}.exp_avg_sq"] / E**2, rtol=1e-6)
                assert info["steps"][child] == 100


def test_routers_start_empty(parent, state, tmp_path):
    made, info = recycled(api.upcycle(parent, experts=E).save(tmp_path / "out", optimizer_state=str(state)))
    for layer in (0, 1):
        router = f"model.layers.{layer}.block_sparse_moe.gate.weight"
        assert made[f"{router}.exp_avg"].shape == (E, 32)
        assert not made[f"{router}.exp_avg"].any()
        assert not made[f"{router}.exp_avg_sq"].any()
        assert info["steps"][router] == 0


def test_copied_tensors_keep_bits_and_steps(parent, state, tmp_path):
    made, info = recycled(api.upcycle(parent, experts=E).save(tmp_path / "out", optimizer_state=str(state)))
    was = load_file(state / "optimizer.safetensors")
    copied = {name for name in was if ".mlp." not in name}
    assert copied
    for name in copied:
        assert made[name].tobytes() == was[name].tobytes()
    assert info["steps"]["model.norm.weight"] == 7
    assert info["steps"]["lm_head.weight"] == 100
    assert info["kind"] == "adamw", "what else the state says travels along"


def test_every_weight_has_its_two_moments(parent, state, tmp_path):
    out = api.upcycle(parent, experts=E).save(tmp_path / "out", optimizer_state=str(state))
    made, info = recycled(out)
    weights = {name: t.shape for name, t in read_header(out / "model.safetensors")[0].items()}
    assert {name: m.shape for name, m in made.items()} == {
        f"{name}.{moment}": shape for name, shape in weights.items() for moment in ("exp_avg", "exp_avg_sq")
    }
    assert info["steps"].keys() == weights.keys()


def test_noise_empties_the_moments_of_what_it_changed(parent, state, tmp_path):
    model = api.upcycle(parent, experts=E, init="noise", noise=0.1)
    made, info = recycled(model.save(tmp_path / "out", optimizer_state=str(state)))
    for child, _ in experts(0, 1):
        assert not made[f"{child}.exp_avg"].any()
        assert info["steps"][child] == 0


@pytest.mark.parametrize("dtype", ["keep", "float32"])
def test_rewrite_carries_them_whole(parent, state, tmp_path, dtype):
    made, info = recycled(api.rewrite(parent, dtype=dtype).save(tmp_path / "out", optimizer_state=str(state)))
    was = load_file(state / "optimizer.safetensors")
    assert made.keys() == was.keys()
    assert all(made[name].tobytes() == was[name].tobytes() for name in was)
    assert info == json.loads((state / "optimizer.json").read_text())


def test_shards_of_moments_are_the_same_moments(parent, state, tmp_path):
    model = api.upcycle(parent, experts=E)
    whole = model.save(tmp_path / "whole", optimizer_state=str(state))
    out = model.save(tmp_path / "out", optimizer_state=str(state), max_shard_size="20kB")
    assert len(list((out / "optimizer").glob("*.safetensors"))) > 2
    made, expected = recycled(out)[0], recycled(whole)[0]
    assert {name: m.tobytes() for name, m in made.items()} == {name: m.tobytes() for name, m in expected.items()}
    again = api.rewrite(out).save(tmp_path / "again", optimizer_state=str(out / "optimizer"))
    assert {name: m.tobytes() for name, m in recycled(again)[0].items()} == {n: m.tobytes() for n, m in made.items()}


def test_a_parent_that_stacks_its_experts(parent, state, tmp_path):
    """The state names experts one by one, however the weights are laid out."""
    model = api.upcycle(parent, experts=E)
    single = model.save(tmp_path / "single", optimizer_state=str(state))
    fused = model.save(tmp_path / "fused", optimizer_state=str(state), fused=True)
    expected = {name: m.tobytes() for name, m in recycled(single)[0].items()}
    assert {name: m.tobytes() for name, m in recycled(fused)[0].items()} == expected
    for layout in (True, False):
        out = api.rewrite(fused).save(tmp_path / str(layout), optimizer_state=str(fused / "optimizer"), fused=layout)
        assert {name: m.tobytes() for name, m in recycled(out)[0].items()} == expected
        assert recycled(out)[1] == recycled(fused)[1]


def test_moments_are_in_the_price(parent, state):
    model = api.upcycle(parent, experts=E)
    assert model.job(optimizer_state=str(state)).nbytes > 3 * model.job().nbytes


def refused(parent, state) -> str:
    with pytest.raises(RekindleError) as error:
        api.upcycle(parent, experts=E).job(optimizer_state=str(state))
    return str(error.value)


def test_every_moment_that_is_missing_or_misshapen_is_named(parent, tmp_path):
    moments = moments_of(parent)
    del moments["lm_head.weight.exp_avg"], moments["model.norm.weight.exp_avg_sq"]
    moments["model.embed_tokens.weight.exp_avg"] = ("F32", (2,), bytes(8))
    said = refused(parent, write_moments(tmp_path / "state", parent, moments))
    for word in ("3 problems", "lacks exp_avg of", "lm_head.weight", "lacks exp_avg_sq of", "is [2], but the weight"):
        assert word in said


def test_a_weight_without_a_step_is_named(parent, state):
    """Taken for 0, its moments would be corrected as if they were new."""
    info = json.loads((state / "optimizer.json").read_text())
    del info["steps"]["lm_head.weight"]
    (state / "optimizer.json").write_text(json.dumps(info))
    said = refused(parent, state)
    assert "does not say the step" in said
    assert "lm_head.weight" in said


def test_a_folder_without_state(parent, tmp_path):
    assert "holds no optimizer state" in refused(parent, tmp_path)
    (tmp_path / "optimizer.json").write_text('{"steps": {}}')
    assert "cannot be read" in refused(parent, tmp_path)


@pytest.mark.parametrize("info", ["{}", "[]", "{", '{"steps": []}', '{"steps": {"lm_head.weight": "x"}}'])
def test_a_state_with_broken_steps(parent, state, info):
    (state / "optimizer.json").write_text(info)
    assert "optimizer.json" in refused(parent, state)


def test_broken_moments(parent, state):
    data = (state / "optimizer.safetensors").read_bytes()
    (state / "optimizer.safetensors").write_bytes(data[:-1])
    assert "truncated" in refused(parent, state)


def test_a_shard_of_moments_that_is_missing(parent, state):
    index = {"weight_map": dict.fromkeys(moments_of(parent), "gone.safetensors")}
    (state / "optimizer.safetensors.index.json").write_text(json.dumps(index))
    assert "gone.safetensors" in refused(parent, state)


def test_codes_are_no_moments(parent, tmp_path):
    """Experts' moments are divided: an 8-bit optimizer's state is refused, not misread."""
    coded = {name: ("U8", shape, bytes(len(data) // 4)) for name, (_, shape, data) in moments_of(parent).items()}
    said = refused(parent, write_moments(tmp_path / "state", parent, coded))
    assert "U8 tensors cannot be calculated with" in said
    assert file_of(coded)
