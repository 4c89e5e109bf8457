"""Verify block by block: the same numbers in a fraction of the memory."""

from __future__ import annotations

import gc
import json
import shutil
import subprocess
import sys
import weakref

import pytest
import torch
from found.folders import edit_config, rename_all
from safetensors.torch import load_file, save_file
from tiny_models import ENCODERS, FAMILIES, MASKED, PLAIN

from rekindle import api
from rekindle.apply import verify
from rekindle.apply.load import load_model
from rekindle.apply.verify import Weights
from rekindle.errors import RekindleError
from rekindle.store.files import Files

# Runs verify in a process of its own and prints its peak memory.
CODE = """
import json, resource, sys
from rekindle import api
out, parent, blockwise = sys.argv[1:]
verdict = api.verify(out, against=parent, tokens=256, blockwise=blockwise == "True")
print(json.dumps([verdict.held, verdict.loss_child, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024]))
"""


def test_weights_are_made_when_asked_for_and_kept_by_nobody(tiny):
    checkpoint = api.open(tiny("mixtral")).checkpoint
    with Files() as files:
        weights = Weights(checkpoint, "float32", files)
        name = "model.layers.1.mlp.experts.gate_up_proj"
        assert tuple(weights[name].shape) == (4, 96, 32)
        assert weights[name] is not weights[name]
        assert len(weights) == len(list(weights))


@pytest.mark.parametrize("family", FAMILIES)
@pytest.mark.parametrize("blockwise", [False, True])
def test_a_model_is_gone_when_its_outputs_are_there(tiny, family, blockwise, monkeypatch):
    """Parent and child are never in memory together, without waiting for the collector of cycles."""
    made = []

    def watched(make):
        def call(*given, **how):
            model = make(*given, **how)
            made.append(weakref.ref(model))
            return model

        return call

    for make in (verify.load_model, verify._blockwise):
        monkeypatch.setattr(verify, make.__name__, watched(make))
    checkpoint = api.open(tiny(family)).checkpoint
    gc.disable()
    try:
        settings = checkpoint.settings
        image = torch.randn(1, settings.num_channels, *settings.image_size)
        shown = image if settings.num_channels else torch.arange(8)[None]
        assert len(list(verify.run(checkpoint, [shown] * 2, "float32", blockwise))) == 2
        assert [model() for model in made] == [None]
    finally:
        gc.enable()


@pytest.mark.parametrize(
    ("family", "changes"),
    [*((family, {}) for family in (*PLAIN, *ENCODERS, "deepseek_v3")), ("bert", MASKED)],
)
def test_block_by_block_is_the_whole(tiny, tmp_path, family, changes):
    parent = tiny(family, **changes)
    out = api.rewrite(parent).save(tmp_path / "out")
    whole = api.verify(out, against=parent, tokens=128, blockwise=False)
    blockwise = api.verify(out, against=parent, tokens=128, blockwise=True)
    assert blockwise.held
    assert blockwise.relative_difference == 0
    assert blockwise.loss_child == pytest.approx(whole.loss_child, abs=1e-5)


@pytest.mark.parametrize(
    ("changes", "compared", "role"),
    [
        *(({}, "hidden states", role) for role in ("attn.q", "embed_norm", "pooler.bias")),
        *((MASKED, "logits of all tokens", role) for role in ("attn.q", "mlm.dense", "head.bias")),
    ],
    ids=str,
)
def test_every_tensor_of_an_encoder_is_compared(tiny, tmp_path, changes, compared, role):
    parent = tiny("bert", **changes)
    rows = api.open(parent).checkpoint.rows
    name = next(name for key, (name, _, _) in rows.items() if key.part == role)
    out = api.rewrite(parent).save(tmp_path / "out")
    spoilt = load_file(out / "model.safetensors")
    spoilt[name] += 0.01
    save_file(spoilt, out / "model.safetensors", metadata={"format": "pt"})
    verdict = api.verify(out, against=parent, tokens=128)
    assert verdict.held is False
    assert verdict.compared == compared
    assert verdict.loss_parent is verdict.loss_child is None


