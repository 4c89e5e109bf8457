"""Pooling and repeating key-value heads on real models: exact where it can be, measured where it is not."""

from __future__ import annotations

import json
import re
import shutil
from dataclasses import replace

import numpy as np
import pytest
import torch
from minilm_heads import emulated
from safetensors.numpy import load_file
from safetensors.torch import load_file as load_torch
from safetensors.torch import save_file
from test_gqa_alignment import plane_maps
from tiny_models import DECODERS

from rekindle import api
from rekindle.edit.heads import Heads, picked
from rekindle.errors import RekindleError
from rekindle.methods import gqa
from rekindle.store.header import read_header

NO_KV_HEADS = ("gpt2", "gpt_neox", "deepseek_v3")
KV_HEADS = tuple(family for family in DECODERS if family not in NO_KV_HEADS)
FREE = ("llama", "qwen2", "phi3", "mixtral")  # keys may be turned
BIASED = {"num_key_value_heads": 4, "attention_bias": True}
ALL = {"num_key_value_heads": 4}


def tensors(folder):
    return load_file(folder / "model.safetensors")


def rebuilt(folder, out, change):
    """A checkpoint whose attention tensors of each layer are what `change(block, layer)` says: {part: expression}."""
    parent = api.open(folder).checkpoint
    child = parent.derive(tensors=dict(parent.tensors))
    for layer in range(parent.settings.num_layers):
        for part, expr in change(parent[layer], layer).items():
            child[layer][part] = expr
    return api.Model(str(folder), child).save(out)


def with_heads(folder, out, order):
    """The same model with other key-value heads: those of `order`."""
    s = api.open(folder).checkpoint.settings

    def change(block, layer):
        norm = ["attn.k_norm"] if s.qk_norm == "full" else []
        parts = ("attn.k", "attn.k.bias", "attn.v", "attn.v.bias", *norm)
        return {part: picked(block[part], s.head_dim, order) for part in parts if part in block}

    return rebuilt(folder, out, change)


def turned(folder, out, seed=0, keys=True):
    """The same function with each head in another basis: keys and queries, values and outputs turned against."""
    s = api.open(folder).checkpoint.settings
    random, shared = np.random.default_rng(seed), s.num_heads // s.num_kv_heads
    each, every = np.arange(s.num_kv_heads)[:, None], np.arange(s.num_heads)[:, None]

    def change(block, layer):
        k = plane_maps(random, s.num_kv_heads, s.head_dim, s.rotary_dim)
        v = plane_maps(random, s.num_kv_heads, s.head_dim, 0)
        q, o = (np.repeat(np.linalg.inv(x).transpose(0, 2, 1), shared, axis=0) for x in (k, v))
        made = {"attn.o": Heads(block["attn.o"], s.head_dim, every, turn_HAA=o, axis=1)}
        rows = [("attn.v", each, v)] + ([("attn.k", each, k), ("attn.q", every, q)] if keys else [])
        for part, heads, turn in rows:
            for name in (part, f"{part}.bias"):
                if name in block:
                    made[name] = Heads(block[name], s.head_dim, heads, turn_HAA=turn)
        return made

    return rebuilt(folder, out, change)


def difference(child, parent):
    return api.verify(child, against=parent, tokens=128).relative_difference


# -- exact -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", KV_HEADS)
def test_pooling_equal_heads_is_exact(tiny, tmp_path, family):
    parent = with_heads(tiny(family, **ALL), tmp_path / "parent", [0, 0, 1, 1])
    for pool in ("mean", "first", "aligned"):
        assert difference(api.gqa(parent, kv_heads=2, pool=pool).save(tmp_path / pool), parent) < 1e-5, pool


@pytest.mark.parametrize("family", ["llama", "qwen3", "olmo2", "olmoe"])
@pytest.mark.parametrize("pool", ["mean", "first", "aligned"])
def test_pooling_equal_heads_with_biases_is_exact(tiny, tmp_path, family, pool):
    """The values' bias is folded into the output's, which these families have."""
    parent = with_heads(tiny(family, **BIASED), tmp_path / "parent", [0, 0, 0, 0])
    out = api.gqa(parent, kv_heads=1, pool=pool).save(tmp_path / "out")
    assert difference(out, parent) < 1e-5
    assert not tensors(out)["model.layers.0.self_attn.v_proj.bias"].any()


