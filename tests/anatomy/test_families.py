"""The tables against the real transformers classes: names both ways, shapes, defaults, spellings."""

from __future__ import annotations

import dataclasses
import json
import math
import re
from pathlib import Path

import pytest
from safetensors import safe_open
from tiny_models import FAMILIES as NAMES
from tiny_models import MASKED, NO_HEAD, make, tiny_config

import rekindle.models  # noqa: F401
from rekindle.anatomy import FAMILIES, family_named, family_of, on_disk, packs, runtime_names, serving_spelling
from rekindle.anatomy.kinds import SYNONYMS
from rekindle.errors import RekindleError

NOT_OURS = {  # keys every transformers config has, and rope, which is spelt apart
    "architectures", "dtype", "model_type", "transformers_version", "rope_parameters", "layer_types",
    "return_dict", "output_hidden_states", "chunk_size_feed_forward", "is_encoder_decoder", "id2label", "label2id",
    "problem_type", "_name_or_path", "output_attentions", "_sliding_window_pattern", "stage_names", "out_features",
    "out_indices",
}  # fmt: skip
DERIVED = {
    "num_key_value_heads",
    "head_dim",
    "qk_head_dim",
    "sliding_window",
    "num_decoder_layers",
    "dense_act_fn",
    "is_gated_act",
    "scale_decoder_outputs",
    "encoder_sparse_step",
    "decoder_sparse_step",
    "encoder",
    "decoder",
    "pooler_output_size",
    "moe_layers",
}  # transformers fills these in from others

