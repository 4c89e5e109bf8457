"""Digests that lie on people's discs: the journals, part records and measurements of earlier versions stay good."""

from __future__ import annotations

import json

import numpy as np
import pytest
from tiny_models import tiny_config

from rekindle import api
from rekindle.anatomy import family_of, on_disk
from rekindle.store.header import build_header

# verb, options, family -> beginning of the plan's digest, names of the first and the last measurement
PLANS = [
    ("upcycle", {"experts": 4}, "llama", "61f752fc33d2f2af", []),
    (
        "upcycle",
        {"experts": 4, "init": "noise"},
        "qwen3",
        "948c3649289e48be",
        ["statistics/model.layers.0.mlp.gate_proj.weight", "statistics/model.layers.2.mlp.down_proj.weight"],
    ),
    (
        "upcycle",
        {"experts": 4, "init": "drop"},
        "mistral",
        "3b680355b9986977",
        ["statistics/model.layers.0.mlp.gate_proj.weight", "statistics/model.layers.2.mlp.down_proj.weight"],
    ),
    ("upcycle", {"experts": 8, "top_k": 4, "init": "virtual-group", "granularity": 4}, "phi3", "4ffed3b12d43a99e", []),
    ("upcycle", {"experts": 4, "shared_experts": 1}, "llama", "4d1c06ed6593c927", []),
    ("grow-depth", {"factor": 2, "order": "llama-pro"}, "gpt2", "92f4c4bd9ed30772", []),
    ("grow-depth", {"factor": 2}, "gpt_neox", "c5e202522598f01c", []),
    ("grow-depth", {"factor": 2}, "bert", "4a1111f4f9b513c6", []),
    (
        "grow-experts",
        {"noise": 0.01},
        "olmoe",
        "43fd1e9ce601197c",
        [
            "statistics/model.layers.0.mlp.experts.0.gate_proj.weight",
            "statistics/model.layers.2.mlp.experts.3.down_proj.weight",
        ],
    ),
    (
        "grow-experts",
        {},
        "deepseek_v3",
        "41c2d8a59e75cf7e",
        [
            "statistics/model.layers.1.mlp.experts.0.gate_proj.weight",
            "statistics/model.layers.2.mlp.experts.7.down_proj.weight",
        ],
    ),
    (
        "gqa",
        {"kv_heads": 1},
        "llama",
        "c439f8fe2d1cdf12",
        ["pooling/layer.0/0b86f960f9bb5890", "pooling/layer.2/13c9c3846569d05d"],
    ),
    (
        "gqa",
        {"kv_heads": 1, "pool": "aligned", "grouping": "similar", "restore_norm": True},
        "olmo2",
        "2106c9fc2f7cc077",
        ["pooling/layer.0/53855b20b42e00a3", "pooling/layer.2/045b57d4fb08f877"],
    ),
    ("gqa", {"kv_heads": 4}, "gemma3_text", "3ceaf429c3635dc8", []),
    ("rewrite", {"dtype": "bfloat16"}, "flex_olmo", "062726b11d36f7f1", []),
    ("rewrite", {}, "qwen2_moe", "15fd23443434cf9f", []),
]

IDENTITY = {"plan": "4aca8d14d26ed9df", "sources": "9aa15fc6a9761a7f", "passengers": "4ce4536247817665"}


@pytest.mark.parametrize(("verb", "options", "family", "digest", "measured"), PLANS)
def test_plans_and_measurements_keep_their_names(tmp_path, verb, options, family, digest, measured):
    (tmp_path / "config.json").write_text(json.dumps(tiny_config(family) | {"model_type": family}))
    job = api.apply(verb, tmp_path, **options).job()
    assert job.plan.digest()[:16] == digest
    assert [m.name for m in job.measurements[:1] + job.measurements[-1:]] == measured


def test_parts_keep_their_identity(tmp_path):
    config = tiny_config("llama") | {"model_type": "llama"}
    family = family_of(config)
    shapes = on_disk(family.table(family.settings(config)), family.settings(config))
    head, size = build_header({name: ("F32", shape) for name, shape in shapes.items()}, {})
    values = np.arange(size // 4, dtype=np.uint32) % 251
    (tmp_path / "model.safetensors").write_bytes(head + (values.astype(np.float32) / 251 - 0.5).tobytes())
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text("{}")
    job = api.upcycle(tmp_path, experts=4, init="drop").job()
    assert vars(job.identity) == IDENTITY
