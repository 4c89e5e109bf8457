"""RoPE in every spelling: a child turns its queries and keys as transformers reads the parent."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from found.folders import edit_config, logits

from rekindle import api
from rekindle.errors import RekindleError

FACTORS = {"short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.1, 2.2, 2.3]}
LLAMA3 = {"factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 16}
YARN = {"factor": 4.0, "original_max_position_embeddings": 16}
TOP = {"rope_theta": 500.0}

SPELLINGS = {
    "theta on top": TOP,
    "theta on top, as a whole number": {"rope_theta": 500},
    "theta inside": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0}},
    "type": TOP | {"rope_scaling": {"type": "linear", "factor": 2.0}},
    "rope_type": TOP | {"rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "both kinds of type": TOP | {"rope_scaling": {"rope_type": "linear", "type": "dynamic", "factor": 2.0}},
    "scaling beside parameters": {
        "rope_scaling": {"rope_type": "linear", "factor": 2.0},
        "rope_parameters": {"rope_type": "default", "rope_theta": 500.0},
    },
    "parameters and theta on top": TOP | {"rope_parameters": {"rope_type": "dynamic", "factor": 4.0}},
    "dynamic": TOP | {"rope_scaling": {"type": "dynamic", "factor": 2.0}},
    "llama3": TOP | {"rope_scaling": {"rope_type": "llama3", **LLAMA3}},
    "llama3 inside": {"rope_parameters": {"rope_type": "llama3", "rope_theta": 500.0, **LLAMA3}},
    "yarn": TOP | {"rope_scaling": {"type": "yarn", **YARN}},
    "yarn with all it can say": TOP
    | {"rope_scaling": {"rope_type": "yarn", **YARN, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.2}},
    "yarn without its length": TOP | {"rope_scaling": {"rope_type": "yarn", "factor": 4.0}},
    "longrope": TOP | {"rope_scaling": {"rope_type": "longrope", **FACTORS, "original_max_position_embeddings": 16}},
    "a share that is ignored": TOP | {"partial_rotary_factor": 0.5},
    "no scaling": TOP | {"rope_scaling": None},
}
PHI3 = {
    "yarn": TOP | {"rope_scaling": {"type": "yarn", **FACTORS}, "original_max_position_embeddings": 16},
    "longrope": TOP | {"rope_scaling": {"type": "longrope", **FACTORS}, "original_max_position_embeddings": 16},
    "longrope inside": {
        "rope_parameters": {"rope_type": "longrope", "rope_theta": 500.0, "partial_rotary_factor": 1.0, **FACTORS},
        "original_max_position_embeddings": 16,
    },
    "half": TOP | {"partial_rotary_factor": 0.5},
    "half inside": {"rope_parameters": {"rope_theta": 500.0, "partial_rotary_factor": 0.5, "rope_type": "default"}},
}
NEOX = {
    "old": {"rotary_emb_base": 500, "rotary_pct": 0.5},
    "inside": {"rope_parameters": {"rope_type": "default", "rope_theta": 500.0, "partial_rotary_factor": 0.5}},
    "linear": {"rotary_emb_base": 500, "rotary_pct": 1.0, "rope_scaling": {"type": "linear", "factor": 2.0}},
    "linear, and a length on top": {
        "rotary_emb_base": 500,
        "rotary_pct": 0.5,
        "rope_scaling": {"type": "linear", "factor": 2.0},
        "original_max_position_embeddings": 16,
    },
}
GEMMA3 = {
    "old": {"rope_theta": 500.0, "rope_local_base_freq": 50.0},
    "old and scaled": {"rope_theta": 500.0, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    "new": {
        "rope_parameters": {
            "full_attention": {"rope_type": "linear", "factor": 2.0, "rope_theta": 500.0},
            "sliding_attention": {"rope_type": "default", "rope_theta": 50.0},
        }
    },
}
CASES = [(family, name, said) for family in ("llama", "qwen3", "olmo2") for name, said in SPELLINGS.items()]
CASES += [
    (f, n, s) for f, cases in (("phi3", PHI3), ("gpt_neox", NEOX), ("gemma3_text", GEMMA3)) for n, s in cases.items()
]
WORDS = ("rope_theta", "rope_scaling", "rope_parameters", "partial_rotary_factor", "rotary_emb_base", "rotary_pct",
         "rope_local_base_freq")  # fmt: skip


def spelt(source: Path, to: Path, said: dict) -> Path:
    """The same weights under a config that says this of RoPE and no more."""
    shutil.copytree(source, to)
    edit_config(to, **dict.fromkeys(WORDS), max_position_embeddings=64)
    edit_config(to, **said)
    return to


@pytest.mark.parametrize(("family", "name", "said"), CASES, ids=[f"{f}: {n}" for f, n, _ in CASES])
def test_a_child_turns_as_its_parent(tiny, tmp_path, family, name, said):
    parent = spelt(tiny(family), tmp_path / "parent", said)
    try:
        before = logits(parent)
    except Exception:  # what transformers cannot load, nobody promises to
        with pytest.raises(RekindleError):
            api.rewrite(parent)
        return
    assert torch.equal(before, logits(api.rewrite(parent).save(tmp_path / "child")))


@pytest.mark.parametrize("key", ["type", "rope_type"])
def test_phi3s_oldest_name_is_longrope(tiny, tmp_path, key):
    """transformers 5.23 cannot load it under that name, so the same model under today's is what a child is held to."""
    old = TOP | {"rope_scaling": {key: "su", **FACTORS}, "original_max_position_embeddings": 16}
    parent = spelt(tiny("phi3"), tmp_path / "parent", old)
    child = api.rewrite(parent).save(tmp_path / "child")
    assert torch.equal(logits(child), logits(spelt(tiny("phi3"), tmp_path / "today", PHI3["longrope"])))
    assert api.verify(child, against=parent, tokens=64).held
    assert any("su is read as longrope" in note for note in api.inspect(parent)["notes"])


@pytest.mark.parametrize(
    "said",
    [
        {"rope_scaling": {"rope_type": "su", "factor": 2.0}},
        {"rope_scaling": {"rope_type": "yarn"}},
        {"rope_scaling": {"rope_type": "linear"}},
        {"rope_scaling": {"rope_type": "linear", "factor": "2"}},
        {"rope_scaling": {"rope_type": "llama3", "factor": 2.0}},
        {"rope_scaling": {"rope_type": ["linear"], "factor": 2.0}},
        {"rope_scaling": "linear"},
        {"rope_scaling": [1]},
        {"rope_theta": "many"},
        {"rope_theta": -1.0},
        {"rope_theta": float("nan")},
        {"rope_parameters": {"rope_theta": None, "rope_type": "default"}},
        {"rope_scaling": {"rope_type": "longrope", **FACTORS, "short_factor": [1.0]}},
        {"partial_rotary_factor": 0.5, "rope_scaling": {"rope_type": "linear", "factor": 2.0}},
    ],
    ids=str,
)
def test_what_cannot_be_read_is_a_sentence(tiny, tmp_path, said):
    with pytest.raises(RekindleError) as refused:
        api.rewrite(spelt(tiny("llama"), tmp_path / "parent", said))
    assert "config.json" in str(refused.value.where)
    assert json.dumps(next(iter(said))).strip('"').split("_")[0] in str(refused.value)
