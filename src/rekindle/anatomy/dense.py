"""Decoders whose every layer has one feed-forward."""

from __future__ import annotations

from rekindle.anatomy.family import Family
from rekindle.anatomy.rows import (
    ATTENTION,
    ATTENTION_OUT,
    BIASES,
    DEFAULTS,
    DENSE_KEYS,
    FFN,
    FULL_QK_NORMS,
    HEAD_QK_NORMS,
    INTERMEDIATE,
    KEYS,
    NO_BIAS,
    OLMO,
    POST_NORMS,
    PRE_NORMS,
    QWEN,
    QWEN_SIZES,
    SIZES,
    TOP,
    L,
    layer_norm,
    with_bias,
)
from rekindle.anatomy.tensor import Tensor

LLAMA = Family(
    "llama", {"causal": "LlamaForCausalLM"}, TOP, ATTENTION + PRE_NORMS, FFN, (),
    keys=DENSE_KEYS | BIASES | {"mlp_bias": "mlp_bias", "head_dim": "head_dim"},
    fixed={},
    defaults=DEFAULTS | SIZES | {
        "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2, "pretraining_tp": 1,
        "attention_bias": False, "mlp_bias": False, "head_dim": None,
    },
    twins=("mixtral", "qwen2_moe"), whole_heads=True,
)  # fmt: skip
MISTRAL = Family(
    "mistral", {"causal": "MistralForCausalLM"}, TOP, ATTENTION + PRE_NORMS, FFN, (),
    keys=DENSE_KEYS | {"head_dim": "head_dim"},
    fixed=NO_BIAS,
    defaults=DEFAULTS | SIZES | {
        "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072,
        "bos_token_id": 1, "eos_token_id": 2, "head_dim": None, "sliding_window": 4096,
    },
    windows="uniform", twins=("mixtral", "qwen2_moe"),
)  # fmt: skip
QWEN2 = Family(
    "qwen2", {"causal": "Qwen2ForCausalLM"}, TOP, ATTENTION + PRE_NORMS, FFN, (),
    keys=DENSE_KEYS,
    fixed={"qkv_bias": True, "o_bias": False, "mlp_bias": False},
    defaults=QWEN | QWEN_SIZES | {"max_window_layers": 28},
    windows="listed", twins=("qwen2_moe",),
)  # fmt: skip
QWEN3 = Family(
    "qwen3", {"causal": "Qwen3ForCausalLM"}, TOP, ATTENTION + HEAD_QK_NORMS + PRE_NORMS, FFN, (),
    keys=DENSE_KEYS | BIASES | {"head_dim": "head_dim"},
    fixed={"qk_norm": "head", "mlp_bias": False},
    defaults=QWEN | QWEN_SIZES | {"max_window_layers": 28, "attention_bias": False, "head_dim": 128},
    windows="listed", twins=("qwen3_moe",),
)  # fmt: skip
OLMO_2 = Family(
    "olmo2", {"causal": "Olmo2ForCausalLM"}, TOP, ATTENTION + FULL_QK_NORMS + POST_NORMS, FFN, (),
    keys=DENSE_KEYS | BIASES,
    fixed={"qk_norm": "full", "norm_order": "post", "mlp_bias": False},
    defaults=OLMO | {"intermediate_size": 11008, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
    twins=("flex_olmo",),
)  # fmt: skip

QKV, GATE_UP = L + "self_attn.qkv_proj.weight", L + "mlp.gate_up_proj.weight"
PHI3 = Family(
    "phi3", {"causal": "Phi3ForCausalLM"}, TOP,
    (
        Tensor("attn.q", QKV, "H D", packed="rows"),
        Tensor("attn.k", QKV, "K D", packed="rows"),
        Tensor("attn.v", QKV, "K D", packed="rows"),
        *ATTENTION_OUT, *PRE_NORMS,
    ),
    (
        Tensor("ffn.gate", GATE_UP, "F D", packed="rows"),
        Tensor("ffn.up", GATE_UP, "F D", packed="rows"),
        Tensor("ffn.down", L + "mlp.down_proj.weight", "D F"),
    ),
    (),
    keys=DENSE_KEYS,
    fixed=NO_BIAS,
    defaults=DEFAULTS | {
        "vocab_size": 32064, "hidden_size": 3072, "intermediate_size": 8192, "num_hidden_layers": 32,
        "num_attention_heads": 32, "num_key_value_heads": None, "resid_pdrop": 0.0, "embd_pdrop": 0.0,
        "max_position_embeddings": 4096, "original_max_position_embeddings": 4096, "rms_norm_eps": 1e-5,
        "bos_token_id": 1, "eos_token_id": 32000, "pad_token_id": 32000, "sliding_window": None,
    },
    rope="factor", windows="uniform", twins=("mixtral",),
)  # fmt: skip

N = "gpt_neox.layers.{layer}."
NEOX_QKV = tuple(
    row
    for part, letter in (("q", "H"), ("k", "K"), ("v", "K"))
    for row in with_bias(
        Tensor(f"attn.{part}", N + "attention.query_key_value.weight", f"{letter} D", packed="heads"), "qkv_bias"
    )
)
GPT_NEOX = Family(
    "gpt_neox", {"causal": "GPTNeoXForCausalLM"},
    (
        Tensor("embed", "gpt_neox.embed_in.weight", "V D"),
        *layer_norm("norm", "gpt_neox.final_layer_norm"),
        Tensor("head", "embed_out.weight", "V D", when="not tie_word_embeddings"),
    ),
    (
        *NEOX_QKV,
        *with_bias(Tensor("attn.o", N + "attention.dense.weight", "D H"), "o_bias"),
        *layer_norm("attn.pre_norm", N + "input_layernorm"),
        *layer_norm("ffn.pre_norm", N + "post_attention_layernorm"),
    ),
    (
        *with_bias(Tensor("ffn.up", N + "mlp.dense_h_to_4h.weight", "F D")),
        *with_bias(Tensor("ffn.down", N + "mlp.dense_4h_to_h.weight", "D F")),
    ),
    (),
    keys=KEYS | INTERMEDIATE | BIASES | {
        "norm_eps": "layer_norm_eps", "parallel_residual": "use_parallel_residual",
    },
    fixed={"norm": "layer", "gated": False, "mlp_bias": True},
    defaults={
        "vocab_size": 50432, "hidden_size": 6144, "num_hidden_layers": 44, "num_attention_heads": 64,
        "intermediate_size": 24576, "hidden_act": "gelu", "attention_dropout": 0.0, "hidden_dropout": 0.0,
        "classifier_dropout": 0.1, "max_position_embeddings": 2048, "initializer_range": 0.02, "layer_norm_eps": 1e-5,
        "use_cache": True, "bos_token_id": 0, "eos_token_id": 2, "pad_token_id": None, "tie_word_embeddings": False,
        "use_parallel_residual": True, "attention_bias": True, "is_decoder": False,
    },
    prefix="gpt_neox.", rope="percent", whole_heads=True, runtime={"embed_out.": "lm_head."},
    ignorable=("rotary_emb.inv_freq", "attention.bias", "attention.masked_bias"),
)  # fmt: skip

G = "transformer.h.{layer}."
GPT2_QKV = tuple(
    row
    for part, letter in (("q", "H"), ("k", "K"), ("v", "K"))
    for row in with_bias(
        Tensor(f"attn.{part}", G + "attn.c_attn.weight", f"{letter} D", packed="rows", transposed=True)
    )
)
GPT2 = Family(
    "gpt2", {"causal": "GPT2LMHeadModel"},
    (
        Tensor("embed", "transformer.wte.weight", "V D"),
        Tensor("positions", "transformer.wpe.weight", "M D"),
        *layer_norm("norm", "transformer.ln_f"),
        Tensor("head", "lm_head.weight", "V D", when="not tie_word_embeddings"),
    ),
    (
        *GPT2_QKV,
        *with_bias(Tensor("attn.o", G + "attn.c_proj.weight", "D H", transposed=True)),
        *layer_norm("attn.pre_norm", G + "ln_1"),
        *layer_norm("ffn.pre_norm", G + "ln_2"),
    ),
    (
        *with_bias(Tensor("ffn.up", G + "mlp.c_fc.weight", "F D", transposed=True)),
        *with_bias(Tensor("ffn.down", G + "mlp.c_proj.weight", "D F", transposed=True)),
    ),
    (),
    keys={
        "vocab_size": "vocab_size", "hidden_size": "n_embd", "num_layers": "n_layer", "num_heads": "n_head",
        "intermediate_size": "n_inner", "hidden_act": "activation_function", "norm_eps": "layer_norm_epsilon",
        "max_position_embeddings": "n_positions", "tie_word_embeddings": "tie_word_embeddings",
    },
    fixed={
        "norm": "layer", "gated": False, "learned_positions": True,
        "qkv_bias": True, "o_bias": True, "mlp_bias": True,
    },
    defaults={
        "vocab_size": 50257, "n_positions": 1024, "n_embd": 768, "n_layer": 12, "n_head": 12, "n_inner": None,
        "activation_function": "gelu_new", "resid_pdrop": 0.1, "embd_pdrop": 0.1, "attn_pdrop": 0.1,
        "layer_norm_epsilon": 1e-5, "initializer_range": 0.02, "summary_type": "cls_index",
        "summary_use_proj": True, "summary_activation": None, "summary_proj_to_labels": True,
        "summary_first_dropout": 0.1, "scale_attn_weights": True, "use_cache": True, "bos_token_id": 50256,
        "eos_token_id": 50256, "pad_token_id": None, "scale_attn_by_inverse_layer_idx": False,
        "reorder_and_upcast_attn": False, "add_cross_attention": False, "tie_word_embeddings": True,
    },
    prefix="transformer.", rope="none",
    only={"scale_attn_weights": True, "scale_attn_by_inverse_layer_idx": False, "add_cross_attention": False},
    ignorable=(".attn.bias", ".attn.masked_bias"),
)  # fmt: skip

SANDWICH = (
    *POST_NORMS,
    Tensor("attn.pre_norm", L + "input_layernorm.weight", "D"),
    Tensor("ffn.pre_norm", L + "pre_feedforward_layernorm.weight", "D"),
)
GEMMA2 = Family(
    "gemma2", {"causal": "Gemma2ForCausalLM"}, TOP, (*ATTENTION, *SANDWICH), FFN, (),
    keys=DENSE_KEYS | BIASES | {
        "head_dim": "head_dim", "hidden_act": "hidden_activation", "query_scalar": "query_pre_attn_scalar",
        "attn_softcap": "attn_logit_softcapping", "logit_softcap": "final_logit_softcapping",
    },
    fixed={"norm_order": "sandwich", "norm_offset": 1.0, "scaled_embeddings": True, "mlp_bias": False},
    defaults={
        "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
        "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
        "max_position_embeddings": 8192, "initializer_range": 0.02, "rms_norm_eps": 1e-6, "use_cache": True,
        "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "tie_word_embeddings": True, "attention_bias": False,
        "attention_dropout": 0.0, "query_pre_attn_scalar": 256, "sliding_window": 4096,
        "final_logit_softcapping": 30.0, "attn_logit_softcapping": 50.0, "use_bidirectional_attention": None,
    },
    windows="alternating", whole_heads=True, only={"use_bidirectional_attention": None},
)  # fmt: skip
GEMMA3 = Family(
    "gemma3_text", {"causal": "Gemma3ForCausalLM"}, TOP,
    (*ATTENTION, *HEAD_QK_NORMS, *SANDWICH), FFN, (),
    keys=GEMMA2.keys,
    fixed={**GEMMA2.fixed, "qk_norm": "head"},
    defaults={
        **GEMMA2.defaults, "vocab_size": 262208, "max_position_embeddings": 131072, "final_logit_softcapping": None,
        "attn_logit_softcapping": None, "use_bidirectional_attention": False,
    },
    rope="local", rope_theta=1_000_000.0, windows="patterned", whole_heads=True,
    only={"use_bidirectional_attention": False},
)  # fmt: skip

DENSE = (LLAMA, MISTRAL, QWEN2, QWEN3, OLMO_2, PHI3, GEMMA2, GEMMA3, GPT_NEOX, GPT2)
