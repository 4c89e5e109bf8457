"""Sums of a series: what the notes on LCSC ask of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file
from search.run_made import run, save, store_of

import rekindle
from rekindle.api.merging import named
from rekindle.edit import checkpoint_at, plan
from rekindle.errors import RekindleError
from rekindle.search.candidate import Candidate, kept_of
from rekindle.search.coefficients import ema, single, uniform
from rekindle.search.groups import _by_name, groups_of
from rekindle.search.series import series_of
from rekindle.search.store import fill

NUMBERS = st.floats(-2, 2, width=32)


def series_in(*folders, fused=False):
    models = {f"s{i}": rekindle.open(folder).as_parent for i, folder in enumerate(folders)}
    return series_of(models, fused=fused)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return run(tmp_path_factory.mktemp("run"))


@pytest.fixture(scope="module")
def series(folder):
    return series_of({name: model.as_parent for name, model in named(f"{folder}/checkpoint-*").items()})


def vectors():
    return st.tuples(st.integers(2, 6), st.integers(1, 40)).flatmap(
        lambda shape: st.lists(
            st.lists(NUMBERS, min_size=shape[1], max_size=shape[1]), min_size=shape[0], max_size=shape[0]
        ).map(np.float32)
    )


@given(thetas=vectors(), data=st.data(), held=st.sampled_from(["float32", "bfloat16"]))
@settings(max_examples=60)
def test_a_sum_is_the_loop_over_checkpoints(thetas, data, held):
    alpha = np.array(data.draw(st.lists(NUMBERS, min_size=len(thetas), max_size=len(thetas))))
    store = store_of(thetas, held)
    found = store.mix(alpha, np.empty(store.size, np.float32))
    wanted = alpha @ thetas.astype(np.float64)
    near = (2**-22 if held == "float32" else 2**-8) * (1 + np.abs(alpha).sum()) * (1 + np.abs(thetas).max())
    assert np.abs(found - wanted).max() <= near
    many = store.mix_many(np.stack([alpha, alpha[::-1]]), np.empty((2, store.size), np.float32))
    assert np.array_equal(many[0], found)


@given(data=st.data(), theta=st.lists(NUMBERS, min_size=1, max_size=30).map(np.float32))
def test_equal_checkpoints_come_back_whatever_the_coefficients(data, theta):
    alpha = np.array(data.draw(st.lists(NUMBERS, min_size=4, max_size=4)))
    alpha[-1] += 1 - alpha.sum()
    store = store_of(np.stack([theta] * 4))
    assert np.array_equal(store.mix(alpha, np.empty_like(theta)), theta)


def test_a_single_checkpoint_and_the_mean(series):
    store = fill(series)
    out = np.empty(store.size, np.float32)
    for k in range(len(series)):
        wanted = read(series, k)
        assert np.abs(store.mix(single(len(series), k), out) - wanted).max() <= 2 * np.spacing(np.abs(wanted).max())
    mean = np.mean([read(series, k).astype(np.float64) for k in range(len(series))], axis=0)
    assert np.abs(store.mix(uniform(len(series)), out) - mean).max() < 1e-6
    assert store.mix(single(len(series), len(series) - 1), out).tobytes() == read(series, len(series) - 1).tobytes()


def read(series, k) -> np.ndarray:
    """A checkpoint's vector, by another library."""
    tensors = load_file(series.checkpoints[series.names[k]].folder.path / "model.safetensors")
    return np.concatenate([tensors[name].flatten().float().numpy() for name in series.places])


def test_statistics_counters_and_what_never_moved_are_the_last_ones(series):
    kept = kept_of(series)
    assert set(kept) == {"1.running_mean", "1.running_var", "1.num_batches_tracked", "scale"}
    last = load_file(series.checkpoints[series.names[-1]].folder.path / "model.safetensors")
    assert all(torch.equal(kept[name], last[name]) for name in kept)
    assert set(series.places) | set(kept) == set(last)


def test_a_thousand_edits_stay_near_the_whole_sum():
    rng = np.random.default_rng(0)
    store = store_of(rng.standard_normal((20, 500)))
    alpha = ema(20, 0.8)
    theta = store.mix(alpha, np.empty(500, np.float32))
    for _ in range(1000):
        one, other = rng.choice(20, 2, replace=False)
        change = float(rng.normal(0, 0.01))
        alpha[one] += change
        alpha[other] -= change
        store.edit(theta, {int(one): change, int(other): -change})
    whole = store.mix(alpha, np.empty(500, np.float32))
    assert np.abs(theta - whole).max() < 1e-4
    store.edit(theta, {3: 0.5})  # a sum that is no longer 1
    alpha[3] += 0.5
    assert np.abs(theta - store.mix(alpha, whole)).max() < 1e-4