@pytest.mark.parametrize("family", ["llama", "qwen2", "olmo2", "phi3", "mixtral", "qwen3_moe"])
@pytest.mark.parametrize("pool", ["mean", "first", "aligned"])
def test_heads_alike_are_found_and_their_queries_follow(tiny, tmp_path, family, pool):
    parent = with_heads(tiny(family, **ALL), tmp_path / "parent", [0, 1, 1, 0])
    similar = api.gqa(parent, kv_heads=2, pool=pool, grouping="similar").save(tmp_path / "similar")
    assert difference(similar, parent) < 1e-5
    assert difference(api.gqa(parent, kv_heads=2, pool=pool).save(tmp_path / "consecutive"), parent) > 1e-2


def test_whole_groups_move_in_a_checkpoint_that_has_groups(tiny, tmp_path):
    """Eight query heads on four key-value heads: queries move two by two."""
    shape = {"num_attention_heads": 8, "num_key_value_heads": 4}
    parent = with_heads(tiny("llama", **shape), tmp_path / "parent", [0, 1, 1, 0])
    for pool in ("mean", "aligned"):
        out = api.gqa(parent, kv_heads=2, pool=pool, grouping="similar").save(tmp_path / pool)
        assert difference(out, parent) < 1e-5


@pytest.mark.parametrize("family", FREE)
def test_alignment_undoes_what_attention_does_not_see(tiny, tmp_path, family):
    """Heads of a group in bases of their own: the mean of them is nonsense, the aligned mean exact."""
    equal = with_heads(tiny(family, **ALL), tmp_path / "equal", [0, 0, 1, 1])
    parent = turned(equal, tmp_path / "parent")
    assert difference(parent, equal) < 1e-5
    assert difference(api.gqa(parent, kv_heads=2, pool="aligned").save(tmp_path / "aligned"), parent) < 1e-5
    assert difference(api.gqa(parent, kv_heads=2, pool="mean").save(tmp_path / "mean"), parent) > 1e-2


def test_alignment_where_rope_turns_a_part_of_each_head(tiny, tmp_path):
    equal = with_heads(tiny("phi3", **ALL, partial_rotary_factor=0.5), tmp_path / "equal", [0, 0, 1, 1])
    assert api.open(equal).checkpoint.settings.rotary_dim == 4
    parent = turned(equal, tmp_path / "parent")
    assert difference(parent, equal) < 1e-5
    assert difference(api.gqa(parent, kv_heads=2, pool="aligned").save(tmp_path / "out"), parent) < 1e-5


@pytest.mark.parametrize("family", ["qwen3", "olmo2", "gemma3_text"])
def test_values_are_aligned_where_keys_are_normalised(tiny, tmp_path, family):
    equal = with_heads(tiny(family, **ALL), tmp_path / "equal", [0, 0, 1, 1])
    parent = turned(equal, tmp_path / "parent", keys=False)
    assert difference(parent, equal) < 1e-5
    model = api.gqa(parent, kv_heads=2, pool="aligned")
    assert any("normalised" in note and "values alone" in note for note in model.checkpoint.notes)
    assert difference(model.save(tmp_path / "out"), parent) < 1e-5


def test_without_rope_any_basis_of_keys_is_undone(tiny, tmp_path):
    """A BERT, its pooled heads copied back over their groups: no key bias, values' bias folded, any map free."""
    equal = with_heads(tiny("bert"), tmp_path / "equal", [0, 0, 1, 1])
    parent = turned(equal, tmp_path / "parent")
    assert difference(parent, equal) < 1e-4  # of what a map does to float32 after layer norms
    checkpoint = api.open(parent).checkpoint
    for pool in ("mean", "aligned"):
        child = emulated(checkpoint, gqa.Config(kv_heads=2, pool=pool))
        out = api.Model(str(parent), child).save(tmp_path / pool)
        assert (difference(out, parent) < 1e-4) == (pool == "aligned")
    assert not tensors(out)["encoder.layer.0.attention.self.key.bias"].any()


@pytest.mark.parametrize("family", ["llama", "qwen2", "olmo2"])
def test_there_and_back(tiny, tmp_path, family):
    """Repeated heads are equal, so that pooling them gives the parent back bit for bit."""
    parent = tiny(family)
    up = api.gqa(parent, kv_heads=4)
    assert up.job().plan.counts["computed"]["tensors"] == 0
    back = api.gqa(up.save(tmp_path / "up"), kv_heads=2).save(tmp_path / "back")
    was, now = load_torch(parent / "model.safetensors"), load_torch(back / "model.safetensors")
    assert was.keys() == now.keys()
    assert all((was[name] == now[name]).all() for name in was)


