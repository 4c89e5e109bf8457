"""An encoder-decoder by itself: those that work are found to, and each fault is found."""

from __future__ import annotations

import json
import shutil

import pytest
import torch
from click.testing import CliRunner
from safetensors.torch import load_file, save_file
from tiny_models import ENCODER_DECODERS

import rekindle
from rekindle import api
from rekindle.apply import sound
from rekindle.cli.verbs import rekindle as command
from rekindle.errors import RekindleError

EVEN = {"num_decoder_layers": 2}  # of a t5: transformers' cache has as many layers as the encoder


def changed(folder, out, change):
    """A copy of a checkpoint, some tensors of which are another."""
    shutil.copytree(folder, out)
    tensors = load_file(out / "model.safetensors")
    for name, x in tensors.items():
        change(name, x)
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    return out


@pytest.fixture(scope="module")
def pair(tiny, tmp_path_factory):
    return rekindle.warm_start(tiny("bert"), "same").save(tmp_path_factory.mktemp("pair") / "out")


@pytest.mark.parametrize("family", ENCODER_DECODERS)
def test_transformers_own_are_sound(tiny, family):
    found = api.sound(tiny(family, **(EVEN if family in ("t5", "mt5", "umt5") else {})))
    assert not list(found.problems())
    assert found.source > 1e-3
    assert found.cross_trained == found.cross_tensors > 0
    assert found.cached is True


@pytest.mark.parametrize("cross", ["random", "copy"])
@pytest.mark.parametrize(("reads", "writes"), [("bert", "same"), ("roberta", "gpt2"), ("gemma2", "same")])
def test_warm_starts_are_sound(tiny, tmp_path, reads, writes, cross):
    if (reads, cross) == ("roberta", "copy"):
        cross = "silent"
    out = rekindle.warm_start(tiny(reads), writes if writes == "same" else tiny(writes), cross=cross).save(
        tmp_path / "o"
    )
    found = api.sound(out)
    assert not list(found.problems())
    assert (found.source == 0) == found.silent == (cross == "silent")
    assert found.cross_trained


def test_what_reads_nothing_is_found(pair, tmp_path):
    def deaf(name, x):
        if "crossattention.output.dense" in name:
            x.zero_()

    found = api.sound(changed(pair, tmp_path / "deaf", deaf))
    assert list(found.problems()) == ["what it writes does not depend on what it reads"]


def test_cross_attention_that_learns_nothing_is_found(tiny, tmp_path):
    def dead(name, x):
        if "EncDecAttention" in name:
            x.zero_()

    found = api.sound(changed(tiny("t5", **EVEN), tmp_path / "dead", dead))
    assert found.cross_trained == 0
    assert "no gradient reaches its cross-attention" in list(found.problems())


def test_a_decoder_that_looks_ahead_is_found(pair, monkeypatch):
    """What `train` shows is shown: a shift that was forgotten is one more way to see what comes."""
    shown = sound.two_towers

    def unshifted(model, ids, mask, labels):
        return shown(model, ids, mask, labels) | {"decoder_input_ids": labels.clamp(min=0).roll(-1, 1)}

    monkeypatch.setattr(sound, "two_towers", unshifted)
    assert any("sees what it is to write" in problem for problem in api.sound(pair).problems())


def test_padding_that_counts_is_found(pair, monkeypatch):
    shown = sound.two_towers

    def all_seen(model, ids, mask, labels):
        return shown(model, ids, torch.ones_like(mask), labels)

    monkeypatch.setattr(sound, "two_towers", all_seen)
    assert any("padding counts" in problem for problem in api.sound(pair).problems())


def test_a_model_that_cannot_write_is_found(pair, tmp_path):
    mute = shutil.copytree(pair, tmp_path / "mute")
    (mute / "generation_config.json").unlink()
    config = json.loads((mute / "config.json").read_text())
    for key in ("decoder_start_token_id", "eos_token_id", "pad_token_id"):
        config.pop(key, None)
        config["decoder"].pop(key, None)
    config["decoder"]["bos_token_id"] = None
    config["pad_token_id"] = 0
    (mute / "config.json").write_text(json.dumps(config))
    with pytest.raises(RekindleError, match="decoder_start_token_id is null"):
        api.sound(mute)


@pytest.mark.parametrize("pad", ["same", "apart"])
def test_a_text_that_begins_with_its_padding_is_all_seen(tiny, tmp_path, pad):
    """T5Gemma hides what looks like padding; where that is a text's first token, it would look ahead from there."""
    out = rekindle.warm_start(tiny("gemma2"), "same", cross="copy").save(tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    if pad == "same":
        config["decoder"]["pad_token_id"] = config["decoder"]["bos_token_id"]
        (out / "config.json").write_text(json.dumps(config))
    found = api.sound(out)
    assert found.ahead == found.padding == 0


def test_tokens_of_a_t5gemma_are_apart(tiny, tmp_path):
    source = tiny("gemma2", pad_token_id=None, bos_token_id=1, eos_token_id=1)
    config = rekindle.warm_start(source, "same").checkpoint.config
    assert (config["decoder"]["bos_token_id"], config["decoder"]["pad_token_id"]) == (1, 63)


def test_the_verb_says_it_and_its_exit_code_too(tiny, pair, tmp_path):
    ran = CliRunner().invoke(command, ["verify", str(pair)])
    assert ran.exit_code == 0
    assert "a gradient in" in ran.output
    as_json = json.loads(CliRunner().invoke(command, ["verify", str(pair), "--format", "json"]).stdout)
    assert as_json["ahead"] == 0
    with pytest.raises(RekindleError, match="looked at beside what it was made of"):
        api.sound(tiny("llama"))