@pytest.mark.parametrize("held", ["float32", "bfloat16"])
def test_the_gradient_in_the_coefficients_is_autograd_s(held):
    rng = np.random.default_rng(0)
    thetas = rng.standard_normal((7, 300)).astype(np.float32)
    store, alpha = store_of(thetas, held), torch.tensor(rng.standard_normal(7), requires_grad=True)
    rows = torch.from_numpy(np.stack([store.mix(single(7, k), np.empty(300, np.float32)) for k in range(7)])).double()
    torch.sin(alpha @ rows).sum().backward()
    theta = store.mix(alpha.detach().numpy(), np.empty(300, np.float32))
    assert np.abs(store.gradient(np.cos(theta)) - alpha.grad.numpy()).max() < 1e-3


@pytest.mark.parametrize("held", ["float32", "bfloat16"])
def test_groups_are_stores_of_their_own(held):
    rng = np.random.default_rng(0)
    thetas, parts = rng.standard_normal((6, 300)).astype(np.float32), [slice(0, 7), slice(7, 200), slice(200, 300)]
    whole, grouped = store_of(thetas, held), store_of(thetas, held, parts)
    alone = [store_of(thetas[:, part], held) for part in parts]
    alpha, g = rng.standard_normal((3, 6)), rng.standard_normal(300).astype(np.float32)
    out = grouped.mix(alpha, np.empty(300, np.float32))
    for part, own, store in zip(parts, alpha, alone, strict=True):
        assert np.array_equal(out[part], store.mix(own, np.empty(store.size, np.float32)))
    many = grouped.mix_many([alpha[0], alpha], np.empty((2, 300), np.float32))
    assert np.array_equal(many[0], whole.mix(alpha[0], np.empty(300, np.float32)))  # [K]: the same in every group
    assert np.array_equal(many[1], out)
    slopes = [store.gradient(np.ascontiguousarray(g[part])) for part, store in zip(parts, alone, strict=True)]
    assert grouped.shape == (3, 6)
    assert np.array_equal(grouped.gradient(g), np.stack(slopes))
    assert np.abs(grouped.gradient(g).sum(axis=0) - whole.gradient(g)).max() < 1e-4


def test_averages_that_were_kept_are_no_part_of_a_search():
    rng = np.random.default_rng(0)
    thetas, g = rng.standard_normal((6, 30)).astype(np.float32), rng.standard_normal(30).astype(np.float32)
    both, alone = store_of(thetas, averages=2), store_of(thetas[2:])
    alpha = rng.standard_normal(4)
    out = [store.mix(alpha, np.empty(30, np.float32)) for store in (both, alone)]
    assert np.array_equal(*out)
    assert both.shape == alone.shape == (4,)
    assert np.array_equal(both.gradient(g), alone.gradient(g))
    assert np.array_equal(both.row(1), alone.row(1))
    assert np.abs(both.mix(single(6, 1), out[0]) - thetas[1]).max() < 1e-6


def test_groups_are_layers_or_kinds_of_tensors(tiny):
    def groups(family, by, fused=False, **changes):
        return groups_of(checkpoint_at(tiny(family, **changes)), by, fused=fused)

    llama = groups("llama", "layer")
    assert llama["model.embed_tokens.weight"] == "0"
    assert llama["model.layers.1.mlp.up_proj.weight"] == "1"
    assert llama["model.norm.weight"] == llama["lm_head.weight"] == max(llama.values())
    assert set(groups("llama", "role").values()) == {"embed", "attn", "ffn", "norm", "head"}
    for fused in (False, True):
        mixtral = groups("mixtral", "role", fused)
        assert {"attn", "expert", "router"} <= set(mixtral.values())
        assert set(mixtral) == set(plan(checkpoint_at(tiny("mixtral")), fused=fused).tensors)
    t5 = groups("t5", "layer", num_decoder_layers=2)
    assert t5["encoder.block.1.layer.0.SelfAttention.q.weight"] == "1"
    assert t5["decoder.block.1.layer.1.EncDecAttention.q.weight"] == "1"
    with pytest.raises(RekindleError, match="these have encoder 2, decoder 3"):
        groups("t5", "layer")


def test_groups_of_a_class_that_no_table_knows_are_by_name(series):
    last = series.checkpoints[series.names[-1]]
    own = series_of(series.checkpoints, by="layer")
    assert groups_of(last, "layer")["1.running_mean"] == "1"
    assert list(own.parts) == ["0", "1", "3"]
    assert own.parts["3"].stop == own.size
    assert _by_name("down_blocks.10.resnets.2.conv.weight") == "down_blocks.10"
    assert _by_name("model.layers.3.q.weight") == "model.layers.3"
    assert [_by_name(name) for name in ("conv_in.weight", "scale", "net1.w")] == ["conv_in", "scale", "net1"]
    with pytest.raises(RekindleError, match="Which kind of tensor"):
        groups_of(last, "role")


