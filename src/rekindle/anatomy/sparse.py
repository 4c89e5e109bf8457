"""Decoders with layers of experts."""

from __future__ import annotations

from rekindle.anatomy.family import Family
from rekindle.anatomy.layout import COUNTED_SHARED
from rekindle.anatomy.rows import (
    ATTENTION,
    BIASES,
    DEFAULTS,
    DENSE_KEYS,
    EXPERTS,
    FFN,
    FULL_QK_NORMS,
    HEAD_QK_NORMS,
    INTERMEDIATE,
    KEYS,
    LLAMA_KEYS,
    NO_BIAS,
    OLMO,
    POST_NORMS,
    PRE_NORMS,
    QWEN,
    QWEN_SIZES,
    SIZES,
    TOP,
    L,
    experts,
)
from rekindle.anatomy.tensor import Tensor

MIXTRAL_EXPERTS = (
    Tensor("router", L + "block_sparse_moe.gate.weight", "E D"),
    *experts("block_sparse_moe.experts", gate="w1", up="w3", down="w2"),
)
# A parent without a shared expert lends its first units; a zero down-projection keeps the function, and still gets
# a gradient since the gate is open by half at zero (Qwen2-MoE multiplies the shared output by sigmoid(gate x)).
SHARED_EXPERT = (
    Tensor("shared.gate", L + "mlp.shared_expert.gate_proj.weight", "S D", neutral="first ffn.gate"),
    Tensor("shared.up", L + "mlp.shared_expert.up_proj.weight", "S D", neutral="first ffn.up"),
    Tensor("shared.down", L + "mlp.shared_expert.down_proj.weight", "D S", neutral="zeros"),
    Tensor("shared.switch", L + "mlp.shared_expert_gate.weight", "1 D", neutral="zeros"),
)
AUX = {"aux_loss_coef": "router_aux_loss_coef"}
QWEN_MOE_KEYS = DENSE_KEYS | AUX | {
    "num_experts": "num_experts",
    "top_k": "num_experts_per_tok",
    "expert_size": "moe_intermediate_size",
    "norm_topk_prob": "norm_topk_prob",
}  # fmt: skip
OLMO_MOE_KEYS = LLAMA_KEYS | AUX | {
    "expert_size": "intermediate_size",
    "num_experts": "num_experts",
    "top_k": "num_experts_per_tok",
    "norm_topk_prob": "norm_topk_prob",
}  # fmt: skip
ONLY_EXPERTS = {"intermediate_size": 0}
MOE = {"output_router_logits": False, "router_aux_loss_coef": 0.001}

MIXTRAL = Family(
    "mixtral", {"causal": "MixtralForCausalLM"}, TOP, ATTENTION + PRE_NORMS, (), MIXTRAL_EXPERTS,
    keys=LLAMA_KEYS | AUX | {
        "head_dim": "head_dim", "expert_size": "intermediate_size", "num_experts": "num_local_experts",
        "top_k": "num_experts_per_tok", "router_jitter": "router_jitter_noise",
    },
    fixed=NO_BIAS | ONLY_EXPERTS,
    defaults=DEFAULTS | SIZES | MOE | {
        "intermediate_size": 14336, "num_key_value_heads": 8, "max_position_embeddings": 131072, "rms_norm_eps": 1e-5,
        "bos_token_id": 1, "eos_token_id": 2, "head_dim": None, "sliding_window": None,
        "num_experts_per_tok": 2, "num_local_experts": 8, "router_jitter_noise": 0.0,
    },
    rope_theta=1_000_000.0, windows="uniform", sparsity="all",
    runtime={"block_sparse_moe.": "mlp."},
)  # fmt: skip
QWEN2_MOE = Family(
    "qwen2_moe", {"causal": "Qwen2MoeForCausalLM"}, TOP, ATTENTION + PRE_NORMS, FFN, EXPERTS + SHARED_EXPERT,
    keys=QWEN_MOE_KEYS | {"qkv_bias": "qkv_bias", "shared_size": "shared_expert_intermediate_size"},
    fixed={"o_bias": False, "mlp_bias": False, "shared_switch": True},
    defaults=QWEN | QWEN_SIZES | MOE | {
        "hidden_size": 2048, "intermediate_size": 5632, "num_hidden_layers": 24, "num_attention_heads": 16,
        "num_key_value_heads": 16, "max_window_layers": 28, "decoder_sparse_step": 1,
        "moe_intermediate_size": 1408, "shared_expert_intermediate_size": 5632, "num_experts_per_tok": 4,
        "num_experts": 60, "norm_topk_prob": False, "mlp_only_layers": [], "qkv_bias": True,
    },
    windows="listed", sparsity="stepped",
)  # fmt: skip
QWEN3_MOE = Family(
    "qwen3_moe", {"causal": "Qwen3MoeForCausalLM"}, TOP, ATTENTION + HEAD_QK_NORMS + PRE_NORMS, FFN, EXPERTS,
    keys=QWEN_MOE_KEYS | BIASES | {"head_dim": "head_dim"},
    fixed={"qk_norm": "head", "mlp_bias": False},
    defaults=QWEN | QWEN_SIZES | MOE | {
        "hidden_size": 2048, "intermediate_size": 6144, "num_hidden_layers": 24, "num_attention_heads": 32,
        "num_key_value_heads": 4, "decoder_sparse_step": 1, "moe_intermediate_size": 768,
        "num_experts_per_tok": 8, "num_experts": 128, "norm_topk_prob": False, "mlp_only_layers": [],
        "attention_bias": False, "head_dim": None,
    },
    windows="switched", sparsity="stepped",
)  # fmt: skip
OLMOE = Family(
    "olmoe", {"causal": "OlmoeForCausalLM"}, TOP, ATTENTION + FULL_QK_NORMS + PRE_NORMS, (), EXPERTS,
    keys=OLMO_MOE_KEYS | BIASES | {"clip_qkv": "clip_qkv"},
    fixed=ONLY_EXPERTS | {"qk_norm": "full", "mlp_bias": False},
    defaults=OLMO | MOE | {
        "hidden_size": 2048, "intermediate_size": 2048, "num_hidden_layers": 16, "num_attention_heads": 16,
        "max_position_embeddings": 4096, "rms_norm_eps": 1e-5, "clip_qkv": None, "num_experts_per_tok": 8,
        "num_experts": 64, "router_aux_loss_coef": 0.01, "norm_topk_prob": False,
    },
    sparsity="all",
)  # fmt: skip
FLEX_OLMO = Family(
    "flex_olmo", {"causal": "FlexOlmoForCausalLM"}, TOP, ATTENTION + FULL_QK_NORMS + POST_NORMS, (), EXPERTS,
    keys=OLMO_MOE_KEYS | BIASES,
    fixed=ONLY_EXPERTS | {"qk_norm": "full", "norm_order": "post", "mlp_bias": False},
    defaults=OLMO | MOE | {
        "vocab_size": 100352, "intermediate_size": 11008, "max_position_embeddings": 4096,
        "pad_token_id": 100277, "eos_token_id": 100257, "num_experts_per_tok": 5, "num_experts": 7,
        "router_aux_loss_coef": 0.01, "norm_topk_prob": False,
    },
    rope_theta=500_000.0, sparsity="all",
)  # fmt: skip