# -- lossy, and measured ---------------------------------------------------------------------------------------


def told(model, tmp_path, name):
    """(error of scores, error of output) of each layer."""
    model.save(tmp_path / name)
    return np.array([list(found.values()) for found in model.checkpoint.told.values()])


@pytest.mark.parametrize("family", KV_HEADS)
def test_alignment_loses_less_and_heads_alike_no_more(tiny, tmp_path, family):
    parent = tiny(family, **ALL)
    mean = told(api.gqa(parent, kv_heads=2), tmp_path, "mean")
    first = told(api.gqa(parent, kv_heads=2, pool="first"), tmp_path, "first")
    aligned = told(api.gqa(parent, kv_heads=2, pool="aligned"), tmp_path, "aligned")
    similar = told(api.gqa(parent, kv_heads=2, pool="aligned", grouping="similar"), tmp_path, "similar")
    assert mean.shape == (3, 2)
    assert (aligned[:, 1] < mean[:, 1]).all()
    assert (aligned[:, 0] <= mean[:, 0] * (1 + 1e-6)).all()
    assert (mean < first * 1.05).all()
    assert ((similar**2).sum(axis=1) <= (aligned**2).sum(axis=1) * (1 + 1e-6)).all()


def test_what_loses_more_names_what_loses_less(tiny):
    for pool in ("mean", "first", "random"):
        notes = api.gqa(tiny("llama"), kv_heads=1, pool=pool).checkpoint.notes
        assert any(note.startswith(f"--pool aligned --data TEXT loses less than {pool}") for note in notes)
    for options in ({"kv_heads": 1, "pool": "aligned"}, {"kv_heads": 4}):
        notes = api.gqa(tiny("llama"), **options).checkpoint.notes
        assert not any("--pool aligned" in note for note in notes)


def test_the_error_told_is_that_of_the_weights(tiny, tmp_path):
    """Of values, for white noise before the norm: |O (V - pooled V) g| / |O V g|, all heads beside each other."""
    parent = tiny("llama", **ALL)
    errors = told(api.gqa(parent, kv_heads=2), tmp_path, "out")[:, 1]
    was, now = tensors(parent), tensors(tmp_path / "out")
    for layer, error in enumerate(errors):
        name = f"model.layers.{layer}.self_attn."
        o = was[name + "o_proj.weight"].reshape(32, 4, 8).transpose(1, 0, 2)
        gain = was[f"model.layers.{layer}.input_layernorm.weight"]
        v = was[name + "v_proj.weight"].reshape(4, 8, 32) * gain
        pooled = np.repeat(now[name + "v_proj.weight"].reshape(2, 8, 32), 2, axis=0) * gain
        assert error == pytest.approx(np.linalg.norm(o @ (v - pooled)) / np.linalg.norm(o @ v), rel=1e-4)


def test_what_was_measured_is_kept_and_told(tiny, tmp_path):
    parent = tiny("llama")
    out = api.gqa(parent, kv_heads=1, pool="aligned").save(tmp_path / "out")
    manifest = json.loads((out / "rekindle.json").read_text())
    assert list(manifest["measured"]) == [f"layer {layer}, 2 to 1 key-value heads" for layer in range(3)]
    assert "error of attention output" in (out / "README.md").read_text()
    found = read_header(out / "measurements" / "found.safetensors")[0]
    assert sum(name.endswith("/keys.encode") for name in found) == 3
    again = api.gqa(parent, kv_heads=1, pool="aligned").save(tmp_path / "again", measurements=str(out))
    assert (out / "model.safetensors").read_bytes() == (again / "model.safetensors").read_bytes()
    assert json.loads((again / "rekindle.json").read_text())["measured"] == manifest["measured"]


