"""FLOPs of the tables against torch's counter on the real classes, and parameters by what they are for."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from tiny_models import ENCODER_DECODERS, MASKED, OF_IMAGES, ONE_TOWER, SPARSE, make, tiny_config
from torch.utils.flop_counter import FlopCounterMode

from rekindle.anatomy import FAMILIES as TABLES
from rekindle.anatomy import family_of
from rekindle.anatomy.counts import dense_parameters, parameters_of
from rekindle.anatomy.flops import attention_flops, flops_per_token, forward_flops, training_flops
from rekindle.apply.load import quietly

B, T, S = 2, 20, 13  # sequences, tokens of each, and of what an encoder reads


def test_no_family_is_left_out():
    assert {*ONE_TOWER, *ENCODER_DECODERS, *OF_IMAGES} == set(TABLES)


def counted(model: Any, **inputs: torch.Tensor) -> tuple[int, int]:
    """(forward, backward) as torch counts them: plain products, each expert its own tokens, no masks."""
    model.set_attn_implementation("eager")
    if any(".experts." in name and p.ndim == 3 for name, p in model.named_parameters()):
        model.set_experts_implementation("eager")
    with FlopCounterMode(display=False) as forward:
        out = model(**inputs)
    found = [out[name] for name in ("logits", "last_hidden_state", "pooler_output") if name in out]
    loss = sum(x.float().square().mean() for x in found)
    with FlopCounterMode(display=False) as backward:
        loss.backward()  # type: ignore[union-attr]
    return forward.get_total_flops(), backward.get_total_flops()


CASES = [
    *(
        (family, {"tie_word_embeddings": tied})
        for family in (*ONE_TOWER, *ENCODER_DECODERS)
        for tied in (False, True)
        if (family, tied) != ("switch_transformers", False)
    ),
    *((family, {"num_key_value_heads": 1}) for family in ("llama", "qwen3_moe")),  # heads that share keys
    ("bert", MASKED),
    ("bert", MASKED | {"tie_word_embeddings": False}),
    ("deepseek_v3", {"q_lora_rank": None}),
    ("deepseek_v3", {"n_shared_experts": 2, "first_k_dense_replace": 2}),
    ("mixtral", {"num_experts_per_tok": 4}),  # all of them
    ("qwen2_moe", {"mlp_only_layers": [1]}),
    ("mistral", {"sliding_window": 8}),
    ("qwen3", {"attention_bias": True, "head_dim": 12}),
]


@pytest.mark.parametrize(("family", "changes"), CASES)
def test_as_torch_counts_the_real_class(family: str, changes: dict[str, Any]):
    config = tiny_config(family, **changes) | {"model_type": family}
    with quietly():
        model = make(config)
    ids = torch.randint(3, 60, (B, T))
    reads = {"input_ids": torch.randint(3, 60, (B, S)), "decoder_input_ids": ids}
    forward, backward = counted(model, **reads if family in ENCODER_DECODERS else {"input_ids": ids})
    table = family_of(config)
    settings = table.settings(config)
    assert forward == B * forward_flops(table, settings, T, source=S, full=True)
    assert backward == 2 * forward  # what `training_flops` says of it


@pytest.mark.parametrize(
    ("family", "changes"),
    [
        *((family, {}) for family in OF_IMAGES if family not in ("siglip_vision_model", "vmoe")),
        ("siglip_vision_model", {"vision_use_head": False}),  # which no table names
        ("dinov2", {"architectures": ["Dinov2ForImageClassification"]}),
        ("vit", {"image_size": [8, 4], "architectures": ["ViTModel"]}),
        ("vmoe", {"routing": "tokens"}),
        ("vmoe", {"num_experts_per_tok": 4, "moe_layers": [0, 1]}),  # each takes all
        ("vmoe", {"num_experts": 2, "image_size": [8, 2], "num_experts_per_tok": 2}),
    ],
)
def test_an_image_as_torch_counts_it(family: str, changes: dict[str, Any]):
    config = tiny_config(family, **changes) | {"model_type": family}
    with quietly():
        model = make(config)
    table = family_of(config)
    settings = table.settings(config)
    pixels = torch.randn(B, settings.num_channels, *settings.image_size)
    forward, backward = counted(model, pixel_values=pixels)
    assert forward == B * forward_flops(table, settings, settings.context)
    assert 1.9 * forward < backward <= 2 * forward  # of pixels there is no gradient
    assert flops_per_token(table, settings, settings.context, 1) == 3 * forward / B / settings.context


@pytest.mark.parametrize("window", [None, 1, 7, 20, 50])
@pytest.mark.parametrize("both_ways", [False, True])
def test_a_token_sees_what_the_mask_lets_it(window: int | None, both_ways: bool):
    """The pairs of transformers' own masks."""
    from transformers import masking_utils

    base = masking_utils.bidirectional_mask_function if both_ways else masking_utils.causal_mask_function
    if window:
        overlay = "sliding_window_bidirectional_overlay" if both_ways else "sliding_window_overlay"
        base = masking_utils.and_masks(base, getattr(masking_utils, overlay)(window))
    pairs = sum(bool(base(0, 0, torch.tensor(q), torch.tensor(k))) for q in range(T) for k in range(T))
    table = TABLES["llama"]
    settings = replace(table.settings(tiny_config("llama")), windows=(window,), bidirectional=both_ways)
    assert attention_flops(settings, T) == pairs * 2 * 2 * settings.num_heads * settings.head_dim


def test_training_costs_three_times_the_forward_pass_of_its_sequences():
    table = TABLES["mixtral"]
    settings = table.settings(tiny_config("mixtral"))
    assert training_flops(table, settings, 5 * T, T) == 3 * 5 * forward_flops(table, settings, T)
    longer = training_flops(table, settings, 5 * T, 4 * T)
    assert longer > training_flops(table, settings, 5 * T, T)  # a token has more to look at


def test_six_a_parameter_but_for_embeddings_norms_and_attention():
    table = TABLES["llama"]
    settings = table.settings(tiny_config("llama"))
    products = table.parameters(settings)["active"] - parameters_of(table, settings, "embed")
    products -= (2 * settings.num_layers + 1) * settings.hidden_size
    assert training_flops(table, settings, T, T) - 3 * attention_flops(settings, T) == 6 * products * T


@pytest.mark.parametrize("family", TABLES)
def test_parameters_by_what_they_are_for(family: str):
    table = TABLES[family]
    settings = table.settings(tiny_config(family))
    tables = (table, *table.towers.values())
    parts = {row.part for t in tables for row in (*t.top, *t.block, *t.dense, *t.sparse)}
    whole = [part for part in parts if not any(part != other and part.startswith(other) for other in parts)]
    once = sum(parameters_of(table, settings, part) for part in whole)
    assert parameters_of(table, settings, *whole) == once
    further = (settings.top_k - 1) * parameters_of(table, settings, "expert.") if settings.sparse_layers else 0
    assert once + further == table.parameters(settings)["active"]


@pytest.mark.parametrize("family", SPARSE)
def test_the_dense_model_in_a_mixture_does_not_depend_on_its_experts(family: str):
    table = TABLES[family]
    settings = table.settings(tiny_config(family))
    found = {
        dense_parameters(table, replace(settings, num_experts=experts, top_k=top_k))
        for experts, top_k in ((4, 1), (4, 2), (4, 4), (8, 3))
    }
    assert len(found) == 1
