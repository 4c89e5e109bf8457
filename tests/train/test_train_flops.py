"""Parameters of the tables against a count by hand and the real classes; what a run writes down of its cost."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from rekindle.anatomy import family_of
from rekindle.anatomy.flops import training_flops
from rekindle.report.metrics import read_metrics
from rekindle.store.folder import open_folder

D, F, L, V, E, K, HEAD = 32, 48, 2, 100, 8, 3, 8
ATTENTION = D * D + D * D // 2 * 2 + D * D  # q, k and v at half the heads, o
FAMILIES = {
    # per layer outside experts, one expert (or the feed-forward), experts
    "llama": (ATTENTION + 2 * D, 3 * D * F, 0),
    "mistral": (ATTENTION + 2 * D, 3 * D * F, 0),
    "qwen2": (ATTENTION + 2 * D + D + D, 3 * D * F, 0),  # biases of q, k and v
    "qwen3": (ATTENTION + 2 * D + 2 * HEAD, 3 * D * F, 0),  # norms of q and k, per head
    "olmo2": (ATTENTION + 2 * D + D + D // 2, 3 * D * F, 0),  # norms of q and k, over all heads
    "mixtral": (ATTENTION + 2 * D + E * D, 3 * D * F, E),
    "qwen2_moe": (ATTENTION + 2 * D + D + D + E * D + 3 * D * F + D, 3 * D * F, E),  # shared expert and its gate
    "qwen3_moe": (ATTENTION + 2 * D + 2 * HEAD + E * D, 3 * D * F, E),
    "olmoe": (ATTENTION + 2 * D + D + D // 2 + E * D, 3 * D * F, E),
    "flex_olmo": (ATTENTION + 2 * D + D + D // 2 + E * D, 3 * D * F, E),
}


def model(family: str, tied: bool = False) -> torch.nn.Module:
    from transformers import AutoConfig, AutoModelForCausalLM

    settings = {
        "hidden_size": D,
        "intermediate_size": F,
        "num_hidden_layers": L,
        "num_attention_heads": D // HEAD,
        "num_key_value_heads": D // HEAD // 2,
        "head_dim": HEAD,
        "vocab_size": V,
        "tie_word_embeddings": tied,
        "pad_token_id": None,
    }
    if FAMILIES[family][2]:
        name = "num_local_experts" if family == "mixtral" else "num_experts"
        settings |= {name: E, "num_experts_per_tok": K, "moe_intermediate_size": F}
        settings |= {"shared_expert_intermediate_size": F} if family == "qwen2_moe" else {}
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(family, **settings))


def counted(model: torch.nn.Module) -> dict[str, int]:
    config = model.config.to_dict()  # type: ignore[operator,union-attr]
    family = family_of(config)
    return family.parameters(family.settings(config))


@pytest.mark.parametrize("family", FAMILIES)
def test_parameters_of_each_family(family: str):
    layer, expert, experts = FAMILIES[family]
    outside = 2 * V * D + D + L * layer
    total = outside + L * expert * max(1, experts)
    active = outside + L * expert * (K if experts else 1)
    made = model(family)
    assert counted(made) == {"total": total, "active": active}
    assert sum(p.numel() for p in made.parameters()) == total


def test_tied_embeddings_count_once():
    untied, tied = (counted(model("llama", tied)) for tied in (False, True))
    assert untied["total"] - tied["total"] == V * D


def test_what_a_run_writes_down(small: Callable[..., Path], run: Callable):
    from train_helpers import rows

    out, summary = run(small("mixtral"), tokens=512)
    (described,) = rows(out, "run")
    assert described["parameters"]["active"] < described["parameters"]["total"]
    config = open_folder(out).config
    table = family_of(config)
    each = training_flops(table, table.settings(config), 1, 32)
    assert described["flops_per_token"] == each
    assert summary["flops"] == each * 512
    assert {row["flops"] / row["tokens"] for row in rows(out, "step")} == {each}


def test_a_run_of_an_earlier_version_is_held_against_new_ones_in_one_count(small: Callable[..., Path], run: Callable):
    """6 N a token then, and perhaps resumed since, with other rows behind: the report reads what was trained."""
    out, _ = run(small("mixtral"), tokens=1024, eval_every=512)
    now = read_metrics(out)
    lines = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    n = lines[0]["parameters"]["active"]
    del lines[0]["flops_per_token"]
    for line in lines[1 : len(lines) // 2]:
        line["flops"] = 6 * n * line["tokens"]
    (out / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    then = read_metrics(out)
    assert [step.flops for step in then.steps] == [step.flops for step in now.steps]
    assert [found.flops for found in then.evaluations] == [found.flops for found in now.evaluations]
    (out / "config.json").unlink()  # who cannot count takes what is written
    assert read_metrics(out).steps[0].flops == int(6 * n * then.steps[0].tokens)