def test_what_cannot_be_compared_is_refused(tiny):
    for child, words in (
        (tiny("bert", **MASKED), "predicts masked tokens, the parent has no language-model head"),
        (tiny("bert", hidden_size=16), "Hidden states of 16 and 32 dimensions"),
        (tiny("bert", vocab_size=32), "vocabularies differ: 32 and 64"),
    ):
        with pytest.raises(RekindleError, match=words):
            api.verify(child, against=tiny("bert"), tokens=128)


def test_an_encoder_is_not_loaded_as_a_decoder(tiny):
    """transformers would: and train it to copy the token it sees."""
    with pytest.raises(RekindleError, match="predicts masked tokens; needed is one that predicts the next token"):
        load_model(tiny("bert", **MASKED))


@pytest.mark.slow
def test_block_by_block_needs_the_memory_of_a_block(tiny, tmp_path):
    big = {"hidden_size": 512, "intermediate_size": 2048, "num_hidden_layers": 10, "initializer_range": 0.02}
    parent = tiny("llama", dtype="bfloat16", **big)
    out = api.upcycle(parent, experts=4).save(tmp_path / "out")
    weights = 4 * api.inspect(out)["parameters"]["total"]  # bytes of the child in float32
    found = {}
    for blockwise in (False, True):
        command = [sys.executable, "-c", CODE, str(out), str(parent), str(blockwise)]
        found[blockwise] = json.loads(subprocess.run(command, capture_output=True, text=True, check=True).stdout)
    assert found[True][0] is found[False][0] is True
    assert found[True][1] == pytest.approx(found[False][1], abs=1e-5)
    assert weights > 5e8
    assert found[False][2] - found[True][2] > 0.6 * weights


def test_a_model_is_not_verified_against_itself(tiny, tmp_path):
    child = api.rewrite(tiny("llama")).save(tmp_path / "child")
    (tmp_path / "link").symlink_to(child)
    for same in (child, tmp_path / "link"):
        with pytest.raises(RekindleError, match="compared with itself"):
            api.verify(child, against=same)
    assert not (child / "verify.json").exists()


@pytest.mark.parametrize("blockwise", [False, True])
@pytest.mark.parametrize("spoilt", ["pad", "names"])
def test_a_child_that_only_rekindle_can_read_is_not_held(tiny, tmp_path, spoilt, blockwise):
    """What is read here with a note, transformers may not read at all: the promise is one about transformers."""
    from transformers import AutoModelForCausalLM

    child = api.rewrite(tiny("llama")).save(tmp_path / "child")
    if spoilt == "pad":
        edit_config(child, pad_token_id=99)
        with pytest.raises(AssertionError, match="Padding_idx"):
            AutoModelForCausalLM.from_pretrained(child)
    else:
        rename_all(child, lambda name: f"_orig_mod.{name}")
    with pytest.raises(RekindleError) as failed:
        api.verify(child, against=tiny("llama"), tokens=64, blockwise=blockwise)
    assert failed.value.exit_code == 1
    assert "transformers itself cannot load this model" in str(failed.value)
    assert not (child / "verify.json").exists()
    mended = api.rewrite(child).save(tmp_path / "mended")
    assert api.verify(mended, against=child, tokens=64, blockwise=blockwise).held


def test_outputs_that_are_all_zero_are_equal(tiny, tmp_path):
    parent = tmp_path / "zero"
    shutil.copytree(tiny("llama"), parent)
    tensors = load_file(parent / "model.safetensors")
    tensors["lm_head.weight"].zero_()
    save_file(tensors, parent / "model.safetensors", {"format": "pt"})
    out = api.upcycle(parent, experts=2).save(tmp_path / "out")
    assert api.verify(out, against=parent, tokens=64).held
    verdict = api.verify(tiny("llama"), against=parent, tokens=64)
    assert verdict.relative_difference == float("inf")


