"""Depth growth: which layer copies which, what an inserted one is silent by, what goes with its layer."""

from __future__ import annotations

import json
from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file
from tiny_models import DECODERS, MASKED, ONE_TOWER

from rekindle import api
from rekindle.anatomy import family_named
from rekindle.anatomy.settings import Role
from rekindle.edit.arithmetic import Fill
from rekindle.edit.checkpoint import Checkpoint
from rekindle.errors import RekindleError
from rekindle.methods.grow_depth import Config, grow_depth
from rekindle.store.folder import open_folder

AFTER_BRANCH = [f for f in DECODERS if family_named(f).fixed.get("norm_order") in ("post", "sandwich")]
LLAMA_PRO = {"factor": 2, "order": "llama-pro"}
LOSSY = [{"factor": 2}, {"layers": 4}, {"factor": 2, "order": "stack"}, {"order": "solar", "drop": 1}]


def label(value):
    return value if isinstance(value, str) else ",".join(f"{k}={v}" for k, v in value.items())


def source(child: Checkpoint) -> list[int]:
    """The parent's layer that each layer of the child copies, by the name of a tensor that is always copied."""
    leaves = [next(child[layer]["attn.q"].leaves()).name for layer in range(child.settings.num_layers)]
    return [int(name.split(".")[2]) for name in leaves]


@pytest.fixture(scope="module")
def llama_of(tmp_path_factory):
    """llama_of(n): an opened llama of n layers."""
    from store.folders import write_llama

    @cache
    def of(n: int) -> Checkpoint:
        return api.open(write_llama(tmp_path_factory.mktemp(f"llama{n}"), num_hidden_layers=n)).checkpoint

    return of


def grown(parent: Checkpoint, **options) -> list[int]:
    return source(grow_depth(parent, Config(**options)))


# -- which layer copies which ----------------------------------------------------------------------------------


def test_orders_of_the_papers(llama_of):
    assert grown(llama_of(3), factor=2) == [0, 0, 1, 1, 2, 2]
    assert grown(llama_of(3), factor=2, order="stack") == [0, 1, 2, 0, 1, 2]
    # SOLAR 10.7B: 32 layers, 24 of each copy
    assert grown(llama_of(32), order="solar") == [*range(24), *range(8, 32)]
    # LLaMA-Pro 8B: 32 to 40, a new layer after every fourth
    pro = grow_depth(llama_of(32), Config(layers=40, order="llama-pro"))
    assert source(pro) == [4 * group + i for group in range(8) for i in (0, 1, 2, 3, 3)]
    silent = [layer for layer in range(40) if isinstance(pro[layer]["attn.o"], Fill)]
    assert silent == [4, 9, 14, 19, 24, 29, 34, 39]
    assert f"layers {', '.join(map(str, silent))} are new" in pro.notes[-1]


@given(n=st.integers(1, 9), more=st.integers(0, 20))
def test_copies_are_spread_evenly(llama_of, n, more):
    for order in ("interpose", "llama-pro"):
        copied = grown(llama_of(n), layers=n + more, order=order)
        assert copied == sorted(copied)
        for layers in range(1, n + 1):  # so many of the first layers have so many places, however the cut is made
            assert sum(old < layers for old in copied) == layers * (n + more) // n


@given(n=st.integers(1, 9), more=st.integers(0, 20))
def test_stack_repeats_from_layer_0(llama_of, n, more):
    assert grown(llama_of(n), layers=n + more, order="stack") == [layer % n for layer in range(n + more)]


