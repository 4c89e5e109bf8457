"""Merges of real classes: layers, roles, towers, packed tensors, buffers, moments; what they load as."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from apply.apply_moments import moments_of, write_moments
from safetensors.numpy import load_file, save_file

from rekindle import api
from rekindle.anatomy import Role
from rekindle.apply.load import quietly
from rekindle.errors import RekindleError
from rekindle.methods.merging.slerp import arc
from rekindle.methods.merging.weights import course

Arrays = dict[str, np.ndarray]


def tensors(folder: Path) -> Arrays:
    return {name: x.astype(np.float64) for name, x in load_file(folder / "model.safetensors").items()}


def shares(out: Path, one: Path, two: Path) -> dict[str, float]:
    """How far each tensor of `out` is from one to two."""
    made, a, b = tensors(out), tensors(one), tensors(two)
    found = {}
    for name, x in made.items():
        way = b[name] - a[name]
        found[name] = float(((x - a[name]) * way).sum() / (way * way).sum())
        assert x == pytest.approx(a[name] + found[name] * way, abs=1e-5), name
    return found


@pytest.fixture
def pair(tiny):
    def make(family: str = "llama", **changes: object) -> tuple[Path, Path]:
        return tiny(family, **changes), tiny(family, seed=1, **changes)

    return make


# -- weights by layer, role and tower -------------------------------------------------------------------------------


def test_weights_run_over_the_layers(pair, tmp_path):
    one, two = pair(num_hidden_layers=5)
    out = api.merge([one, two], weights=("1:0", "0:1")).save(tmp_path / "out")
    for name, share in shares(out, one, two).items():
        layer = int(name.split(".")[2]) if ".layers." in name else {"model.embed_tokens.weight": 0}.get(name, 4)
        assert share == pytest.approx(layer / 4, abs=1e-6), name
    there = api.merge([one, two], weights=("1:0:0.5", "0:1:0.5")).save(tmp_path / "there")
    steps = [shares(there, one, two)[f"model.layers.{layer}.mlp.up_proj.weight"] for layer in range(5)]
    assert steps == pytest.approx([0, 0.5, 1, 0.75, 0.5], abs=1e-6)
    counts = api.merge([one, two], weights=("1:0", "0:1")).job().plan.counts
    assert counts["copied"]["tensors"] == 2 * 9 + 3  # of the first layer and the last, the embeddings, norm and head


def test_roles_have_weights_of_their_own(pair, tmp_path):
    one, two = pair()
    by_role = {"attn": ("1", "0"), "attn.q": ("0.5", "0.5"), "ffn.down": ("0:1", "1:0"), "embed": ("0", "1")}
    out = api.merge([one, two], weights=("0.75", "0.25"), by_role=by_role).save(tmp_path / "out")
    expected = {"q_proj": 0.5, "k_proj": 0, "input_layernorm": 0, "o_proj": 0, "up_proj": 0.25, "embed_tokens": 1}
    found = shares(out, one, two)
    for name, share in found.items():
        part = name.split(".")[-2]
        if part == "down_proj":
            assert share == pytest.approx(1 - int(name.split(".")[2]) / 2, abs=1e-6)
        elif part in expected:
            assert share == pytest.approx(expected[part], abs=1e-6), name
    assert found["lm_head.weight"] == pytest.approx(0.25, abs=1e-6)


def test_each_tower_has_layers_of_its_own(pair, tmp_path):
    one, two = pair("t5")
    out = api.merge([one, two], weights=("1:0", "0:1")).save(tmp_path / "out")
    found = shares(out, one, two)
    for layer in range(2):
        assert found[f"encoder.block.{layer}.layer.0.SelfAttention.q.weight"] == pytest.approx(layer, abs=1e-6)
    for layer in range(3):
        assert found[f"decoder.block.{layer}.layer.1.EncDecAttention.k.weight"] == pytest.approx(layer / 2, abs=1e-6)
    assert found["encoder.final_layer_norm.weight"] == pytest.approx(1, abs=1e-6)
    assert found["decoder.block.0.layer.0.SelfAttention.relative_attention_bias.weight"] == pytest.approx(0, abs=1e-6)
    assert found["shared.weight"] == pytest.approx(0, abs=1e-6)


def test_values_stand_at_their_layers_exactly():
    """Where a layer is as far as one of the values, it has that value: 0 and 1 are copies."""
    for layers in range(2, 60):
        for count in range(2, layers + 1):
            if (layers - 1) % (count - 1):
                continue
            numbers = [i % 2 for i in range(count)]
            every, settings = (layers - 1) // (count - 1), SimpleNamespace(towers={}, num_layers=layers)
            found = [
                course(":".join(map(str, numbers)), "t").at(Role("attn.q", i * every), settings) for i in range(count)
            ]
            assert found == numbers


# -- layouts ---------------------------------------------------------------------------------------------------------

LAYOUTS = ["phi3", "gpt2", "gpt_neox", "mixtral", "deepseek_v3", "bert", "t5", "switch_transformers", "t5gemma2"]


@pytest.mark.parametrize("family", LAYOUTS)
def test_every_tensor_on_disk_is_the_mean(pair, tmp_path, family):
    """Packed, transposed, experts, towers, tensors that no table names: all of them."""
    one, two = pair(family)
    out = api.merge([one, two]).save(tmp_path / "out")
    a, b, made = tensors(one), tensors(two), tensors(out)
    assert made.keys() == a.keys()
    for name, x in made.items():
        assert x == pytest.approx((a[name] + b[name]) / 2, abs=1e-6), name
    assert not api.merge([one, two]).job().plan.dropped


@pytest.mark.parametrize(("family", "turned"), [("phi3", False), ("gpt2", True)])
def test_parts_of_a_packed_tensor_have_angles_of_their_own(pair, tmp_path, family, turned):
    one, two = pair(family)
    out = api.merge([one, two], how="slerp", t="0.3").save(tmp_path / "out")
    packed = "transformer.h.1.attn.c_attn.weight" if turned else "model.layers.1.self_attn.qkv_proj.weight"
    a, b, made = (tensors(folder)[packed].T if turned else tensors(folder)[packed] for folder in (one, two, out))
    for rows in (slice(0, 32), slice(32, 64 if turned else 48)):
        x, y = a[rows], b[rows]
        weights = arc(np.array([[(p * q).sum() for q in (x, y)] for p in (x, y)]), 0.3)
        assert made[rows] == pytest.approx(weights[0] * x + weights[1] * y, abs=1e-5)


@pytest.mark.parametrize("how", ["ties", "dare", "breadcrumbs", "stock"])
@pytest.mark.parametrize("family", ["gpt2", "mixtral", "t5"])
def test_fused_or_not_the_values_are_the_same(tiny, tmp_path, how, family):
    folders = [tiny(family, seed=seed) for seed in range(3)]
    plain = api.merge(folders[:2], how=how, base=folders[2]).save(tmp_path / "plain")
    fused = api.merge(folders[:2], how=how, base=folders[2]).save(tmp_path / "fused", fused=True)
    again = api.rewrite(fused).save(tmp_path / "again")
    assert tensors(again).keys() == tensors(plain).keys()
    assert all((x == tensors(plain)[name]).all() for name, x in tensors(again).items())


def test_a_class_that_no_table_knows(tmp_path):
    """Mamba, by the names of its tensors: merged, and loaded by transformers."""
    import torch
    from transformers import MambaConfig, MambaForCausalLM

    folders = []
    for seed in range(2):
        torch.manual_seed(seed)
        with quietly():
            model = MambaForCausalLM(MambaConfig(vocab_size=64, hidden_size=16, num_hidden_layers=2, state_size=4))
        model.save_pretrained(tmp_path / str(seed))
        folders.append(tmp_path / str(seed))
    out = api.merge(folders, how="slerp").save(tmp_path / "out")
    with quietly():
        loaded, info = MambaForCausalLM.from_pretrained(out, output_loading_info=True)
    assert not info["missing_keys"]
    assert not info["unexpected_keys"]
    assert loaded(torch.arange(8)[None]).logits.isfinite().all()
    with pytest.raises(RekindleError, match="which those are is not known"):
        api.merge(folders, weights=("0:1", "1:0"))


def test_whole_numbers_are_those_of_one_and_said(tmp_path):
    folders = []
    for i in range(2):
        (tmp_path / str(i)).mkdir()
        (tmp_path / str(i) / "config.json").write_text('{"model_type": "unheard-of"}')
        arrays = {"bn.weight": np.full(3, float(i), np.float32), "bn.num_batches_tracked": np.array(7 + i)}
        save_file(arrays, tmp_path / str(i) / "model.safetensors")
        folders.append(tmp_path / str(i))
    model = api.merge(folders, weights=("0.25", "0.75"))
    assert any(f"those of {folders[0]}: bn.num_batches_tracked" in note for note in model.checkpoint.notes)
    made = load_file(model.save(tmp_path / "out") / "model.safetensors")
    assert made["bn.num_batches_tracked"] == 7
    assert made["bn.weight"].tolist() == [0.75] * 3


def test_what_is_kept_is_no_sum(pair, tmp_path):
    one, two = pair()
    whole = load_file(api.merge([one, two]).save(tmp_path / "whole") / "model.safetensors")
    out = api.merge([one, two], keep=["model.layers.0.mlp.*", "model.norm.weight"]).save(tmp_path / "out")
    own, made = load_file(one / "model.safetensors"), load_file(out / "model.safetensors")
    for name, x in made.items():
        kept = name.startswith("model.layers.0.mlp.") or name == "model.norm.weight"
        assert np.array_equal(x, (own if kept else whole)[name]), name
    again = api.run(out / "rekindle.yaml", tmp_path / "again")
    assert (again / "model.safetensors").read_bytes() == (out / "model.safetensors").read_bytes()
    with pytest.raises(RekindleError, match="no tensor is called so") as refused:
        api.merge([one, two], keep=["model.norm.wait"])
    assert "model.norm.weight" in str(refused.value)


def test_what_configs_say_otherwise_is_told(pair, tmp_path):
    one, two = pair()
    shutil.copytree(two, tmp_path / "two")
    config = json.loads((two / "config.json").read_text())
    (tmp_path / "two" / "config.json").write_text(json.dumps(config | {"eos_token_id": 9}))
    model = api.merge([one, tmp_path / "two"])
    assert any(f"differ in eos_token_id: that of {one} is taken" in note for note in model.checkpoint.notes)
    assert model.checkpoint.config["eos_token_id"] == 2
    based = api.merge([one], how="task", base=tmp_path / "two")
    assert based.checkpoint.config["eos_token_id"] == 9


# -- moments ---------------------------------------------------------------------------------------------------------


def state(folder: Path) -> tuple[Arrays, dict[str, int]]:
    steps = json.loads((folder / "optimizer" / "optimizer.json").read_text())["steps"]
    return load_file(folder / "optimizer" / "optimizer.safetensors"), steps


@pytest.mark.parametrize(
    ("options", "weights"),
    [
        ({"weights": ("0.3", "0.2", "0.5")}, (0.3, 0.2, 0.5)),
        ({"how": "mean"}, (1 / 3, 1 / 3, 1 / 3)),
        ({"how": "ema", "decay": 0.5}, (0.25, 0.25, 0.5)),
        ({"weights": ("0", "1", "0")}, (0, 1, 0)),
        ({"weights": ("1.5", "-0.2", "-0.3")}, None),
        ({"weights": ("1", "1", "1"), "any_sum": True}, None),
        ({"how": "karcher"}, None),
    ],
)
@pytest.mark.parametrize("family", ["llama", "gpt2"])
def test_moments_of_averages_are_averaged(tiny, tmp_path, family, options, weights):
    """exp_avg = sum a m, exp_avg_sq = sum a v where the weights are positive and sum to 1; else nothing is known."""
    folders = [tiny(family, seed=seed) for seed in range(3)]
    given = [moments_of(folder, seed=seed) for seed, folder in enumerate(folders)]
    states = [
        str(
            write_moments(tmp_path / f"state{i}", folder, moments, {name.rsplit(".", 1)[0]: 10 * i for name in moments})
        )
        for i, (folder, moments) in enumerate(zip(folders, given, strict=True))
    ]
    model = api.merge(folders, **options)
    out = model.save(tmp_path / "out", optimizer_state=states)
    made, steps = state(out)
    job, one = model.job(optimizer_state=states), weights is not None and max(weights) == 1
    said = "all moments start empty" if weights is None else "are averages: an approximation"
    assert [note for note in job.notes if said in note] or one
    assert job.info.get("approximate", False) == (weights is not None and not one)
    for name, x in made.items():
        if weights is None:
            assert not x.any()
            assert steps[name.rsplit(".", 1)[0]] == 0
            continue
        each = [np.frombuffer(moments[name][2], np.float32).reshape(x.shape) for moments in given]
        assert x == pytest.approx(sum(a * m for a, m in zip(weights, each)), abs=3e-6)
        assert steps[name.rsplit(".", 1)[0]] == 10 * max(i for i, a in enumerate(weights) if a)


def test_second_moments_stay_positive_and_near(tiny, tmp_path):
    """Of one source with large gradients, long ago, and others with small ones: what is small is not lost in it."""
    folders, sizes = [tiny("llama", seed=seed) for seed in range(3)], (1.0, 1e-9, 2e-9)
    states = []
    for i, (folder, size) in enumerate(zip(folders, sizes)):
        moments = {
            name: (dtype, shape, np.full(shape, size, np.float32).tobytes())
            for name, (dtype, shape, _) in moments_of(folder).items()
        }
        states.append(str(write_moments(tmp_path / str(i), folder, moments)))
    made, _ = state(api.merge(folders, how="ema", decay=1e-5).save(tmp_path / "out", optimizer_state=states))
    expected = 1e-10 * sizes[0] + (1 - 1e-5) * 1e-5 * sizes[1] + (1 - 1e-5) * sizes[2]
    assert all(x == pytest.approx(expected, rel=1e-5, abs=0) for x in made.values())


def test_states_stand_in_the_order_of_the_sources_the_base_last(tiny, tmp_path):
    one, two, base = (tiny("llama", seed=seed) for seed in range(3))
    states = [str(write_moments(tmp_path / str(i), one, moments_of(one, seed=i))) for i in range(3)]
    out = api.merge([one, two], how="task", base=base, weights=("0.5", "0.25"))
    made, _ = state(out.save(tmp_path / "out", optimizer_state=states))
    name = "model.norm.weight.exp_avg"
    each = [np.frombuffer(moments_of(one, seed=i)[name][2], np.float32) for i in range(3)]
    assert made[name] == pytest.approx(0.5 * each[0] + 0.25 * each[1] + 0.25 * each[2], abs=1e-6)
    with pytest.raises(RekindleError, match="3 sources and 2 optimizer states"):
        out.save(tmp_path / "few", optimizer_state=states[:2])
