"""What real models are shown, and what of their outputs is compared."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import transformers
from tiny_models import tiny_config

from rekindle.anatomy.settings import MEANING
from rekindle.apply.probe import PROBES

T5 = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 24, "num_layers": 2, "num_heads": 2, "pad_token_id": 0,
      "decoder_start_token_id": 0, "eos_token_id": 1, "initializer_factor": 1.0}  # fmt: skip


def ids(rows: int = 3, length: int = 10) -> torch.Tensor:
    return torch.randint(2, 64, (rows, length), generator=torch.Generator().manual_seed(0))


def made(name: str, family: str, **sizes: Any) -> Any:
    torch.manual_seed(0)
    return getattr(transformers, name)(transformers.AutoConfig.for_model(family, **sizes)).eval()


def looked_at(output: str, model: Any) -> tuple[torch.Tensor, Any]:
    """(what is compared, what was shown)"""
    probe = PROBES[output]
    shown = probe.shown(ids())
    with torch.no_grad():
        return probe.outputs(model(**probe.inputs(model, shown))), shown


def test_each_kind_of_output_has_a_probe():
    assert set(MEANING["output"]) <= set(PROBES)


def test_a_causal_model_foresees_the_next_token():
    model = made("LlamaForCausalLM", "llama", **tiny_config("llama"))
    outputs, shown = looked_at("causal", model)
    with torch.no_grad():
        expected = model(input_ids=ids(), labels=ids())
    assert torch.equal(outputs, expected.logits)
    assert PROBES["causal"].loss(outputs, shown) == pytest.approx(expected.loss.item(), rel=1e-6)


@pytest.mark.parametrize(
    ("name", "family", "pooled"),
    [("BertModel", "bert", 1), ("LlamaModel", "llama", 0), ("T5EncoderModel", "t5", 0)],
)
def test_a_pooler_is_compared_where_there_is_one(name: str, family: str, pooled: int):
    model = made(name, family, **(T5 if family == "t5" else tiny_config(family)))
    outputs, shown = looked_at("none", model)
    with torch.no_grad():
        expected = model(input_ids=ids())
    assert outputs.shape == (3, 10 + pooled, expected.last_hidden_state.shape[-1])
    assert torch.equal(outputs[:, :10], expected.last_hidden_state)
    assert not pooled or torch.equal(outputs[:, 10], expected.pooler_output)
    assert PROBES["none"].loss(outputs, shown) is None


def test_an_encoder_decoder_reads_with_one_tower_and_foresees_with_the_other():
    model = made("T5ForConditionalGeneration", "t5", **T5)
    outputs, shown = looked_at("seq2seq", model)
    source, labels = ids()[:, :5], ids()[:, 5:].contiguous()
    with torch.no_grad():
        expected = model(input_ids=source, attention_mask=torch.ones_like(source), labels=labels)
    assert torch.equal(outputs, expected.logits)
    assert PROBES["seq2seq"].loss(outputs, shown) == pytest.approx(expected.loss.item(), rel=1e-6)


@pytest.mark.parametrize("tower", ["encoder", "decoder"])
def test_a_change_in_either_tower_is_seen(tower: str):
    model = made("T5ForConditionalGeneration", "t5", **T5)
    before, _ = looked_at("seq2seq", model)
    for name, weight in model.named_parameters():
        if name.startswith(f"{tower}.block"):
            with torch.no_grad():
                weight += 0.05 * torch.randn_like(weight) * weight.abs().mean()
            after, _ = looked_at("seq2seq", model)
            assert not torch.equal(after, before), name
            before = after


def test_the_rule_of_exact():
    probe = PROBES["causal"]
    assert probe.difference(1e-5, 2.0) <= probe.exact < probe.difference(3e-5, 2.0)
    assert probe.difference(0.0, 0.0) == 0
    assert probe.difference(1e-9, 0.0) == math.inf