def test_many_tokens_are_long_sequences(tiny, tmp_path):
    """What only tokens far apart see is compared too: a window that is new, and wider than 128."""
    parent = tiny("mistral", max_position_embeddings=2048)
    out = api.rewrite(parent).save(tmp_path / "out")
    edit_config(out, sliding_window=130)
    assert api.verify(out, against=parent, tokens=1024).held
    verdict = api.verify(out, against=parent, tokens="8k")
    assert not verdict.held
    assert "in sequences of 1000" in verdict.text


def test_a_config_that_asks_for_tuples(tiny, tmp_path):
    parent = tmp_path / "parent"
    shutil.copytree(tiny("llama"), parent)
    edit_config(parent, return_dict=False)
    out = api.upcycle(parent, experts=2).save(tmp_path / "out")
    assert api.verify(out, against=parent, tokens=64).held
    assert "return_dict" not in json.loads((out / "config.json").read_text())


@pytest.mark.parametrize("tower", ["encoder", "decoder"])
@pytest.mark.parametrize("family", ["t5", "mt5", "umt5", "switch_transformers"])
def test_tokens_as_far_apart_as_a_bias_can_tell_are_compared(tiny, tmp_path, family, tower):
    """The bias of all distances from 128 on is one like the others."""
    parent = tiny(family)
    out = api.rewrite(parent).save(tmp_path / "out")
    assert api.verify(out, against=parent).held
    spoilt = load_file(out / "model.safetensors")
    for name, biases in spoilt.items():
        if name.startswith(tower) and "relative_attention_bias" in name:
            biases[-1] += 1
    save_file(spoilt, out / "model.safetensors", metadata={"format": "pt"})
    verdict = api.verify(out, against=parent)
    assert verdict.held is False
    assert "in sequences of 258" in verdict.text


def test_texts_for_models_of_other_positions_stay_as_short_as_they_were(tiny):
    for family, length in (("llama", 64), ("bert", 64), ("t5gemma", 64)):
        assert f"in sequences of {length}" in api.verify(tiny(family), against=tiny(family, seed=1)).text


UNSAID = [("t5", "decoder_start_token_id"), ("umt5", "pad_token_id"), ("switch_transformers", "decoder_start_token_id"),
          ("t5gemma", "decoder.bos_token_id"), ("t5gemma2", "decoder.pad_token_id")]  # fmt: skip


@pytest.mark.parametrize("blockwise", [False, True])
@pytest.mark.parametrize(("family", "key"), UNSAID)
def test_a_decoder_that_is_told_no_first_token_is_verified_all_the_same(tiny, tmp_path, family, key, blockwise):
    """transformers itself cannot shift labels then; of one that is told, the first is what it says."""
    section, _, name = key.rpartition(".")
    parent = shutil.copytree(tiny(family), tmp_path / "parent")
    config = json.loads((parent / "config.json").read_text())
    (config[section] if section else config)[name] = None
    (parent / "config.json").write_text(json.dumps(config))
    out = api.rewrite(parent).save(tmp_path / "out")
    verdict = api.verify(out, against=parent, tokens=64, blockwise=blockwise)
    assert verdict.held
    if name == "pad_token_id":  # which no label needs here
        told = api.verify(tiny(family), against=tiny(family, seed=1), tokens=64, blockwise=blockwise)
        assert verdict.loss_child == pytest.approx(told.loss_child, rel=1e-5)
    spoilt = load_file(out / "model.safetensors")
    spoilt[next(n for n in spoilt if n.startswith(("decoder.block.1", "model.decoder.layers.1")))] += 0.1
    save_file(spoilt, out / "model.safetensors", metadata={"format": "pt"})
    assert api.verify(out, against=parent, tokens=64, blockwise=blockwise).held is False
