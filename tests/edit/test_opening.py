"""Files as they lie on the hub: without the base model's prefix, with buffers of older libraries."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file
from tiny_models import DECODERS, MASKED

from rekindle import api
from rekindle.anatomy import FAMILIES
from rekindle.errors import RekindleError
from rekindle.store.header import read_header


def edited(source, to, change):
    """A copy of a checkpoint with its tensors changed."""
    shutil.copytree(source, to)
    tensors = load_file(to / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


@pytest.mark.parametrize("family", DECODERS)
def test_the_base_models_prefix_may_be_missing(tiny, tmp_path, family):
    prefix = FAMILIES[family].prefix

    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix(prefix)] = tensors.pop(name)

    bare = api.rewrite(edited(tiny(family), tmp_path / "bare", strip)).job().plan
    whole = api.rewrite(tiny(family)).job().plan
    assert bare.tensors.keys() == whole.tensors.keys()
    assert bare.digest() == whole.digest()
    assert bare.dropped == []


def test_a_name_with_and_without_prefix_is_one_tensor_too_many(tiny, tmp_path):
    def double(tensors):
        tensors["wte.weight"] = tensors["transformer.wte.weight"].clone()

    with pytest.raises(RekindleError, match=r"wte.weight and transformer.wte.weight are the same tensor"):
        api.open(edited(tiny("gpt2"), tmp_path / "double", double))


@pytest.mark.parametrize(
    ("family", "buffers"),
    [
        ("gpt2", ["transformer.h.0.attn.bias", "transformer.h.1.attn.masked_bias", "lm_head.weight"]),
        (
            "gpt_neox",
            [f"gpt_neox.layers.2.attention.{name}" for name in ("bias", "masked_bias", "rotary_emb.inv_freq")],
        ),
    ],
)
def test_buffers_of_older_libraries_and_a_tied_head_are_left_behind(tiny, tmp_path, family, buffers):
    import torch

    def add(tensors):
        tensors.update({name: torch.ones(2) for name in buffers})
        if "lm_head.weight" in buffers:
            tensors["lm_head.weight"] = tensors["transformer.wte.weight"].clone()

    planned = api.rewrite(edited(tiny(family), tmp_path / "old", add)).job().plan
    assert planned.dropped == sorted(buffers)


def test_layers_that_guess_further_tokens_are_left_behind(tiny, tmp_path):
    """DeepSeek-V3 has one beyond num_hidden_layers; no second one, and no other family may have any."""

    def add(layer):
        def change(tensors):
            for name in list(tensors):
                if ".layers.2." in name:
                    tensors[name.replace(".layers.2.", f".layers.{layer}.")] = tensors[name].clone()
            tensors[f"model.layers.{layer}.eh_proj.weight"] = tensors["lm_head.weight"].clone()

        return change

    folder = edited(tiny("deepseek_v3"), tmp_path / "whole", add(3))
    model = api.rewrite(folder)
    assert len(model.job().plan.dropped) == 1 + len([r for r in model.checkpoint.rows if r.layer == 2])
    assert all(name.startswith("model.layers.3.") for name in api.inspect(folder)["unused"])
    assert model.checkpoint.config["num_nextn_predict_layers"] == 0
    assert api.verify(model.save(tmp_path / "out"), against=tiny("deepseek_v3"), tokens=128).held
    for family, layer in (("deepseek_v3", 4), ("qwen3_moe", 3)):
        with pytest.raises(RekindleError, match=rf"no tensor model.layers.{layer}.eh_proj.weight"):
            api.open(edited(tiny(family), tmp_path / family, add(layer)))


def test_a_bert_of_the_hub_has_old_names_and_both_heads(tiny, tmp_path):
    """As bert-base-uncased: saved for pretraining, its config names the class with the masked head."""
    import torch

    def older(tensors):
        for name in list(tensors):
            old = name.replace("LayerNorm.weight", "LayerNorm.gamma").replace("LayerNorm.bias", "LayerNorm.beta")
            tensors[old] = tensors.pop(name)
        tensors["bert.pooler.dense.weight"] = torch.ones(32, 32)
        tensors["bert.pooler.dense.bias"] = torch.ones(32)
        tensors["cls.seq_relationship.weight"] = torch.ones(2, 32)
        tensors["cls.predictions.decoder.weight"] = tensors["bert.embeddings.word_embeddings.weight"].clone()
        tensors["bert.embeddings.position_ids"] = torch.arange(64)[None]

    parent = tiny("bert", **MASKED)
    model = api.rewrite(edited(parent, tmp_path / "old", older))
    assert len(model.job().plan.dropped) == 5
    before = load_file(parent / "model.safetensors")
    after = load_file(model.save(tmp_path / "out") / "model.safetensors")
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


def test_a_bert_without_a_head_may_carry_the_prefix(tiny, tmp_path):
    def prefixed(tensors):
        for name in list(tensors):
            tensors[f"bert.{name}"] = tensors.pop(name)

    out = api.rewrite(edited(tiny("bert"), tmp_path / "prefixed", prefixed)).save(tmp_path / "out")
    assert json.loads((out / "config.json").read_text())["architectures"] == ["BertModel"]
    assert load_file(out / "model.safetensors").keys() == load_file(tiny("bert") / "model.safetensors").keys()
    assert api.verify(out, against=tiny("bert"), tokens=128).held


def test_other_classes_of_bert_are_refused(tiny, tmp_path):
    folder = edited(tiny("bert"), tmp_path / "other", lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    for change, words in (
        ({"architectures": ["BertForSequenceClassification"]}, "class BertForSequenceClassification is not known"),
        ({"is_decoder": True}, "is_decoder is True: of bert only models with False are known"),
    ):
        (folder / "config.json").write_text(json.dumps(config | change))
        with pytest.raises(RekindleError, match=words):
            api.open(folder)


def test_the_router_bias_stays_in_float32(tiny, tmp_path):
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    stored = {"before": tiny("deepseek_v3", dtype="bfloat16")}
    stored["kept"] = api.rewrite(stored["before"]).save(tmp_path / "kept")
    stored["narrowed"] = api.rewrite(tiny("deepseek_v3"), dtype="bfloat16").save(tmp_path / "narrowed")
    dtypes = {which: read_header(folder / "model.safetensors")[0] for which, folder in stored.items()}
    assert {header[name].dtype for header in dtypes.values()} == {"F32"}
    assert {header["model.norm.weight"].dtype for header in dtypes.values()} == {"BF16"}
    assert api.verify(stored["kept"], against=stored["before"], tokens=128, blockwise=True).stored_difference == 0


def test_a_bias_that_is_no_buffer_is_not_left_behind(tiny, tmp_path):
    def add(tensors):
        tensors["transformer.h.3.attn.c_attn.bias"] = tensors["transformer.h.0.attn.c_attn.bias"].clone()

    with pytest.raises(RekindleError, match=r"gpt2 has no tensor transformer.h.3.attn.c_attn.bias"):
        api.open(edited(tiny("gpt2"), tmp_path / "more", add))


@pytest.mark.parametrize(
    ("family", "words"),
    [
        ("gemma3_text", "multiplies by its norms' weights"),
        ("gpt_neox", "side by side"),
        ("gpt2", "learned positions"),
        ("bert", "looks back only; the parent looks both ways"),
    ],
)
def test_families_without_a_sparse_twin_are_not_upcycled(tiny, family, words):
    with pytest.raises(RekindleError, match=f"hold a {family}"):
        api.upcycle(tiny(family), experts=4)
    with pytest.raises(RekindleError, match=words):
        api.upcycle(tiny(family), experts=4, target="mixtral")


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {
            "original_max_position_embeddings": 16,
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 3e3,
                "short_factor": [1.0, 1.1, 1.2, 1.3],
                "long_factor": [2.0, 2.1, 2.2, 2.3],
            },
        },
    ],
    ids=["plain", "longrope"],
)
def test_packed_phi3_becomes_experts_of_mixtral(tiny, tmp_path, changes):
    parent = tiny("phi3", **changes)
    model = api.upcycle(parent, experts=4)
    assert model.checkpoint.family.model_type == "mixtral"
    assert api.verify(model.save(tmp_path / "out"), against=parent, tokens=128).held


def test_phi3_that_turns_some_dims_is_refused(tiny):
    parent = tiny("phi3", rope_parameters={"partial_rotary_factor": 0.5, "rope_theta": 1e4})
    with pytest.raises(RekindleError, match="mixtral turns all 8 dims of a head by RoPE; the parent 4"):
        api.upcycle(parent, experts=4)
