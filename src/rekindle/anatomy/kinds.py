"""What kind of value each config key holds, as transformers insists on; tests hold this page to its classes (5.23).

A value of another kind is refused when a config is read, with its name, since transformers would refuse it too; a whole
number where it wants one with a point is the same number, and is written so.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from typing import Any

from rekindle.anatomy.spelling import Reading
from rekindle.errors import RekindleError

# The same thing under two names: transformers v4 and v5, or one family's own history. The first is written.
SYNONYMS = {
    "num_experts": ("num_local_experts",),
    "num_local_experts": ("num_experts",),
    "n_routed_experts": ("num_local_experts",),
    "num_nextn_predict_layers": ("num_mtp_layers",),
    "n_embd": ("hidden_size",),
    "n_layer": ("num_hidden_layers",),
    "n_head": ("num_attention_heads",),
    "n_positions": ("max_position_embeddings",),
    "d_model": ("hidden_size",),
    "num_heads": ("num_attention_heads",),
}

# kind -> (what it is called, the types that JSON may give)
_KINDS: dict[str, tuple[str, tuple[type, ...]]] = {
    "int": ("a whole number", (int,)),
    "float": ("a number with a point", (float,)),
    "number": ("a number", (int, float)),
    "bool": ("true or false", (bool,)),
    "str": ("a text", (str,)),
    "ints": ("a list of whole numbers", (list,)),
    "strs": ("a list of texts", (list,)),
    "table": ("a table of keys and values", (dict,)),
    "id or ids": ("a whole number, or a list of them", (int, list)),
}
_ITEMS = {"ints": int, "strs": str, "id or ids": int}

# Where the default of a key does not tell its kind. "?": or null.
_OWN = {
    "attention_dropout": "number", "attn_pdrop": "number", "embd_pdrop": "number", "resid_pdrop": "number",
    "hidden_dropout": "number", "hidden_dropout_prob": "number", "attention_probs_dropout_prob": "number",
    "classifier_dropout": "number?", "summary_first_dropout": "number", "summary_activation": "str?",
    "num_key_value_heads": "int?", "head_dim": "int?", "n_inner": "int?", "sliding_window": "int?",
    "pad_token_id": "int?", "bos_token_id": "int?", "eos_token_id": "id or ids?", "pretraining_tp": "int?",
    "mlp_only_layers": "ints?", "layer_types": "strs?", "clip_qkv": "float?",
    "final_logit_softcapping": "float?", "attn_logit_softcapping": "float?", "use_bidirectional_attention": "bool?",
    "first_k_dense_replace": "int?", "n_group": "int?", "topk_group": "int?", "v_head_dim": "int?",
    "q_lora_rank": "int?", "rope_interleave": "bool?", "architectures": "strs?", "id2label": "table?",
    "num_nextn_predict_layers": "int?", "num_mtp_layers": "int", "num_decoder_layers": "int?", "dropout_rate": "number",
    "decoder_start_token_id": "int?", "is_gated_act": "bool", "dense_act_fn": "str",
    "scale_decoder_outputs": "bool", "classifier_dropout_rate": "number", "encoder": "table?", "decoder": "table?",
    "cross_attention_hidden_size": "int?", "eoi_token_index": "int?", "image_size": "id or ids",
    "patch_size": "id or ids", "out_features": "strs?", "out_indices": "ints?", "_out_features": "strs?",
    "_out_indices": "ints?", "pooler_output_size": "int?", "moe_layers": "ints?", "drop_path_rate": "number",
}  # fmt: skip
_OF_FAMILY = {
    "llama": {"attention_dropout": "number?"},
    "mistral": {"num_key_value_heads": "int"},
    "mixtral": {"num_key_value_heads": "int"},
    "qwen3": {"head_dim": "int"},
    "qwen3_moe": {"num_key_value_heads": "int"},
    "flex_olmo": {"attention_dropout": "float?"},
    "gemma2": {"attention_dropout": "number?", "num_key_value_heads": "int", "head_dim": "int"},
    "gemma3_text": {"attention_dropout": "number?", "num_key_value_heads": "int", "head_dim": "int"},
    "gpt_neox": {"classifier_dropout": "number"},
    "modernbert": {
        "classifier_dropout": "number",
        "embedding_dropout": "number",
        "mlp_dropout": "number",
        "cls_token_id": "int?",
        "sep_token_id": "int?",
    },
    "t5gemma": {"initializer_range": "float?"},
    "t5gemma2": {"vocab_size": "int?"},
    "t5_gemma_module": {"attention_dropout": "number?", "num_key_value_heads": "int", "head_dim": "int"},
    "t5gemma2_text": {"attention_dropout": "number?", "num_key_value_heads": "int", "head_dim": "int"},
    "t5gemma2_decoder": {"attention_dropout": "number?", "num_key_value_heads": "int", "head_dim": "int"},
    "t5": {"classifier_dropout": "number", "tie_word_embeddings": "bool?"},
    "mt5": {"classifier_dropout": "number"},
    "umt5": {"classifier_dropout": "number", "tie_word_embeddings": "bool?"},
    "switch_transformers": {"router_jitter_noise": "number"},
    "clip_vision_model": {"attention_dropout": "number?", "image_size": "id or ids?", "patch_size": "id or ids?"},
    "deepseek_v3": {"attention_dropout": "number?", "norm_topk_prob": "bool?", "num_experts_per_tok": "int?"},
}
# What the class takes, and the model made of it cannot run on.
_NO_NULLS = {
    ("qwen2_moe", "num_key_value_heads"), ("qwen3_moe", "head_dim"), ("deepseek_v3", "first_k_dense_replace"),
    ("deepseek_v3", "head_dim"), ("roberta", "pad_token_id"), ("clip_vision_model", "image_size"),
    ("clip_vision_model", "patch_size"),
}  # fmt: skip
_ONE_OF = {
    ("switch_transformers", "router_dtype"): ("float32", "float16", "bfloat16"),
    ("modernbert", "classifier_pooling"): ("cls", "mean"),
    ("vmoe", "routing"): ("experts", "tokens"),
    ("vmoe", "routing_group"): ("image", "batch"),
}
_RANGES = {("llama", "initializer_range"): (0.0, 1.0)}
_SUB_CONFIGS = ("text_config", "decoder", "generator")  # where transformers looks for the config of a text model
_BY_DEFAULT: dict[type, str] = {bool: "bool", int: "int", float: "float", str: "str"}
_OF_STAGES = ("out_features", "out_indices", "_out_features", "_out_indices")
_EVERYWHERE = ("architectures", "head_dim", "id2label", "layer_types", *_OF_STAGES)

# transformers' names of activations (`ACT2FN`)
ACTIVATIONS = {
    "gelu", "gelu_10", "gelu_accurate", "gelu_fast", "gelu_new", "gelu_python", "gelu_python_tanh",
    "gelu_pytorch_tanh", "hardswish", "laplace", "leaky_relu", "linear", "mish", "prelu", "quick_gelu", "relu", "relu2",
    "relu6", "sigmoid", "silu", "sqrtsoftplus", "swish", "tanh", "xielu",
}  # fmt: skip
_ACTIVATION_KEYS = ("hidden_act", "activation_function", "hidden_activation", "classifier_activation")


def kind(family: Reading, key: str) -> str | None:
    """The kind of a key: "int", "number?", ...; None for one that the family does not know."""
    spelt = _OWN.get(key)
    if key not in family.defaults:
        key = next((own for own, others in SYNONYMS.items() if key in others and own in family.defaults), key)
    if key not in family.defaults and key not in _EVERYWHERE:
        return None
    own = _OF_FAMILY.get(family.model_type, {}).get(key) or spelt or _OWN.get(key)
    default: Any = family.defaults.get(key)
    return own or _BY_DEFAULT.get(type(default))


def fits(family: Reading, key: str, value: Any) -> bool:
    """Whether transformers takes this value for the key."""
    wanted = kind(family, key)
    if wanted is None or (value is None and wanted.endswith("?")):
        return value is not None or (family.model_type, key) not in _NO_NULLS
    name = wanted.removesuffix("?")
    types = _KINDS[name][1]
    if not isinstance(value, types) or (isinstance(value, bool) and bool not in types):
        return False
    if isinstance(value, list):
        return all(type(item) is _ITEMS[name] for item in value)
    if key == "id2label":
        return all(str(name).lstrip("-").isdecimal() for name in value or ())
    if value not in _ONE_OF.get((family.model_type, key), (value,)):
        return False
    low, high = _RANGES.get((family.model_type, key), (-math.inf, math.inf))
    return not isinstance(value, float) or (math.isfinite(value) and low <= value <= high)


def mended(family: Reading, config: Mapping[str, Any]) -> dict[str, Any]:
    """The same config, whole numbers as floats where transformers wants those."""
    as_floats = {
        key: float(value)
        for key, value in config.items()
        if type(value) is int and (kind(family, key) or "").startswith("float") and abs(value) < 2**53
    }
    return {**config, **as_floats}


def misfits(family: Reading, config: Mapping[str, Any]) -> Iterator[RekindleError]:
    """A sentence for each value that transformers would refuse."""
    from rekindle.store.dtypes import TORCH

    for key, value in config.items():
        if not fits(family, key, value):
            wanted = kind(family, key) or "int"
            null = ", or null" if wanted.endswith("?") and value is not None else ""
            shown = {None: "null", True: "true", False: "false"}.get(value) if _is_plain(value) else None
            yield RekindleError(
                f"{key} is {shown or _short(value)}, but of {family.name} it is "
                f"{_KINDS[wanted.removesuffix('?')][0]}{null}.",
                where="config.json",
                hint=f"set it, or take the line out: the default is {_short(family.defaults.get(key))}",
            )
        elif key in _ACTIVATION_KEYS and isinstance(value, str) and value not in ACTIVATIONS:
            yield RekindleError(f"{key} is {value!r}, which transformers does not know.", where="config.json")
    for key in _SUB_CONFIGS if "causal" in family.classes else ():
        if key in config:
            yield RekindleError(
                f"config.json of a {family.name} has a {key} too: transformers cannot read the two as one model.",
                where="config.json",
                hint="take it out, where the weights are those of the text model alone",
            )
    for key in ("torch_dtype", "dtype"):
        said = config.get(key)
        if said is not None and (not isinstance(said, str) or said not in TORCH.values()):
            yield RekindleError(f"{key} is {_short(said)}, which is no dtype of torch.", where="config.json")


def _is_plain(value: Any) -> bool:
    return value is None or isinstance(value, bool)


def _short(value: Any) -> str:
    text = repr(value)
    return text if len(text) <= 40 else f"{text[:37]}..."
