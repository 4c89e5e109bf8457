"""Encoder-decoders of two models against transformers' EncoderDecoderModel: names both ways, shapes, outputs."""

from __future__ import annotations

import json

import pytest
import torch
from safetensors import safe_open
from tiny_models import TINY

from rekindle import api
from rekindle.anatomy import PAIRS, family_of, on_disk, runtime_names
from rekindle.apply.load import quietly
from rekindle.errors import RekindleError

SIZES = {key: value for key, value in TINY.items() if key != "num_key_value_heads"}
GPT2 = {"n_embd": 32, "n_layer": 3, "n_head": 4, "n_inner": 48, "n_positions": 64, "vocab_size": 64,
        "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0, "initializer_range": 0.3}  # fmt: skip


def half(kind: str, **changes) -> dict:
    return {**(GPT2 if kind == "gpt2" else SIZES), "model_type": kind, **changes}


def pair(folder, encoder: str, decoder: str, reads=None, writes=None):
    """A tiny one as transformers makes and saves it."""
    from transformers import AutoConfig, EncoderDecoderConfig, EncoderDecoderModel

    own = {"is_decoder": True, "add_cross_attention": True}
    halves = half(encoder, num_hidden_layers=2, **(reads or {})), half(decoder, **own, **(writes or {}))
    torch.manual_seed(0)
    with quietly():
        config = EncoderDecoderConfig.from_encoder_decoder_configs(*(AutoConfig.for_model(**one) for one in halves))
        config.pad_token_id, config.decoder_start_token_id = 0, 1
        model = EncoderDecoderModel(config)
        for name, parameter in model.named_parameters():
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.3)
        model.save_pretrained(folder)
    return folder


@pytest.fixture(scope="module", params=PAIRS, ids="-".join)
def made(request, tmp_path_factory):
    return pair(tmp_path_factory.mktemp("pair") / "model", *request.param)


def read(folder):
    config = json.loads((folder / "config.json").read_text())
    with safe_open(folder / "model.safetensors", "pt") as file:
        return config, {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


def test_table_is_what_transformers_saves(made):
    config, stored = read(made)
    family = family_of(config)
    settings = family.settings(config)
    assert on_disk(family.table(settings), settings) == stored


def test_runtime_names_are_the_parameters(made):
    from transformers import EncoderDecoderModel

    config, _ = read(made)
    parameters = dict(EncoderDecoderModel.from_pretrained(made).named_parameters())
    assert runtime_names(config, parameters).keys() == parameters.keys()


def test_it_is_rewritten_and_verified(made, tmp_path):
    out = api.rewrite(made).save(tmp_path / "out")
    verdict = api.verify(out, against=made, tokens=128)
    assert verdict.promise == "exact"
    assert verdict.held, verdict
    assert verdict.loss_child == pytest.approx(verdict.loss_parent, abs=1e-5)


def test_methods_see_its_towers(made, tmp_path):
    verdict = api.verify(
        api.grow_depth(made, factor=2, order="stack", tower="both").save(tmp_path / "out"), against=made, tokens=128
    )
    assert verdict.held
    assert verdict.promise == "lossy"
    merged = api.merge([made, made]).save(tmp_path / "merged")
    assert api.verify(merged, against=made, tokens=128).relative_difference < 1e-5


def test_halves_of_other_widths_have_a_matrix_between(tmp_path):
    wide = pair(tmp_path / "wide", "bert-generation", "gpt2", reads={"hidden_size": 48})
    config, stored = read(wide)
    family = family_of(config)
    settings = family.settings(config)
    assert (settings.cross_size, settings.cross_projected) == (48, True)
    assert on_disk(family.table(settings), settings) == stored
    assert stored["enc_to_dec_proj.weight"] == (32, 48)
    assert api.verify(api.rewrite(wide).save(tmp_path / "out"), against=wide, tokens=128).held


def test_the_shorter_half_bounds_a_text(tmp_path):
    short = pair(tmp_path / "short", "roberta", "gpt2", reads={"max_position_embeddings": 20})
    assert api.inspect(short)["context"] == 19


def test_halves_that_no_table_knows_are_named(tmp_path):
    with pytest.raises(RekindleError, match="encoder 'electra' with a decoder 'gpt2'"):
        family_of(
            {"model_type": "encoder-decoder", "encoder": {"model_type": "electra"}, "decoder": {"model_type": "gpt2"}}
        )