@pytest.mark.parametrize("pool", ["mean", "aligned"])
def test_restored_norms_are_those_of_the_members(tiny, tmp_path, pool):
    """For values as the output projection reads them, group by group."""
    parent = tiny("llama", **ALL)
    out = api.gqa(parent, kv_heads=2, pool=pool, restore_norm=True).save(tmp_path / "out")
    was, now = tensors(parent), tensors(out)
    for layer in range(3):
        norms = []
        for weights, heads in ((was, 4), (now, 2)):
            o = weights[f"model.layers.{layer}.self_attn.o_proj.weight"].reshape(32, 4, 8).transpose(1, 0, 2)
            v = weights[f"model.layers.{layer}.self_attn.v_proj.weight"].reshape(heads, 8, 32)
            v = v * weights[f"model.layers.{layer}.input_layernorm.weight"]
            norms.append(np.square(o @ np.repeat(v, 4 // heads, axis=0)).reshape(2, -1).sum(axis=1))
        np.testing.assert_allclose(norms[1], norms[0], rtol=1e-4)


def test_random_heads_have_the_spread_of_the_parents(tiny, tmp_path):
    parent = tiny("llama", **ALL)
    out = api.gqa(parent, kv_heads=2, pool="random").save(tmp_path / "out")
    was, now = tensors(parent), tensors(out)
    name = "model.layers.1.self_attn.k_proj.weight"
    assert now[name].std() == pytest.approx(was[name].std(), rel=0.1)
    assert abs(np.corrcoef(now[name].ravel(), was[name][:16].ravel())[0, 1]) < 0.2
    other = tensors(api.gqa(parent, kv_heads=2, pool="random", seed=1).save(tmp_path / "other"))
    assert (other[name] != now[name]).all()


def test_only_keys_and_values_are_calculated(tiny):
    counts = api.gqa(tiny("llama", **ALL), kv_heads=2).job().plan.counts
    assert counts["computed"]["tensors"] == 2 * 3
    assert api.gqa(tiny("llama", **ALL), kv_heads=2, pool="first").job().plan.counts["computed"]["tensors"] == 0


@pytest.mark.parametrize("family", ["qwen3", "olmoe"])
def test_bfloat16_and_clipped_attention_pool_too(tiny, tmp_path, family):
    changes = ALL | ({"clip_qkv": 1.0} if family == "olmoe" else {})
    model = api.gqa(tiny(family, dtype="bfloat16", **changes), kv_heads=2, pool="aligned")
    assert any(("clipped" if family == "olmoe" else "normalised") in note for note in model.checkpoint.notes)
    assert api.verify(model.save(tmp_path / "out"), against=tiny(family, dtype="bfloat16", **changes), tokens=128).held


def test_weights_that_are_no_numbers_are_refused(tiny, tmp_path):
    from safetensors.numpy import save_file

    parent = api.rewrite(tiny("llama")).save(tmp_path / "parent")
    spoilt = tensors(parent)
    spoilt["model.layers.1.self_attn.v_proj.weight"][3, 3] = np.nan
    save_file(spoilt, parent / "model.safetensors")
    with pytest.raises(RekindleError, match="attention of layer 1 has NaN"):
        api.gqa(parent, kv_heads=1, pool="aligned").save(tmp_path / "out")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["parent"]


# -- moments ---------------------------------------------------------------------------------------------------


def test_repeated_heads_share_their_gradient(tiny):
    s = api.open(tiny("llama")).checkpoint.settings
    child = api.gqa(tiny("llama"), kv_heads=4).checkpoint
    leaf = api.open(tiny("llama")).checkpoint[0]["attn.k"]
    first, second = (child[0]["attn.k"].moment(order, lambda leaf, order: leaf) for order in (1, 2))
    assert (first.by, second.by) == (1 / 2, 1 / 4)
    assert first.x.shape == (4 * s.head_dim, s.hidden_size)
    assert {x.name for x in first.leaves()} == {leaf.name}


def test_pooled_heads_start_with_empty_moments_and_queries_keep_theirs(tiny):
    def of(part, **options):
        child = api.gqa(tiny("llama", **ALL), kv_heads=2, **options).checkpoint
        return list(child[0][part].moment(1, lambda leaf, order: leaf).leaves())

    assert not of("attn.k")
    assert not of("attn.v")
    assert of("attn.q", grouping="similar")
    assert of("attn.o", grouping="similar")
    assert not of("attn.q", pool="aligned")


# -- refused ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("family", "changes", "options", "words", "hint"),
    [
        ("llama", ALL, {"kv_heads": 3}, "4 query heads cannot share 3", "--kv-heads 1, 2 or 4"),
        ("llama", ALL, {"kv_heads": 0}, "0 key-value heads are too few", "--kv-heads 1, 2 or 4"),
        ("llama", {}, {"kv_heads": 8}, "8 key-value heads are more than the 4 query heads", "--kv-heads 1, 2 or 4"),
        (
            "llama",
            {"hidden_size": 48, "num_attention_heads": 12, "num_key_value_heads": 6},
            {"kv_heads": 4},
            "6 key-value heads cannot be pooled into 4",
            "--kv-heads 1, 2, 3, 6 or 12",
        ),
        (
            "llama",
            {"hidden_size": 48, "num_attention_heads": 12, "num_key_value_heads": 4},
            {"kv_heads": 6},
            "4 key-value heads cannot be repeated to 6",
            "--kv-heads 1, 2, 4 or 12",
        ),
        ("gpt2", {}, {}, "gpt2 has no number of key-value heads", "llama"),
        ("gpt_neox", {}, {}, "gpt_neox has no number of key-value heads", "llama"),
        ("bert", {}, {}, "bert has no number of key-value heads", "llama"),
        ("deepseek_v3", {}, {}, "latent attention", "llama"),
        ("llama", {}, {"kv_heads": 4, "data": "stdlib"}, "--data would have no effect", "leave --data out"),
        ("llama", {}, {"kv_heads": 2, "grouping": "similar"}, "--grouping similar would have", "leave --grouping"),
        ("llama", {}, {"pool": "random", "restore_norm": True}, "--restore-norm would have", "leave --restore-norm"),
        ("llama", {}, {"pool": "random", "data": "stdlib"}, "--data would have", "leave --data out"),
        ("llama", {}, {"pool": "first", "restore_norm": True}, "--restore-norm would have", "leave --restore-norm"),
        ("llama", {}, {"data_tokens": 0}, "data_tokens is 0", "--data-tokens 64k"),
    ],
)
def test_refused_with_what_to_type(tiny, family, changes, options, words, hint):
    with pytest.raises(RekindleError, match=words) as refused:
        api.gqa(tiny(family, **changes), **({"kv_heads": 1} | options))
    assert hint in refused.value.hint


def test_all_that_is_wrong_is_said_at_once(tiny):
    with pytest.raises(RekindleError, match="3 problems") as refused:
        api.gqa(tiny("llama"), kv_heads=5, data="stdlib", restore_norm=True)
    assert "more than the 4 query heads" in str(refused.value)


def test_text_is_run_through_the_checkpoint_on_disk_alone(tiny):
    deeper = api.apply("grow-depth", tiny("llama"), factor=2)
    with pytest.raises(RekindleError, match="earlier steps have changed"):
        api.gqa(deeper, kv_heads=1, pool="aligned", data="stdlib")
    assert api.gqa(deeper, kv_heads=1, pool="aligned").checkpoint.settings.num_layers == 6


def test_settings_of_the_child_say_its_heads(tiny, tmp_path):
    out = api.gqa(tiny("qwen3_moe"), kv_heads=1).save(tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["num_key_value_heads"] == 1
    child, parent = (api.open(folder).checkpoint.settings for folder in (out, tiny("qwen3_moe")))
    assert child == replace(parent, num_kv_heads=1)


# -- a decoder that looks at what was read ---------------------------------------------------------------------------


@pytest.mark.parametrize("pool", ["mean", "first", "aligned"])
def test_cross_attention_is_pooled_with_self_attention(tiny, tmp_path, pool):
    """Heads that were repeated are pooled into what they were: nothing is lost, in either attention."""
    parent = tiny("t5gemma")
    wide = api.gqa(parent, kv_heads=4, tower="decoder").save(tmp_path / "wide")
    assert api.verify(wide, against=parent, tokens=128).held
    again = api.gqa(wide, kv_heads=2, pool=pool, tower="decoder").save(tmp_path / "again")
    verdict = api.verify(again, against=parent, tokens=128)
    assert verdict.promise == "lossy"
    assert verdict.relative_difference < 2e-5
    config = json.loads((again / "config.json").read_text())
    assert (config["decoder"]["num_key_value_heads"], config["encoder"]["num_key_value_heads"]) == (2, 2)


def test_what_each_attention_loses_is_told(tiny, tmp_path):
    model = api.gqa(tiny("t5gemma"), kv_heads=1, pool="aligned", tower="decoder")
    model.save(tmp_path / "out")
    told = model.checkpoint.told
    assert sum("cross-attention" in row for row in told) == len(told) / 2 == 3
    assert all(0 < error < 1.5 for row in told.values() for error in row.values())


@pytest.mark.slow
def test_alignment_loses_less_in_cross_attention_too(tiny, tmp_path):
    """By logits, of heads that are one up to a map each: plain means mix them, alignment finds the map."""
    parent = tiny("t5gemma", seed=3)
    tensors, draw = load_torch(parent / "model.safetensors"), torch.Generator().manual_seed(0)
    for layer in range(3):
        at = f"model.decoder.layers.{layer}.cross_attn"
        k, v = tensors[f"{at}.k_proj.weight"], tensors[f"{at}.v_proj.weight"]
        for x, reads, axis in ((k, tensors[f"{at}.q_proj.weight"], 0), (v, tensors[f"{at}.o_proj.weight"], 1)):
            turn = torch.linalg.qr(torch.randn(8, 8, generator=draw))[0]
            x[8:] = turn @ x[:8]
            both = reads[16:] if axis == 0 else reads[:, 16:].T
            both.copy_(torch.cat([turn @ part for part in both.split(8)]))
    shutil.copytree(parent, tmp_path / "alike")
    save_file(tensors, tmp_path / "alike" / "model.safetensors", metadata={"format": "pt"})
    lost = {}
    for pool in ("mean", "aligned"):
        model = api.gqa(tmp_path / "alike", kv_heads=1, pool=pool, tower="decoder")
        model.save(tmp_path / pool)
        rows = {row: numbers for row, numbers in model.checkpoint.told.items() if "cross" in row}
        lost[pool] = max(error for numbers in rows.values() for error in numbers.values())
    assert lost["aligned"] < 1e-3 < 0.3 < lost["mean"]


# -- classes that have no number of key-value heads ------------------------------------------------------------------

T5_HEADS = re.compile(r"decoder\.block\.\d\.layer\.[01]\.(SelfAttention|EncDecAttention)\.[kv]\.weight")


@pytest.mark.parametrize("pool", ["mean", "first", "aligned", "random"])
@pytest.mark.parametrize("family", ["t5", "umt5"])
def test_repeated_heads_of_a_t5_are_one_for_all_of_their_queries(tiny, tmp_path, family, pool):
    once = api.gqa(tiny(family), kv_heads=2, pool=pool, repeated=True, tower="decoder").save(tmp_path / "once")
    stored = load_torch(once / "model.safetensors")
    heads = {name: x.view(2, 2, 8, 32) for name, x in stored.items() if T5_HEADS.fullmatch(name)}
    assert len(heads) == 3 * 2 * 2  # layers, attentions, keys and values
    assert all(torch.equal(x[:, 0], x[:, 1]) for x in heads.values())
    assert json.loads((once / "config.json").read_text())["repeated_kv_heads"] == {"decoder": 2}
    if pool in ("mean", "aligned"):  # what is repeated is pooled again without loss
        again = api.gqa(once, kv_heads=2, pool=pool, repeated=True, tower="decoder").save(tmp_path / "again")
        assert api.verify(again, against=once, tokens=600).relative_difference < 2e-5


def test_training_moves_repeated_heads_as_one(tiny, tmp_path):
    from rekindle.apply.load import load_model
    from rekindle.store.folder import open_folder
    from rekindle.train.ties import share_heads

    out = api.gqa(tiny("t5"), kv_heads=1, repeated=True, tower="decoder").save(tmp_path / "out")
    model = load_model(open_folder(out), output="seq2seq").train()
    share_heads(model)
    before = {name: p.detach().clone() for name, p in model.named_parameters()}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-2)
    draw = torch.Generator().manual_seed(0)
    for _ in range(3):
        ids = torch.randint(3, 64, (4, 12), generator=draw)
        model(input_ids=ids, labels=ids.flip(1)).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    moved = {name: p for name, p in model.named_parameters() if T5_HEADS.fullmatch(name)}
    assert len(moved) == 12
    for name, p in moved.items():
        heads = p.view(4, 8, 32)
        assert all(torch.equal(heads[0], head) for head in heads[1:]), name
        assert not torch.equal(p, before[name])


@pytest.mark.parametrize(
    ("family", "options", "words"),
    [
        ("t5", {"tower": "decoder"}, "or --repeated, which saves nothing"),
        ("llama", {"repeated": True}, "has a number of key-value heads"),
        ("gpt2", {"repeated": True}, "stand in one tensor with its queries"),
        ("t5", {"tower": "decoder", "repeated": True, "grouping": "similar"}, "cannot change places"),
    ],
)
def test_repeated_heads_are_refused(tiny, family, options, words):
    with pytest.raises(RekindleError, match=words):
        api.gqa(tiny(family), kv_heads=1, **options)