@given(n=st.integers(1, 9), data=st.data())
def test_solar_drops_as_many_of_each_copy(llama_of, n, data):
    m = data.draw(st.integers(0, n // 2))
    expected = [*range(n - m), *range(m, n)]
    assert grown(llama_of(n), order="solar", drop=m) == expected
    assert grown(llama_of(n), order="solar", layers=2 * (n - m)) == expected
    assert grown(llama_of(n), order="solar", factor=2 * (n - m) / n) == expected


@given(n=st.integers(1, 9), depth=st.integers(1, 30))
def test_factor_and_layers_say_the_same(llama_of, n, depth):
    if depth >= n:
        assert grown(llama_of(n), factor=depth / n) == grown(llama_of(n), layers=depth)


# -- the promise -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "options"),
    [(family, LOSSY[0]) for family in ONE_TOWER] + [("llama", options) for options in LOSSY[1:]],
    ids=label,
)
def test_other_orders_are_lossy_and_say_how(tiny, tmp_path, family, options):
    out = api.grow_depth(tiny(family), **options).save(tmp_path / "out")
    verdict = api.verify(out, against=tiny(family), tokens=128)
    assert (verdict.promise, verdict.held) == ("lossy", True)
    assert verdict.relative_difference > 1e-2
    assert "made of the stream" in (out / "README.md").read_text()


@pytest.mark.parametrize(
    ("family", "order"),
    [(family, "interpose") for family in ONE_TOWER] + [("llama", order) for order in ("stack", "llama-pro", "solar")],
)
def test_as_many_layers_as_before_are_the_parent(tiny, tmp_path, family, order):
    parent = tiny(family, num_hidden_layers=4)
    model = api.grow_depth(parent, layers=4, order=order)
    assert model.checkpoint.promise.exact
    out = model.save(tmp_path / "out")
    assert json.loads((out / "config.json").read_text()) == api.rewrite(parent).checkpoint.config
    was, now = load_file(parent / "model.safetensors"), load_file(out / "model.safetensors")
    assert was.keys() == now.keys()
    assert all((was[name] == now[name]).all() for name in was)


@pytest.mark.parametrize("family", ONE_TOWER)
def test_nothing_is_computed_but_zeros(tiny, family):
    for options in (LOSSY[0], LOSSY[-1], LLAMA_PRO) if family in DECODERS else (LOSSY[0], LOSSY[-1]):
        plan = api.grow_depth(tiny(family), **options).job().plan
        assert plan.counts["computed"]["tensors"] == 0
        assert plan.dropped == []
        assert (plan.counts["new"]["tensors"] > 0) == (options is LLAMA_PRO)


@pytest.mark.parametrize("family", DECODERS)
def test_an_inserted_layer_is_silent_by_its_last_tensors_alone(tiny, family):
    biases = {key: True for key in ("attention_bias", "mlp_bias") if key in family_named(family).defaults}
    parent = api.open(tiny(family, **biases)).checkpoint
    child = grow_depth(parent, Config(**LLAMA_PRO))
    new = {part for (part, _), x in child.by_layer[1].items() if isinstance(x, Fill)}
    if parent.settings.norm_order == "pre":
        last = {"attn.o", "attn.o.bias", "ffn.down", "ffn.down.bias", "expert.down", "shared.down"}
        assert new == last & {part for part, _ in parent.by_layer[0]}
    else:
        assert new == {"attn.post_norm", "ffn.post_norm"}
    for key, x in child.by_layer[1].items():
        assert isinstance(x, Fill) or x.x is parent.by_layer[0][key]
    assert child.by_layer[0] == parent.by_layer[0]
    assert child.by_layer[2] == parent.by_layer[1]


@pytest.mark.parametrize("family", AFTER_BRANCH)
def test_a_zero_before_a_norm_would_explode_at_the_first_step(tiny, tmp_path, family):
    """Both are exact; after one step of Adam the child has moved as far as the parent has, the other a world away."""
    parent = tiny(family)
    ours = api.grow_depth(parent, **LLAMA_PRO)
    theirs = replace(ours, checkpoint=zeroed_before_the_norm(ours.checkpoint, api.open(parent).checkpoint))
    for model, name in ((ours, "ours"), (theirs, "theirs")):
        assert api.verify(model.save(tmp_path / name), against=parent, tokens=128).held
    was, here, there = (first_step(folder) for folder in (parent, tmp_path / "ours", tmp_path / "theirs"))
    assert here["gradient"] == pytest.approx(was["gradient"], rel=1e-4)
    assert here["moved"] == pytest.approx(was["moved"], rel=0.1)
    assert there["gradient"] > 1000 * was["gradient"]
    assert there["moved"] > 1


def zeroed_before_the_norm(child: Checkpoint, parent: Checkpoint) -> Checkpoint:
    """The other exact choice: the gains are copied, the projections zero."""
    tensors = dict(child.tensors)
    for role, x in child.tensors.items():
        if role.layer % 2 and role.part in ("attn.o", "ffn.down", "expert.down"):
            tensors[role] = Fill(x.dtype, x.shape, 0.0)
        if role.layer % 2 and role.part in ("attn.post_norm", "ffn.post_norm"):
            tensors[role] = parent.tensors[Role(role.part, role.layer // 2)]
    return child.derive(tensors=tensors)


def first_step(folder) -> dict[str, float]:
    """The largest gradient of a tensor, and how far the logits move, relative to the largest, by a step of Adam."""
    import torch

    from rekindle.apply.load import load_model

    model = load_model(folder, "float32")
    ids = torch.from_numpy(np.random.default_rng(0).integers(0, 64, (4, 32)))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-4)
    out = model(input_ids=ids, labels=ids)
    out.loss.backward()
    gradient = max(parameter.grad.norm().item() for parameter in model.parameters())
    optimizer.step()
    with torch.no_grad():
        moved = model(input_ids=ids).logits - out.logits
    return {"gradient": gradient, "moved": (moved.abs().max() / out.logits.abs().max()).item()}


# -- what goes with its layer ------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", ["qwen2", "qwen3"])
def test_windows_go_with_their_layers(tiny, family):
    windows = {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1}
    full, cut = "full_attention", "sliding_attention"
    child = api.grow_depth(tiny(family, **windows), layers=5).checkpoint
    assert child.settings.windows == (None, 8, 8, 8, 8)
    assert child.config["layer_types"] == [full, cut, cut, cut, cut]
    child = api.grow_depth(tiny(family, **windows), factor=2, order="stack").checkpoint
    assert child.config["layer_types"] == [full, cut, cut, full, cut, cut]


def test_gemma_keeps_its_windows_and_is_silenced_at_minus_one(tiny):
    """Its norms multiply by 1 + w."""
    parent = api.open(tiny("gemma3_text", layer_types=["sliding_attention", "full_attention", "sliding_attention"]))
    child = api.grow_depth(parent, layers=5, order="llama-pro").checkpoint
    kinds = ["sliding", "full", "full", "sliding", "sliding"]
    assert child.config["layer_types"] == [f"{kind}_attention" for kind in kinds]
    assert child[2]["ffn.post_norm"].value == child[4]["attn.post_norm"].value == -1.0


def test_orders_that_first_k_dense_replace_cannot_say_are_refused(tiny):
    parent = tiny("deepseek_v3", num_hidden_layers=4, first_k_dense_replace=2)
    child = api.grow_depth(parent, factor=2).checkpoint
    assert child.config["first_k_dense_replace"] == 4
    assert child.settings.sparse_layers == (4, 5, 6, 7)
    assert api.grow_depth(parent, order="solar", drop=2).checkpoint.settings.sparse_layers == (2, 3)
    for options in ({"factor": 2, "order": "stack"}, {"order": "solar", "drop": 1}):
        with pytest.raises(RekindleError, match="all layers but the first few; asked for are dense layers 0, 1,"):
            api.grow_depth(parent, **options)


@pytest.mark.parametrize(
    ("changes", "dense"),
    [({"mlp_only_layers": [1]}, [2, 3]), ({"decoder_sparse_step": 2}, [0, 1, 4, 5])],
    ids=["mlp_only_layers", "decoder_sparse_step"],
)
@pytest.mark.parametrize("family", ["qwen2_moe", "qwen3_moe"])
def test_dense_layers_stay_dense(tiny, tmp_path, family, changes, dense):
    parent = tiny(family, **changes)
    model = api.grow_depth(parent, **LLAMA_PRO)
    assert model.checkpoint.config["mlp_only_layers"] == dense
    assert model.checkpoint.config["decoder_sparse_step"] == 1
    verdict = api.verify(model.save(tmp_path / "out"), against=parent, tokens=128)
    assert verdict.promise == "exact"
    assert verdict.held


def test_a_list_that_the_family_does_not_read_goes_with_its_layers(tmp_path):
    from store.folders import write_llama

    parent = write_llama(tmp_path / "parent", no_rope_layers=[1, 0], eos_token_id=[1, 2], other=[1, 2, 3])
    child = api.grow_depth(parent, layers=3).checkpoint
    assert child.config["no_rope_layers"] == [1, 0, 0]
    assert child.config["eos_token_id"] == [1, 2]
    assert child.config["other"] == [1, 2, 3]
    assert [note for note in child.notes if "each went with its layer" in note] == [
        "no_rope_layers in config.json has a value for each layer: each went with its layer"
    ]
    single = write_llama(tmp_path / "single", num_hidden_layers=1)
    assert api.grow_depth(single, layers=3).checkpoint.config["architectures"] == ["LlamaForCausalLM"]


@pytest.mark.parametrize("options", [{"factor": 2}, LLAMA_PRO], ids=label)
def test_moments_of_copies_are_their_layers_and_what_is_silent_starts_empty(tmp_path, options):
    from apply.apply_moments import write_moments
    from store.folders import write_llama

    parent = write_llama(tmp_path / "parent")
    state = write_moments(tmp_path / "state", parent)
    out = api.grow_depth(parent, **options).save(tmp_path / "out", optimizer_state=str(state))
    was, now = (load_file(folder / "optimizer.safetensors") for folder in (state, out / "optimizer"))
    steps = json.loads((out / "optimizer" / "optimizer.json").read_text())["steps"]
    for name in open_folder(out).tensors:
        words = name.split(".")
        layer = int(words[2]) if words[1] == "layers" else 0
        old = ".".join([*words[:2], str(layer // 2), *words[3:]]) if words[1] == "layers" else name
        silent = options == LLAMA_PRO and layer % 2 == 1
        assert steps[name] == (0 if silent else 100)
        for moment in ("exp_avg", "exp_avg_sq"):
            made = now[f"{name}.{moment}"]
            assert not made.any() if silent else (made == was[f"{old}.{moment}"]).all()


# -- refusals ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words", "hint"),
    [
        ({}, "Nothing says how deep", "--factor 2 or --layers 6"),
        ({"factor": 2, "layers": 6}, "--factor and --layers both say", "one of them"),
        ({"layers": 4, "order": "solar", "drop": 1}, "--layers and --drop both say", "one of them"),
        ({"factor": 2, "drop": 1}, "--drop is for --order solar, not for interpose", "--order solar"),
        ({"factor": 1.5}, "3 layers times 1.5 are 4.5, not a whole number", "--layers 4 or 5"),
        ({"factor": 0.5}, "3 layers times 0.5 are 1.5", "--layers 3"),
        ({"factor": 0.9}, "3 layers times 0.9 are 2.7", "--layers 3"),
        ({"factor": float("nan")}, "factor is nan", "--factor 2"),
        ({"factor": float("inf")}, "factor is inf", "--factor 2"),
        ({"layers": 2}, "A child of 2 layers would be shallower than its parent of 3", "--layers 6"),
        ({"factor": -1.0}, "A child of -3 layers", "--layers 6"),
        ({"order": "solar"}, "A child of -10 layers", "--drop 0 to 1"),
        ({"order": "solar", "drop": 2}, "A child of 2 layers", "--drop 0 to 1"),
        ({"order": "solar", "drop": -1}, "6 at most out of 3; not 8", "--drop 0 to 1"),
        ({"order": "solar", "layers": 5}, "an even number of layers, 6 at most out of 3; not 5", "--layers 4 to 6"),
        ({"order": "solar", "factor": 3}, "6 at most out of 3; not 9", "--layers 4 to 6"),
    ],
    ids=label,
)
def test_depths_that_cannot_be_are_refused(llama_of, options, words, hint):
    with pytest.raises(RekindleError) as error:
        grow_depth(llama_of(3), Config(**options))
    assert words in error.value.what
    assert hint in error.value.hint


def test_all_problems_are_told_at_once(llama_of):
    with pytest.raises(RekindleError, match="2 problems") as error:
        grow_depth(llama_of(3), Config(drop=1))
    assert "--drop is for" in str(error.value)
    assert "Nothing says" in str(error.value)


@pytest.mark.parametrize("changes", [{}, MASKED], ids=["BertModel", "BertForMaskedLM"])
def test_llama_pro_is_refused_where_the_sum_is_normalised(tiny, changes):
    with pytest.raises(RekindleError, match="normalises the sum") as error:
        api.grow_depth(tiny("bert", **changes), **LLAMA_PRO)
    assert "lossy" in error.value.hint
    assert not api.grow_depth(tiny("bert", **changes), factor=2).checkpoint.promise.exact