LONGROPE = {
    "rope_type": "longrope", "short_factor": [1.0, 1.1, 1.2, 1.3], "long_factor": [2.0, 2.1, 2.2, 2.3],
    "partial_rotary_factor": 1.0, "rope_theta": 1e4,
}  # fmt: skip
YARN = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "mscale_all_dim": 1.0}
VARIANTS = [
    *((family, {}) for family in NAMES),
    ("bert", MASKED),
    ("bert", {"type_vocab_size": 3}),
    ("vit", NO_HEAD),
    ("vit", {"image_size": [8, 4], "qkv_bias": False}),
    ("deit", {"architectures": ["DeiTModel"]}),
    ("deit", {"architectures": ["DeiTForImageClassification"]}),
    ("dinov2", {"architectures": ["Dinov2ForImageClassification"], "num_labels": 5, "use_mask_token": False}),
    ("vmoe", {"architectures": ["VMoEModel"], "moe_layers": [0, 2]}),
    *((family, {"tie_word_embeddings": True}) for family in ("llama", "qwen2", "qwen2_moe", "olmo2", "gpt_neox")),
    *((family, {"tie_word_embeddings": False}) for family in ("t5gemma", "t5gemma2")),
    ("llama", {"attention_bias": True, "mlp_bias": True}),
    ("llama", {"head_dim": 16}),
    ("qwen3", {"attention_bias": True, "head_dim": 16}),
    ("qwen2_moe", {"qkv_bias": False, "mlp_only_layers": [1]}),
    ("qwen3_moe", {"decoder_sparse_step": 2, "head_dim": 16}),
    ("olmoe", {"attention_bias": True}),
    ("flex_olmo", {"num_key_value_heads": 4}),
    ("phi3", {"num_key_value_heads": 4, "rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 3e3}}),
    ("phi3", {"sliding_window": 8, "rope_parameters": LONGROPE}),
    ("deepseek_v3", {"q_lora_rank": None, "attention_bias": True, "n_shared_experts": 2}),
    ("deepseek_v3", {"first_k_dense_replace": 0, "attention_bias": True, "rope_parameters": YARN}),
    ("deepseek_v3", {"first_k_dense_replace": 3, "tie_word_embeddings": True, "rope_interleave": False}),
    ("gemma3_text", {"tie_word_embeddings": False, "attention_bias": True, "attn_logit_softcapping": 5.0}),
    ("gemma3_text", {"layer_types": ["full_attention"] * 3, "final_logit_softcapping": 3.0}),
    ("gemma3_text", {"layer_types": ["full_attention", "sliding_attention", "sliding_attention"]}),
    ("gpt2", {"tie_word_embeddings": False}),
    ("gpt_neox", {"use_parallel_residual": False, "attention_bias": False}),
    ("gpt_neox", {"rope_parameters": {"partial_rotary_factor": 0.5, "rope_theta": 3e3}}),
]


def name_of(value):
    return value if isinstance(value, str) else ",".join(value) or "plain"


def shapes_on_disk(folder):
    with safe_open(folder / "model.safetensors", "pt") as file:
        return {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118


@pytest.mark.parametrize(("family", "changes"), VARIANTS, ids=name_of)
def test_table_is_what_transformers_saves(tiny, family, changes):
    folder = tiny(family, **changes)
    config = json.loads((folder / "config.json").read_text())
    settings = family_of(config).settings(config)
    stored = shapes_on_disk(folder)
    named = {name: shape for name, shape in stored.items() if FAMILIES[family].opaque_role(name) is None}
    assert on_disk(FAMILIES[family].table(settings), settings) == named
    assert (named == stored) == (not FAMILIES[family].opaque)


@pytest.mark.parametrize(("family", "changes"), VARIANTS, ids=name_of)
@pytest.mark.parametrize("fused", [False, True], ids=["disk", "memory"])
def test_every_tensor_holds_its_roles_once(tiny, family, changes, fused):
    config = json.loads((tiny(family, **changes) / "config.json").read_text())
    settings = FAMILIES[family].settings(config)
    rows = dict(FAMILIES[family].table(settings, fused=fused))
    packed = packs(rows.items(), settings, fused=fused)
    names = [name for role, (name, _, _) in rows.items() if not any(role in pack.roles for pack in packed)]
    names += [pack.name for pack in packed]
    assert len(names) == len(set(names)) == len({name for name, _, _ in rows.values()})
    for pack in packed:
        held = [(role, row) for role, lo, hi in pack.pieces() for row in range(lo, hi)]
        assert len(held) == len(set(held)) == sum(shape[0] for shape in pack.roles.values())
        assert math.prod(pack.shape) == sum(math.prod(rows[role][1]) for role in pack.roles)


@pytest.mark.parametrize(("family", "changes"), VARIANTS, ids=name_of)
def test_runtime_names_are_the_parameters(tiny, family, changes):
    config = json.loads((tiny(family, **changes) / "config.json").read_text())
    model = make(config)
    parameters = dict(model.named_parameters())
    names = runtime_names(config, parameters)
    assert names.keys() == parameters.keys()
    for name, disk in names.items():
        if not isinstance(disk, str):
            assert len(disk) == parameters[name].shape[0]


@pytest.mark.parametrize("family", FAMILIES)
def test_defaults_are_those_of_transformers(family):
    from transformers import AutoConfig

    theirs = AutoConfig.for_model(family).to_dict()
    ours = FAMILIES[family].defaults
    spelt = {next((s for s in (key, *SYNONYMS.get(key, ())) if s in theirs), key): key for key in ours}
    assert spelt.keys() - theirs.keys() <= DERIVED
    assert theirs.keys() - spelt.keys() - NOT_OURS - DERIVED == set()
    assert {k: theirs[k] for k, v in spelt.items() if v not in DERIVED} == {
        k: ours[v] for k, v in spelt.items() if v not in DERIVED
    }
    rope = theirs.get("rope_parameters") or {"rope_theta": None}
    rope = rope.get("full_attention", rope)
    assert rope["rope_theta"] == (FAMILIES[family].rope_theta if FAMILIES[family].rope != "none" else None)


@pytest.mark.parametrize("family", FAMILIES)
def test_silent_config_means_what_transformers_reads(family):
    """A config.json that says nothing but its type: our settings are transformers' model."""
    from transformers import AutoConfig

    s, theirs = FAMILIES[family].settings({"model_type": family}), AutoConfig.for_model(family)
    theirs = getattr(theirs, "decoder", theirs)
    assert s.num_kv_heads == getattr(theirs, "num_key_value_heads", theirs.num_attention_heads)
    head_dim = getattr(theirs, "qk_head_dim", None) or getattr(theirs, "head_dim", None)
    assert s.head_dim == (head_dim or theirs.hidden_size // theirs.num_attention_heads)
    window = getattr(theirs, "sliding_window", None) or None
    if family in ("gemma2", "gemma3_text", "modernbert", "t5gemma", "t5gemma2"):
        assert s.windows == tuple(window if "sliding" in kind else None for kind in theirs.layer_types)
    else:
        assert set(s.windows) == {window if family in ("mistral", "mixtral") else None}
    rope = theirs.to_dict().get("rope_parameters") or {}
    turned = getattr(theirs, "qk_rope_head_dim", s.head_dim)
    assert s.rotary_dim == int(turned * rope.get("partial_rotary_factor", bool(rope)))


@pytest.mark.parametrize(("family", "changes"), VARIANTS, ids=name_of)
def test_serving_spelling_means_the_same(tiny, family, changes):
    from transformers import AutoConfig

    config = json.loads((tiny(family, **changes) / "config.json").read_text())
    spelt = serving_spelling(config)
    assert "rope_parameters" not in spelt
    assert FAMILIES[family].settings(spelt) == FAMILIES[family].settings(config)
    before, after = AutoConfig.for_model(**config).to_dict(), AutoConfig.for_model(**spelt).to_dict()
    before |= FAMILIES[family].generating(FAMILIES[family].settings(config))
    for values in (before, after):
        (values.get("rope_parameters") or {}).pop("type", None)  # v4's word beside v5's
        values.pop("num_nextn_predict_layers", None)  # such layers are not carried
        values["head_dim"] = values.get("head_dim") or 8  # written out where it was derived
        values["layer_types"] = values.get("layer_types") or []
        for key in ("sliding_window_pattern", "_sliding_window_pattern"):  # where a list says it
            values.pop(key, None)
        if values.pop("decoder_sparse_step", 1) == 2:  # written as the list it means
            values["mlp_only_layers"] = [0, 2]
    assert {k: v for k, v in before.items() if after.get(k) != v} == {}


@pytest.mark.parametrize(
    "rope",
    [
        {"rope_theta": 5e5},
        {"rope_theta": 5e5, "rope_scaling": {"type": "linear", "factor": 2.0}},
        {"rope_parameters": {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}},
        {
            "rope_theta": 5e5,
            "rope_scaling": {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32},
        },
    ],
    ids=["theta", "v4", "v5", "yarn"],
)
def test_rope_in_both_spellings(rope):
    from transformers import AutoConfig

    config = tiny_config("llama") | {"model_type": "llama"} | rope
    theirs = AutoConfig.for_model(**json.loads(json.dumps(config))).rope_parameters
    spelt = serving_spelling(config)
    assert AutoConfig.for_model(**spelt).rope_parameters == {
        key: value for key, value in theirs.items() if key != "type"
    }
    assert spelt["rope_theta"] == 5e5


@pytest.mark.parametrize("family", ["qwen2", "qwen3", "qwen2_moe"])
def test_listed_windows(family):
    from transformers import AutoConfig

    config = tiny_config(family, use_sliding_window=True, sliding_window=16, max_window_layers=2) | {
        "model_type": family
    }
    theirs = AutoConfig.for_model(**config)
    windows = FAMILIES[family].settings(config).windows
    assert windows == tuple(16 if kind == "sliding_attention" else None for kind in theirs.layer_types)
    assert AutoConfig.for_model(**serving_spelling(config)).layer_types == theirs.layer_types


def test_gemma3_in_both_spellings():
    """v4 has a pattern and two thetas by name, v5 a list and two of rope_parameters."""
    from transformers import AutoConfig

    v4 = tiny_config("gemma3_text", num_hidden_layers=7) | {
        "model_type": "gemma3_text", "sliding_window_pattern": 3, "rope_theta": 2e6, "rope_local_base_freq": 5e3,
        "rope_scaling": {"rope_type": "linear", "factor": 8.0},
    }  # fmt: skip
    theirs = AutoConfig.for_model(**json.loads(json.dumps(v4)))
    s = FAMILIES["gemma3_text"].settings(v4)
    assert s == FAMILIES["gemma3_text"].settings(theirs.to_dict())
    assert (s.windows, s.rope_theta, s.local_rope_theta) == ((8, 8, None, 8, 8, None, 8), 2e6, 5e3)
    spelt = serving_spelling(theirs.to_dict())
    assert (spelt["sliding_window_pattern"], spelt["rope_local_base_freq"]) == (3, 5e3)
    assert AutoConfig.for_model(**json.loads(json.dumps(spelt))).rope_parameters == theirs.rope_parameters
    irregular = dataclasses.replace(s, windows=(None, 8, 8, 8, None, None, 8))
    spelt = FAMILIES["gemma3_text"].config(irregular, v4, FAMILIES["gemma3_text"])
    assert "sliding_window_pattern" not in spelt
    assert FAMILIES["gemma3_text"].settings(spelt).windows == irregular.windows


@pytest.mark.parametrize(
    ("family", "changes", "words"),
    [
        ("gpt2", {"scale_attn_by_inverse_layer_idx": True}, "scale_attn_by_inverse_layer_idx is True"),
        ("gemma3_text", {"use_bidirectional_attention": True}, "only models with False are known"),
        (
            "gemma3_text",
            {"rope_parameters": {"sliding_attention": {"rope_type": "linear", "factor": 2.0}}},
            "layers with a window is scaled",
        ),
    ],
)
def test_what_a_family_cannot_say_is_refused(family, changes, words):
    with pytest.raises(RekindleError, match=words):
        FAMILIES[family].settings(tiny_config(family) | {"model_type": family} | changes)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"sparse_layers": (0, 2)}, "experts in all layers but the first few; asked for are dense layers 1"),
        ({"shared_size": 30}, "as wide as the others, 24 units; 30 are no such"),
    ],
)
def test_deepseek_says_what_it_can(changes, words):
    family, config = FAMILIES["deepseek_v3"], tiny_config("deepseek_v3") | {"model_type": "deepseek_v3"}
    settings = family.settings(config)
    assert (settings.latent_attention, settings.head_dim, settings.rotary_dim) == (True, 10, 4)
    assert (settings.sparse_layers, settings.shared_size, settings.num_kv_heads) == ((1, 2), 24, 4)
    with pytest.raises(RekindleError, match=words):
        family.config(dataclasses.replace(settings, **changes), config, family)
    grown = dataclasses.replace(settings, num_layers=5, sparse_layers=(2, 3, 4), shared_size=48, num_experts=16)
    assert family.settings(family.config(grown, config, family)) == dataclasses.replace(grown, windows=(None,) * 5)
    spelt = serving_spelling(config)
    assert (spelt["n_routed_experts"], spelt["scoring_func"], spelt["topk_method"]) == (8, "sigmoid", "noaux_tc")


