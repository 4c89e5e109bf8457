"""Rows, keys and defaults that families share.

Letters of shapes: V vocabulary, D hidden, H heads x dim, K key/value heads x dim, A head dim, F feed-forward, M
positions, T token types, N heads, P kinds of relative positions, Y hidden of what cross-attention reads, E experts, X
one expert's feed-forward, S the shared expert's; of latent attention Q the queries' rank, C that of keys and values, R
the same and the dims that RoPE turns, B what comes out of it for all heads, O values of all heads. Of images: c
channels, h and w height and width of a patch, L labels, d twice the hidden size.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from rekindle.anatomy.tensor import Tensor

L = "model.layers.{layer}."

TOP = (
    Tensor("embed", "model.embed_tokens.weight", "V D"),
    Tensor("norm", "model.norm.weight", "D"),
    Tensor("head", "lm_head.weight", "V D", when="not tie_word_embeddings"),
)
ATTENTION_OUT = (
    Tensor("attn.o", L + "self_attn.o_proj.weight", "D H"),
    Tensor("attn.o.bias", L + "self_attn.o_proj.bias", "D", when="o_bias"),
)
ATTENTION = (
    Tensor("attn.q", L + "self_attn.q_proj.weight", "H D"),
    Tensor("attn.q.bias", L + "self_attn.q_proj.bias", "H", when="qkv_bias"),
    Tensor("attn.k", L + "self_attn.k_proj.weight", "K D"),
    Tensor("attn.k.bias", L + "self_attn.k_proj.bias", "K", when="qkv_bias"),
    Tensor("attn.v", L + "self_attn.v_proj.weight", "K D"),
    Tensor("attn.v.bias", L + "self_attn.v_proj.bias", "K", when="qkv_bias"),
    *ATTENTION_OUT,
)
HEAD_QK_NORMS = (
    Tensor("attn.q_norm", L + "self_attn.q_norm.weight", "A"),
    Tensor("attn.k_norm", L + "self_attn.k_norm.weight", "A"),
)
FULL_QK_NORMS = (
    Tensor("attn.q_norm", L + "self_attn.q_norm.weight", "H"),
    Tensor("attn.k_norm", L + "self_attn.k_norm.weight", "K"),
)
PRE_NORMS = (
    Tensor("attn.pre_norm", L + "input_layernorm.weight", "D"),
    Tensor("ffn.pre_norm", L + "post_attention_layernorm.weight", "D"),
)
POST_NORMS = (
    Tensor("attn.post_norm", L + "post_attention_layernorm.weight", "D"),
    Tensor("ffn.post_norm", L + "post_feedforward_layernorm.weight", "D"),
)
FFN = (
    Tensor("ffn.gate", L + "mlp.gate_proj.weight", "F D"),
    Tensor("ffn.gate.bias", L + "mlp.gate_proj.bias", "F", when="mlp_bias"),
    Tensor("ffn.up", L + "mlp.up_proj.weight", "F D"),
    Tensor("ffn.up.bias", L + "mlp.up_proj.bias", "F", when="mlp_bias"),
    Tensor("ffn.down", L + "mlp.down_proj.weight", "D F"),
    Tensor("ffn.down.bias", L + "mlp.down_proj.bias", "D", when="mlp_bias"),
)


def experts(name: str, gate: str, up: str, down: str) -> tuple[Tensor, ...]:
    """The three tensors of each expert, one by one on disk, all of a layer's stacked in memory."""
    both, out = L + "mlp.experts.gate_up_proj", L + "mlp.experts.down_proj"
    return (
        Tensor("expert.gate", f"{L}{name}.{{expert}}.{gate}.weight", "X D", stacked=both),
        Tensor("expert.up", f"{L}{name}.{{expert}}.{up}.weight", "X D", stacked=both),
        Tensor("expert.down", f"{L}{name}.{{expert}}.{down}.weight", "D X", stacked=out),
    )


ROUTER = Tensor("router", L + "mlp.gate.weight", "E D")
EXPERTS = (ROUTER, *experts("mlp.experts", "gate_proj", "up_proj", "down_proj"))


def layer_norm(part: str, name: str, when: str = "") -> tuple[Tensor, Tensor]:
    return with_bias(Tensor(part, f"{name}.weight", "D", when=when), when)


def with_bias(weight: Tensor, when: str = "") -> tuple[Tensor, Tensor]:
    """A weight [out, in], or a norm's gain, and the bias beside it."""
    letter = weight.shape.split()[0]
    name = weight.name.removesuffix("weight") + "bias"
    return weight, replace(weight, part=f"{weight.part}.bias", name=name, shape=letter, when=when, transposed=False)


KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "hidden_act": "hidden_act",
    "tie_word_embeddings": "tie_word_embeddings",
    "max_position_embeddings": "max_position_embeddings",
}
LLAMA_KEYS = KEYS | {"num_kv_heads": "num_key_value_heads", "norm_eps": "rms_norm_eps"}
INTERMEDIATE = {"intermediate_size": "intermediate_size"}
DENSE_KEYS = LLAMA_KEYS | INTERMEDIATE
BIASES = {"qkv_bias": "attention_bias", "o_bias": "attention_bias"}
NO_BIAS = {"qkv_bias": False, "o_bias": False, "mlp_bias": False}

DEFAULTS: dict[str, Any] = {
    "hidden_act": "silu", "initializer_range": 0.02, "rms_norm_eps": 1e-6, "use_cache": True,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
    "tie_word_embeddings": False, "attention_dropout": 0.0,
}  # fmt: skip
SIZES: dict[str, Any] = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": None,
}  # fmt: skip
QWEN = DEFAULTS | {"max_position_embeddings": 32768, "use_sliding_window": False, "sliding_window": 4096}
QWEN_SIZES = SIZES | {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32}
OLMO = DEFAULTS | {
    "vocab_size": 50304, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": None, "attention_bias": False, "pad_token_id": 1, "eos_token_id": 50279,
}  # fmt: skip
