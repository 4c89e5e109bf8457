"""Accounting: every target filled once, every source used or named; whatever the file's layout."""

from __future__ import annotations

import json
import shutil

import pytest
from safetensors.torch import load_file, save_file

from rekindle import api
from rekindle.anatomy import Role
from rekindle.edit import Fill, plan
from rekindle.errors import RekindleError


def edited(source, to, change):
    """A copy of a checkpoint with its tensors changed."""
    shutil.copytree(source, to)
    tensors = load_file(to / "model.safetensors")
    change(tensors)
    save_file(tensors, to / "model.safetensors", metadata={"format": "pt"})
    return to


def test_unfilled_unknown_and_misshaped_are_all_named(tiny):
    child = api.open(tiny("llama")).checkpoint
    del child.tensors[Role("norm")]
    child.tensors[Role("router", 0)] = Fill("F32", (4, 32), 0.0)
    child.tensors[Role("attn.q", 1)] = Fill("F32", (4, 4), 0.0)
    with pytest.raises(RekindleError) as error:
        plan(child)
    for words in ("3 problems", "Nothing fills the norm", "no router of layer 0", "attn.q of layer 1 would be [4, 4]"):
        assert words in str(error.value)


def test_missing_extra_and_misshaped_tensors_of_a_source_are_all_named(tiny, tmp_path):
    def spoil(tensors):
        del tensors["model.norm.weight"]
        tensors["model.layers.0.self_attn.q_norm.weight"] = tensors["model.layers.0.input_layernorm.weight"].clone()
        tensors["lm_head.weight"] = tensors["lm_head.weight"][:8].clone()

    folder = edited(tiny("llama"), tmp_path / "spoilt", spoil)
    with pytest.raises(RekindleError) as error:
        api.open(folder)
    for words in ("The norm is missing", "no tensor model.layers.0.self_attn.q_norm.weight", "[8, 32]", "[64, 32]"):
        assert words in str(error.value)


def test_old_buffers_and_a_tied_head_are_named_as_dropped(tiny, tmp_path):
    def add(tensors):
        tensors["model.layers.0.self_attn.rotary_emb.inv_freq"] = tensors["model.norm.weight"].clone()
        tensors["lm_head.weight"] = tensors["model.embed_tokens.weight"].clone()

    folder = edited(tiny("llama", tie_word_embeddings=True), tmp_path / "old", add)
    dropped = api.rewrite(folder).job().plan.dropped
    assert dropped == ["lm_head.weight", "model.layers.0.self_attn.rotary_emb.inv_freq"]


def test_base_model_names_need_no_prefix(tiny, tmp_path):
    def strip(tensors):
        for name in list(tensors):
            tensors[name.removeprefix("model.")] = tensors.pop(name)

    source = tiny("llama", tie_word_embeddings=True)
    folder = edited(source, tmp_path / "bare", strip)
    out = api.rewrite(folder).save(tmp_path / "out")
    before, after = load_file(source / "model.safetensors"), load_file(out / "model.safetensors")
    assert before.keys() == after.keys()
    assert all((before[name] == after[name]).all() for name in before)


@pytest.mark.parametrize("family", ["mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "flex_olmo"])
def test_fused_and_per_expert_files_are_one_checkpoint(tiny, tmp_path, family):
    """Stacked experts (transformers v5) -> one by one -> stacked: bit for bit, and each loads in transformers."""
    separate, fused = tiny(family), tiny(family, fused=True)
    apart = api.rewrite(fused).save(tmp_path / "apart")
    together = api.rewrite(separate).save(tmp_path / "together", fused=True)
    for made, expected in ((apart, separate), (together, fused)):
        ours, theirs = load_file(made / "model.safetensors"), load_file(expected / "model.safetensors")
        assert ours.keys() == theirs.keys()
        assert all((ours[name] == theirs[name]).all() for name in ours)
    verdict = api.verify(together, against=separate, tokens=128)
    assert verdict.held
    assert verdict.relative_difference == 0


def test_config_and_weights_must_agree(tiny, tmp_path):
    folder = edited(tiny("llama"), tmp_path / "wider", lambda tensors: None)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"intermediate_size": 64}))
    with pytest.raises(RekindleError, match=r"is \[48, 32\], but the config says \[64, 32\]"):
        api.open(folder)


def test_digest_names_the_bytes(tiny):
    def digest(**options):
        return api.upcycle(tiny("llama"), experts=4, **options).job().plan.digest()

    assert digest() == digest()
    assert len({digest(), digest(seed=1), digest(router_std=0.1), digest(init="noise"), digest(top_k=1)}) == 5