def test_gpt2_without_n_inner_is_four_wide():
    s = FAMILIES["gpt2"].settings({"model_type": "gpt2", "n_embd": 24, "n_head": 2})
    assert (s.intermediate_size, s.num_kv_heads, s.head_dim) == (96, 2, 12)


def test_the_page_lists_every_family_with_what_it_can_become():
    page = (Path(__file__).parents[2] / "docs" / "families.md").read_text()
    listed = dict(re.findall(r"^\| `([\w-]+)`[^|]*\|[^|]*\|([^|]*)\|", page, re.MULTILINE))
    assert {name: tuple(re.findall(r"`(\w+)`", twins)) for name, twins in listed.items()} == {
        name: family.twins for name, family in FAMILIES.items()
    }


def test_unknown_architecture_lists_the_known_ones():
    with pytest.raises(RekindleError, match="known are: llama") as error:
        family_named("gpt9")
    assert "docs/families.md" in str(error.value)


def test_quantised_weights_are_refused():
    with pytest.raises(RekindleError, match=r"quantised \(gptq\)"):
        family_of({"model_type": "llama", "quantization_config": {"quant_method": "gptq"}})


def test_broken_sizes_are_refused():
    for config in ({"hidden_size": 0}, {"num_attention_heads": "four"}, {"num_hidden_layers": 2.5}):
        with pytest.raises(RekindleError, match="whole number"):
            FAMILIES["llama"].settings({"model_type": "llama"} | config)


@pytest.mark.parametrize("family", ["olmo2", "olmoe", "flex_olmo", "llama", "mistral"])
def test_a_null_that_is_written_is_not_the_default(family):
    """pad_token_id null: transformers zeroes and never trains the row of a padding token that is set."""
    nulls = {"pad_token_id": None, "bos_token_id": None, "eos_token_id": None}
    spelt = serving_spelling(tiny_config(family) | nulls | {"model_type": family})
    assert {key: spelt[key] for key in nulls} == nulls
    if family == "mistral":
        assert serving_spelling(spelt | {"sliding_window": None})["sliding_window"] is None


def test_nulls_that_mean_derived_are_derived():
    settings = FAMILIES["llama"].settings(
        tiny_config("llama", num_key_value_heads=None, head_dim=None) | {"model_type": "llama"}
    )
    assert (settings.num_kv_heads, settings.head_dim) == (4, 8)
