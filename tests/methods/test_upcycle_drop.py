"""Drop-Upcycling: which units are kept, which are drawn, and what their numbers and moments are."""

from __future__ import annotations

import json

import numpy as np
import pytest
from apply.apply_moments import write_moments
from edit.test_expressions import Memory, whole
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file as load_numpy
from safetensors.torch import load_file
from store.folders import write_llama

from rekindle import api
from rekindle.edit.feedforward import UNIT_AXIS, FeedForward
from rekindle.errors import RekindleError
from rekindle.methods.drop_upcycling import partly_new

F, D, E = 512, 32, 4
AXES = {"w1": ("gate_proj", 0), "w3": ("up_proj", 0), "w2": ("down_proj", 1)}


@pytest.fixture(scope="module")
def parent(tiny):
    return tiny("llama", intermediate_size=F)


def units(parent, child, layer, expert):
    """{part: for each unit of the child's expert the parent's unit with the same bits, -1: none}"""
    found = {}
    for name, (source, axis) in AXES.items():
        old = parent[f"model.layers.{layer}.mlp.{source}.weight"].numpy()
        new = child[f"model.layers.{layer}.block_sparse_moe.experts.{expert}.{name}.weight"].numpy()
        known = {np.take(old, j, axis).tobytes(): j for j in range(F)}
        found[name] = np.array([known.get(np.take(new, j, axis).tobytes(), -1) for j in range(F)])
    return found


def dropped(parent, out, **options):
    model = api.upcycle(parent, experts=E, init="drop", **options)
    return load_file(model.save(out) / "model.safetensors")


def test_kept_units_are_whole_and_the_parents_bits(parent, tmp_path):
    child, old = dropped(parent, tmp_path / "out", drop_ratio=0.25), load_file(parent / "model.safetensors")
    orders = set()
    for layer in (0, 2):
        for expert in range(E):
            where = units(old, child, layer, expert)
            assert (where["w1"] == where["w3"]).all(), "gate and up of a unit stay together"
            assert (where["w1"] == where["w2"]).all(), "and down"
            kept = where["w1"][where["w1"] >= 0]
            assert len(kept) == len(set(kept)) == F * 3 // 4
            assert (np.diff(kept) != 1).mean() > 0.9, "in another order"
            orders.add(where["w1"].tobytes())
    assert len(orders) == 2 * E, "each expert drops its own units, in an order of its own"


