"""The tables: one row of data per family. Checked against the transformers classes by the tests.

Letters of shapes: V vocabulary, D hidden, H heads x dim, K key/value heads x dim, A head dim, F feed-forward,
E experts, X one expert's feed-forward, S the shared expert's.
"""

from __future__ import annotations

from rekindle.anatomy.family import Family, Tensor

L = "model.layers.{layer}."

TOP = (
    Tensor("embed", "model.embed_tokens.weight", "V D"),
    Tensor("norm", "model.norm.weight", "D"),
    Tensor("head", "lm_head.weight", "V D", when="not tie_word_embeddings"),
)
ATTENTION = (
    Tensor("attn.q", L + "self_attn.q_proj.weight", "H D"),
    Tensor("attn.q.bias", L + "self_attn.q_proj.bias", "H", when="qkv_bias"),
    Tensor("attn.k", L + "self_attn.k_proj.weight", "K D"),
    Tensor("attn.k.bias", L + "self_attn.k_proj.bias", "K", when="qkv_bias"),
    Tensor("attn.v", L + "self_attn.v_proj.weight", "K D"),
    Tensor("attn.v.bias", L + "self_attn.v_proj.bias", "K", when="qkv_bias"),
    Tensor("attn.o", L + "self_attn.o_proj.weight", "D H"),
    Tensor("attn.o.bias", L + "self_attn.o_proj.bias", "D", when="o_bias"),
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
EXPERTS = (
    Tensor("router", L + "mlp.gate.weight", "E D"),
    Tensor("expert.gate", L + "mlp.experts.{expert}.gate_proj.weight", "X D"),
    Tensor("expert.up", L + "mlp.experts.{expert}.up_proj.weight", "X D"),
    Tensor("expert.down", L + "mlp.experts.{expert}.down_proj.weight", "D X"),
)
MIXTRAL_EXPERTS = (
    Tensor("router", L + "block_sparse_moe.gate.weight", "E D"),
    Tensor("expert.gate", L + "block_sparse_moe.experts.{expert}.w1.weight", "X D"),
    Tensor("expert.down", L + "block_sparse_moe.experts.{expert}.w2.weight", "D X"),
    Tensor("expert.up", L + "block_sparse_moe.experts.{expert}.w3.weight", "X D"),
)
# A parent without a shared expert lends its first units; a zero down-projection keeps the function, and still gets
# a gradient since the gate is open by half at zero (Qwen2-MoE multiplies the shared output by sigmoid(gate x)).
SHARED_EXPERT = (
    Tensor("shared.gate", L + "mlp.shared_expert.gate_proj.weight", "S D", neutral="first ffn.gate"),
    Tensor("shared.up", L + "mlp.shared_expert.up_proj.weight", "S D", neutral="first ffn.up"),
    Tensor("shared.down", L + "mlp.shared_expert.down_proj.weight", "D S", neutral="zeros"),
    Tensor("shared.switch", L + "mlp.shared_expert_gate.weight", "1 D", neutral="zeros"),
)

KEYS = {
    "vocab_size": "vocab_size",
    "hidden_size": "hidden_size",
    "num_layers": "num_hidden_layers",
    "num_heads": "num_attention_heads",
    "num_kv_heads": "num_key_value_heads",
    "hidden_act": "hidden_act",
    "rms_norm_eps": "rms_norm_eps",
    "tie_word_embeddings": "tie_word_embeddings",
    "max_position_embeddings": "max_position_embeddings",
}
DENSE_KEYS = KEYS | {"intermediate_size": "intermediate_size"}
QWEN_MOE_KEYS = DENSE_KEYS | {
    "num_experts": "num_experts",
    "top_k": "num_experts_per_tok",
    "expert_size": "moe_intermediate_size",
    "norm_topk_prob": "norm_topk_prob",
}
OLMO_MOE_KEYS = KEYS | {
    "expert_size": "intermediate_size",
    "num_experts": "num_experts",
    "top_k": "num_experts_per_tok",
    "norm_topk_prob": "norm_topk_prob",
}
BIASES = {"qkv_bias": "attention_bias", "o_bias": "attention_bias"}

NO_BIAS = {"qkv_bias": False, "o_bias": False, "mlp_bias": False}
PLAIN = {"qk_norm": "none", "norm_order": "pre"}
HEAD_NORMED = {"qk_norm": "head", "norm_order": "pre", "mlp_bias": False}
OLMO2 = {"qk_norm": "full", "norm_order": "post", "mlp_bias": False}
DENSE = {"clip_qkv": None}
ONLY_EXPERTS = {"intermediate_size": 0, "shared_size": 0}

DEFAULTS = {
    "hidden_act": "silu", "initializer_range": 0.02, "rms_norm_eps": 1e-6, "use_cache": True,
    "pad_token_id": None, "bos_token_id": None, "eos_token_id": None,
    "tie_word_embeddings": False, "attention_dropout": 0.0,
}  # fmt: skip
QWEN = DEFAULTS | {"max_position_embeddings": 32768, "use_sliding_window": False, "sliding_window": 4096}
OLMO = DEFAULTS | {
    "vocab_size": 50304, "hidden_size": 4096, "num_hidden_layers": 32, "num_attention_heads": 32,
    "num_key_value_heads": None, "attention_bias": False, "pad_token_id": 1, "eos_token_id": 50279,
}  # fmt: skip
MOE = {"output_router_logits": False, "router_aux_loss_coef": 0.001}
SIZES = {
    "vocab_size": 32000, "hidden_size": 4096, "intermediate_size": 11008, "num_hidden_layers": 32,
    "num_attention_heads": 32, "num_key_value_heads": None,
}  # fmt: skip
QWEN_SIZES = SIZES | {"vocab_size": 151936, "intermediate_size": 22016, "num_key_value_heads": 32}

LLAMA = Family(
    "llama", "LlamaForCausalLM", TOP, ATTENTION + PRE_NORMS, FFN, (),
    keys=DENSE_KEYS | BIASES | {"mlp_bias": "mlp_bias", "head_dim": "head_dim"},
    fixed=PLAIN | DENSE,
    defaults=DEFAULTS | SIZES | {
        "max_position_embeddings": 2048, "bos_token_id": 1, "eos_token_id": 2, "pretraining_tp": 1,
        "attention_bias": False, "mlp_bias": False, "head_dim": None,
    },
    twins=("mixtral", "qwen2_moe"),
)  # fmt: skip
MISTRAL = Family(
    "mistral", "MistralForCausalLM", TOP, ATTENTION + PRE_NORMS, FFN, (),
    keys=DENSE_KEYS | {"head_dim": "head_dim"},
    fixed=PLAIN | NO_BIAS | DENSE,
    defaults=DEFAULTS | SIZES | {
        "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072,
        "bos_token_id": 1, "eos_token_id": 2, "head_dim": None, "sliding_window": 4096,
    },
    windows="uniform", twins=("mixtral", "qwen2_moe"),
)  # fmt: skip
QWEN2 = Family(
    "qwen2", "Qwen2ForCausalLM", TOP, ATTENTION + PRE_NORMS, FFN, (),
    keys=DENSE_KEYS,
    fixed=PLAIN | DENSE | {"qkv_bias": True, "o_bias": False, "mlp_bias": False},
    defaults=QWEN | QWEN_SIZES | {"max_window_layers": 28},
    windows="listed", twins=("qwen2_moe",),
)  # fmt: skip
QWEN3 = Family(
    "qwen3", "Qwen3ForCausalLM", TOP, ATTENTION + HEAD_QK_NORMS + PRE_NORMS, FFN, (),
    keys=DENSE_KEYS | BIASES | {"head_dim": "head_dim"},
    fixed=HEAD_NORMED | DENSE,
    defaults=QWEN | QWEN_SIZES | {"max_window_layers": 28, "attention_bias": False, "head_dim": 128},
    windows="listed", twins=("qwen3_moe",),
)  # fmt: skip
OLMO_2 = Family(
    "olmo2", "Olmo2ForCausalLM", TOP, ATTENTION + FULL_QK_NORMS + POST_NORMS, FFN, (),
    keys=DENSE_KEYS | BIASES,
    fixed=OLMO2 | DENSE,
    defaults=OLMO | {"intermediate_size": 11008, "max_position_embeddings": 2048, "rms_norm_eps": 1e-5},
    twins=("flex_olmo",),
)  # fmt: skip
MIXTRAL = Family(
    "mixtral", "MixtralForCausalLM", TOP, ATTENTION + PRE_NORMS, (), MIXTRAL_EXPERTS,
    keys=KEYS | {
        "head_dim": "head_dim", "expert_size": "intermediate_size", "num_experts": "num_local_experts",
        "top_k": "num_experts_per_tok", "router_jitter": "router_jitter_noise",
    },
    fixed=PLAIN | NO_BIAS | DENSE | ONLY_EXPERTS | {"norm_topk_prob": True},
    defaults=DEFAULTS | SIZES | MOE | {
        "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
        "bos_token_id": 1, "eos_token_id": 2, "head_dim": None, "sliding_window": None,
        "num_experts_per_tok": 2, "num_local_experts": 8, "router_jitter_noise": 0.0,
    },
    rope_theta=1_000_000.0, windows="uniform", sparsity="all",
    runtime={"block_sparse_moe.": "mlp."},
)  # fmt: skip
QWEN2_MOE = Family(
    "qwen2_moe", "Qwen2MoeForCausalLM", TOP, ATTENTION + PRE_NORMS, FFN, EXPERTS + SHARED_EXPERT,
    keys=QWEN_MOE_KEYS | {"qkv_bias": "qkv_bias", "shared_size": "shared_expert_intermediate_size"},
    fixed=PLAIN | DENSE | {"o_bias": False, "mlp_bias": False},
    defaults=QWEN | QWEN_SIZES | MOE | {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16,
        "num_key_value_heads": 16, "max_window_layers": 28, "decoder_sparse_step": 1,
        "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "num_experts_per_tok": 4,
        "num_experts": 60, "norm_topk_prob": False, "mlp_only_layers": [], "qkv_bias": True,
    },
    windows="listed", sparsity="stepped",
)  # fmt: skip
QWEN3_MOE = Family(
    "qwen3_moe", "Qwen3MoeForCausalLM", TOP, ATTENTION + HEAD_QK_NORMS + PRE_NORMS, FFN, EXPERTS,
    keys=QWEN_MOE_KEYS | BIASES | {"head_dim": "head_dim"},
    fixed=HEAD_NORMED | DENSE | {"shared_size": 0},
    defaults=QWEN | QWEN_SIZES | MOE | {
        "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24, "num_attention_heads": 32,
        "num_key_value_heads": 4, "decoder_sparse_step": 1, "moe_intermediate_size": 768,
        "num_experts_per_tok": 8, "num_experts": 128, "norm_topk_prob": False, "mlp_only_layers": [],
        "attention_bias": False, "head_dim": None,
    },
    windows="switched", sparsity="stepped",
)  # fmt: skip
OLMOE = Family(
    "olmoe", "OlmoeForCausalLM", TOP, ATTENTION + FULL_QK_NORMS + PRE_NORMS, (), EXPERTS,
    keys=OLMO_MOE_KEYS | BIASES | {"clip_qkv": "clip_qkv"},
    fixed=ONLY_EXPERTS | {"qk_norm": "full", "norm_order": "pre", "mlp_bias": False},
    defaults=OLMO | MOE | {
        "hidden_size": 2048, "intermediate_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "clip_qkv": None, "num_experts_per_tok": 8,
        "num_experts": 64, "router_aux_loss_coef": 0.01, "norm_topk_prob": False,
    },
    sparsity="all",
)  # fmt: skip
FLEX_OLMO = Family(
    "flex_olmo", "FlexOlmoForCausalLM", TOP, ATTENTION + FULL_QK_NORMS + POST_NORMS, (), EXPERTS,
    keys=OLMO_MOE_KEYS | BIASES,
    fixed=ONLY_EXPERTS | OLMO2 | DENSE,
    defaults=OLMO | MOE | {
        "vocab_size": 100352, "intermediate_size": 11008, "max_position_embeddings": 4096,
        "pad_token_id": 100277, "eos_token_id": 100257, "num_experts_per_tok": 5, "num_experts": 7,
        "router_aux_loss_coef": 0.01, "norm_topk_prob": False,
    },
    rope_theta=500_000.0, sparsity="all",
)  # fmt: skip

FAMILIES = {
    family.model_type: family
    for family in (
        LLAMA, MISTRAL, QWEN2, QWEN3, OLMO_2,
        MIXTRAL, QWEN2_MOE, QWEN3_MOE, OLMOE, FLEX_OLMO,
    )
}  # fmt: skip