LATENT_ATTENTION = (
    Tensor("attn.q", L + "self_attn.q_proj.weight", "H D", when="not q_rank"),
    Tensor("attn.q_a", L + "self_attn.q_a_proj.weight", "Q D", when="q_rank"),
    Tensor("attn.q_a.bias", L + "self_attn.q_a_proj.bias", "Q", when="q_rank,qkv_bias"),
    Tensor("attn.q_a_norm", L + "self_attn.q_a_layernorm.weight", "Q", when="q_rank"),
    Tensor("attn.q_b", L + "self_attn.q_b_proj.weight", "H Q", when="q_rank"),
    Tensor("attn.kv_a", L + "self_attn.kv_a_proj_with_mqa.weight", "R D"),
    Tensor("attn.kv_a.bias", L + "self_attn.kv_a_proj_with_mqa.bias", "R", when="qkv_bias"),
    Tensor("attn.kv_a_norm", L + "self_attn.kv_a_layernorm.weight", "C"),
    Tensor("attn.kv_b", L + "self_attn.kv_b_proj.weight", "B C"),
    Tensor("attn.o", L + "self_attn.o_proj.weight", "D O"),
    Tensor("attn.o.bias", L + "self_attn.o_proj.bias", "D", when="o_bias"),
)
DEEPSEEK_V3 = Family(
    "deepseek_v3", {"causal": "DeepseekV3ForCausalLM"}, TOP, LATENT_ATTENTION + PRE_NORMS, FFN,
    (
        *EXPERTS,
        Tensor("router.bias", L + "mlp.gate.e_score_correction_bias", "E", buffer=True),
        Tensor("shared.gate", L + "mlp.shared_experts.gate_proj.weight", "S D"),
        Tensor("shared.up", L + "mlp.shared_experts.up_proj.weight", "S D"),
        Tensor("shared.down", L + "mlp.shared_experts.down_proj.weight", "D S"),
    ),
    keys=KEYS | INTERMEDIATE | BIASES | {
        "norm_eps": "rms_norm_eps", "kv_rank": "kv_lora_rank", "q_rank": "q_lora_rank", "value_dim": "v_head_dim",
        "rope_interleaved": "rope_interleave", "num_experts": "n_routed_experts", "top_k": "num_experts_per_tok",
        "expert_size": "moe_intermediate_size", "norm_topk_prob": "norm_topk_prob", "num_groups": "n_group",
        "top_k_groups": "topk_group", "routed_scaling": "routed_scaling_factor",
    },
    fixed={"scoring": "sigmoid", "router_bias": True, "mlp_bias": False},
    defaults=DEFAULTS | {
        "vocab_size": 129280, "hidden_size": 7168, "intermediate_size": 18432, "moe_intermediate_size": 2048,
        "num_hidden_layers": 61, "num_attention_heads": 128, "num_key_value_heads": 128, "n_shared_experts": 1,
        "n_routed_experts": 256, "output_router_logits": False, "routed_scaling_factor": 2.5, "kv_lora_rank": 512,
        "q_lora_rank": 1536, "qk_rope_head_dim": 64, "v_head_dim": 128, "qk_nope_head_dim": 128, "n_group": 8,
        "topk_group": 4, "num_experts_per_tok": 8, "first_k_dense_replace": 3, "norm_topk_prob": True,
        "max_position_embeddings": 4096, "bos_token_id": 0, "eos_token_id": 1, "pretraining_tp": 1,
        "rope_interleave": True, "attention_bias": False, "num_nextn_predict_layers": 1,
    },
    rope="latent", sparsity="first_dense", spelt=(COUNTED_SHARED,),
    # transformers always does so; engines only where they are told
    only={"scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    written={"scoring_func": "sigmoid", "topk_method": "noaux_tc"},
    extra_layers="num_nextn_predict_layers",
)  # fmt: skip

SPARSE = (MIXTRAL, QWEN2_MOE, QWEN3_MOE, OLMOE, FLEX_OLMO, DEEPSEEK_V3)