def test_a_candidate_s_tensors_are_views_and_gradients_land_in_one_vector(series):
    store = fill(series)
    theta = store.mix(uniform(len(series)), np.empty(store.size, np.float32))
    candidate = Candidate(series.places, kept_of(series), theta)
    assert candidate.tensors["0.weight"].data_ptr() == theta.ctypes.data + 4 * series.places["0.weight"].at
    for _ in range(2):  # the second starts from 0 again
        leaves, gradient = candidate.leaves()
        (2 * leaves["0.weight"].sum() + leaves["3.bias"].square().sum()).backward()
        place = series.places["3.bias"]
        assert np.allclose(gradient[place.at : place.at + place.size], 2 * theta[place.at : place.at + place.size])
        assert gradient[series.places["0.weight"].at] == 2


def test_a_store_in_a_file_is_the_store_in_memory(series, tmp_path):
    alpha = ema(len(series), 0.7)
    one, other = (fill(series, folder=folder) for folder in (None, tmp_path))
    assert isinstance(other.rows, np.memmap)
    assert list(tmp_path.iterdir()) == []
    found = [store.mix(alpha, np.empty(store.size, np.float32)).tobytes() for store in (one, other)]
    assert found[0] == found[1]
    coarse = fill(series, "bfloat16").mix(alpha, np.empty(one.size, np.float32))
    assert np.abs(coarse - np.frombuffer(found[0], np.float32)).max() < 0.01


def test_bfloat16_on_disk_and_an_archive(folder, tmp_path):
    narrow = run(tmp_path / "narrow", torch.bfloat16)
    series = series_of({name: model.as_parent for name, model in named(f"{narrow}/checkpoint-*").items()})
    assert np.array_equal(fill(series).last, read(series, len(series) - 1))
    rekindle.pack(f"{folder}/checkpoint-*", tmp_path / "run.rk")
    packed = series_of({name: model.as_parent for name, model in named(f"{tmp_path / 'run.rk'}@*").items()})
    plain = series_of({name: model.as_parent for name, model in named(f"{folder}/checkpoint-*").items()})
    assert packed.places == plain.places
    assert np.array_equal(fill(packed).rows, fill(plain).rows)


def test_experts_are_stacked_by_transformers_names(tiny):
    series = series_in(tiny("mixtral"), tiny("mixtral", seed=1), fused=True)
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny("mixtral", seed=1))
    names = dict(model.named_parameters())
    assert set(series.places) <= set(names)
    store = fill(series)
    candidate = Candidate(series.places, {}, store.last)
    assert all(torch.equal(x, names[name].float()) for name, x in candidate.tensors.items())


def test_what_cannot_be_combined(tmp_path):
    a = save(tmp_path / "a", {"w": torch.ones(3, 2), "b": torch.zeros(2)})
    with pytest.raises(RekindleError, match="there is 1 checkpoint"):
        series_in(a)
    same = save(tmp_path / "same", {"w": torch.ones(3, 2), "b": torch.zeros(2)})
    with pytest.raises(RekindleError, match="All 2 checkpoints are the same"):
        series_in(a, same)
    other = save(tmp_path / "other", {"w": torch.ones(3, 2), "c": torch.zeros(2)})
    with pytest.raises(RekindleError, match=r"Only one of these models has .*b"):
        series_in(a, other)
    shape = save(tmp_path / "shape", {"w": torch.ones(2, 3), "b": torch.zeros(2)})
    with pytest.raises(RekindleError, match=r"Shapes differ: .*w \[3, 2\] and \[2, 3\]"):
        series_in(a, shape)
    sick = save(tmp_path / "sick", {"w": torch.full((3, 2), torch.nan), "b": torch.zeros(2)})
    with pytest.raises(RekindleError, match="w of s1 holds NaN or infinity: 6 values"):
        fill(series_in(a, sick, a))


def test_what_does_not_fit_half_of_the_memory_goes_to_a_file(tmp_path, monkeypatch):
    import psutil

    from rekindle.search import store

    assert store.where_to(1000, tmp_path) is None
    monkeypatch.setattr(psutil, "virtual_memory", lambda: type("Memory", (), {"available": 1500}))
    assert store.where_to(700, tmp_path) is None
    assert store.where_to(1000, tmp_path) == tmp_path
    monkeypatch.setattr(store.shutil, "disk_usage", lambda path: type("Disc", (), {"free": 900}))
    with pytest.raises(RekindleError, match="The series takes"):
        store.where_to(1000, tmp_path)