def test_independent_units_leave_few_whole(parent, tmp_path):
    """At r = 1/2 a unit keeps all three with probability 1/8."""
    child = dropped(parent, tmp_path / "out", drop_indices="independent")
    old = load_file(parent / "model.safetensors")
    whole = []
    for expert in range(E):
        where = units(old, child, 1, expert)
        assert all((found < 0).sum() == F // 2 for found in where.values())
        intact = (where["w1"] >= 0) & (where["w3"] >= 0) & (where["w2"] >= 0)
        whole.append(intact.mean())
        one_order = np.where(where["w1"] >= 0, where["w1"], where["w3"])
        both = (one_order >= 0) & (where["w2"] >= 0)
        assert (one_order == where["w2"])[both].all(), "one order for all three"
    assert np.mean(whole) == pytest.approx(1 / 8, abs=4 * (7 / 64 / F / E) ** 0.5)


@settings(max_examples=20)
@given(st.floats(-2, 2), st.floats(0.01, 3), st.sampled_from([0.25, 0.5, 1.0]))
def test_new_units_have_the_tensors_mean_and_spread(mean, std, ratio):
    reader, rng = Memory(), np.random.default_rng(0)
    shapes = {"gate": (F, D), "gate.bias": (F,), "up": (F, D), "down": (D, F), "down.bias": (D,)}
    arrays = {part: (rng.standard_normal(shape) * std + mean).astype(np.float32) for part, shape in shapes.items()}
    ffn = FeedForward({part: reader.leaf(array) for part, array in arrays.items()})
    expert = partly_new(ffn, ratio, "shared", 0, "0/0")
    for part, array in arrays.items():
        axis = UNIT_AXIS.get(part)
        if axis is None:
            assert expert[part] is ffn[part], "the bias of down belongs to no unit"
            continue
        settle(expert[part], reader)
        old, made = (np.moveaxis(x, axis, 0) for x in (array, whole(expert[part], reader)))
        known = {unit.tobytes() for unit in old}
        new = np.array([unit for unit in made if unit.tobytes() not in known])
        error = std / new.size**0.5
        assert new.mean() == pytest.approx(array.mean(), abs=5 * error)
        assert new.std() == pytest.approx(array.std(), abs=5 * error)
        if new.ndim == 2:
            assert len(new) == ratio * F


def settle(expr, reader):
    from rekindle.edit.measure import measurements

    for measurement in measurements([expr]):
        measurement.settle(measurement.find(reader, None))


def test_nothing_dropped_is_the_same_function_in_another_order(parent, tmp_path):
    out = api.upcycle(parent, experts=E, init="drop", drop_ratio=0).save(tmp_path / "out")
    verdict = api.verify(out, against=parent, tokens=128)
    assert verdict.promise == "exact"
    assert verdict.held
    child, old = load_file(out / "model.safetensors"), load_file(parent / "model.safetensors")
    for part in AXES:
        found = units(old, child, 0, 1)[part]
        assert sorted(found) == list(range(F))
        assert (found != np.arange(F)).any()


def test_more_dropped_is_further_away(parent, tmp_path):
    apart = []
    for ratio in (0.02, 0.1, 0.5):
        out = api.upcycle(parent, experts=E, init="drop", drop_ratio=ratio).save(tmp_path / str(ratio))
        verdict = api.verify(out, against=parent, tokens=128)
        assert (verdict.promise, verdict.held) == ("lossy", True)
        apart.append(verdict.relative_difference)
    assert 1e-3 < apart[0] < apart[1] < apart[2]


def test_all_dropped_keeps_nothing(parent, tmp_path):
    model = api.upcycle(parent, experts=E, init="drop", drop_ratio=1.0)
    child, old = load_file(model.save(tmp_path / "out") / "model.safetensors"), load_file(parent / "model.safetensors")
    assert all((found < 0).all() for found in units(old, child, 0, 0).values())


def test_each_tensor_is_measured_once(parent):
    job = api.upcycle(parent, experts=E, init="drop").job()
    assert len({m.name for m in job.measurements}) == 3 * 3
    assert job.nbytes_measured == 3 * 3 * F * D * 4


def test_kept_units_keep_their_moments_and_new_ones_are_empty(tmp_path):
    folder = write_llama(tmp_path / "parent")
    state = write_moments(tmp_path / "state", folder, steps={})
    out = api.upcycle(folder, experts=E, init="drop").save(tmp_path / "out", optimizer_state=str(state))
    made, was = load_numpy(out / "optimizer" / "optimizer.safetensors"), load_numpy(state / "optimizer.safetensors")
    for name, (source, axis) in AXES.items():
        for moment, power in (("exp_avg", 1), ("exp_avg_sq", 2)):
            new = made[f"model.layers.0.block_sparse_moe.experts.2.{name}.weight.{moment}"]
            old = was[f"model.layers.0.mlp.{source}.weight.{moment}"] / np.float32(E) ** power
            new, old = (np.moveaxis(x, axis, 0) for x in (new, old))
            empty = ~new.any(axis=1)
            assert empty.sum() == len(new) // 2
            near = [np.abs(old - row).max(axis=1).min() / np.abs(row).max() for row in new[~empty]]
            assert max(near) < 1e-6, "every other row is one of the parent's, shared by E"
    steps = json.loads((out / "optimizer" / "optimizer.json").read_text())["steps"]
    assert steps["model.layers.0.block_sparse_moe.experts.2.w1.weight"] == 100


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"drop_ratio": 1.5}, "drop_ratio is 1.5, not a share"),
        ({"drop_ratio": float("nan")}, "not a share"),
        ({"init": "copy", "drop_ratio": 0.3}, "--drop-ratio 0.3 is for --init drop, not for --init copy"),
        ({"init": "noise", "drop_indices": "independent"}, "--drop-indices independent is for --init drop"),
        ({"granularity": 2}, "--granularity 2 is for --init virtual-group, not for --init drop"),
        ({"noise": 0.5, "drop_ratio": -1}, "2 problems"),
    ],
)
def test_refusals(parent, options, words):
    with pytest.raises(RekindleError, match=words):
        api.upcycle(parent, **({"experts": E, "init": "drop"} | options))
