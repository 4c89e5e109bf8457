"""Tiny real models, made by transformers itself."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

TINY = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64, "pad_token_id": 0,
    "bos_token_id": 1, "eos_token_id": 2, "initializer_range": 0.3,
}  # fmt: skip
TINY_MOE = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 24}

DENSE = ("llama", "mistral", "qwen2", "qwen3", "olmo2")  # with sparse kin
PLAIN = ("phi3", "gemma2", "gemma3_text", "gpt_neox", "gpt2")  # dense, without
SPARSE = ("mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "flex_olmo", "deepseek_v3")
PACKED = ("phi3", "gpt_neox", "gpt2")  # several roles in a tensor, or transposed ones
DECODERS = DENSE + PLAIN + SPARSE
ENCODERS = ("bert", "roberta", "bert-generation", "modernbert")
ENCODER_DECODERS = ("t5", "mt5", "umt5", "switch_transformers", "t5gemma", "t5gemma2")
ONE_TOWER = DECODERS + ENCODERS
OF_TEXT = ONE_TOWER + ENCODER_DECODERS
OF_IMAGES = ("vit", "deit", "dinov2", "clip_vision_model", "siglip_vision_model", "vmoe")
FAMILIES = OF_TEXT + OF_IMAGES
V1_1 = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}  # of t5
MASKED = {"architectures": ["BertForMaskedLM"]}  # bert with its head

T5 = {  # the whole of a tiny one's config
    "vocab_size": 64, "d_model": 32, "d_kv": 8, "d_ff": 48, "num_layers": 2, "num_decoder_layers": 3, "num_heads": 4,
    "pad_token_id": 0, "eos_token_id": 2, "decoder_start_token_id": 0,
}  # fmt: skip
GEMMA = TINY | {"head_dim": 8, "sliding_window": 8, "query_pre_attn_scalar": 8}
VISION = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
          "patch_size": 4}  # fmt: skip
TWO_TOWERS = {
    "t5": T5, "mt5": T5, "umt5": T5,
    "switch_transformers": T5 | {
        "num_layers": 4, "num_decoder_layers": 4, "num_experts": 3, "num_sparse_encoder_layers": 2,
        "num_sparse_decoder_layers": 2,
    },
    "t5gemma": {"encoder": GEMMA | {"num_hidden_layers": 2}, "decoder": GEMMA, "vocab_size": 64},
    "t5gemma2": {
        "encoder": {
            "text_config": GEMMA | {"num_hidden_layers": 2}, "vision_config": VISION, "mm_tokens_per_image": 4,
            "image_token_index": 62, "boi_token_index": 60, "eoi_token_index": 61,
        },
        "decoder": GEMMA, "eoi_token_index": 61, "image_token_index": 62,
    },
}  # fmt: skip

OF_AN_IMAGE = {
    "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 3, "num_attention_heads": 4, "image_size": 8,
    "patch_size": 2, "num_channels": 1, "initializer_range": 0.3,
}  # fmt: skip
EYES = {
    "vit": OF_AN_IMAGE | {"architectures": ["ViTForImageClassification"], "num_labels": 5},
    "deit": OF_AN_IMAGE | {"architectures": ["DeiTForImageClassificationWithTeacher"], "num_labels": 5},
    "dinov2": {key: x for key, x in OF_AN_IMAGE.items() if key != "intermediate_size"} | {
        "architectures": ["Dinov2Model"], "mlp_ratio": 2,
    },
    "clip_vision_model": OF_AN_IMAGE | {"architectures": ["CLIPVisionModel"]},
    "siglip_vision_model": OF_AN_IMAGE | {"architectures": ["SiglipVisionModel"]},
    "vmoe": OF_AN_IMAGE | {"architectures": ["VMoEForImageClassification"], "num_labels": 5, "num_experts": 4},
}  # fmt: skip
NO_HEAD = {"architectures": ["ViTModel"]}  # of vit

OWN = {  # what a family needs besides, or cannot be told: None
    "qwen2_moe": {"shared_expert_intermediate_size": 16},
    "mixtral": {"num_local_experts": 4, "num_experts": None},
    "deepseek_v3": {
        "num_experts": None,
        "n_routed_experts": 8,
        "n_group": 4,
        "topk_group": 2,
        "num_key_value_heads": 4,
        "first_k_dense_replace": 1,
        "kv_lora_rank": 12,
        "q_lora_rank": 20,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 6,
        "v_head_dim": 8,
    },
    "bert": {"num_key_value_heads": None, "architectures": ["BertModel"]},
    "roberta": {"num_key_value_heads": None, "architectures": ["RobertaModel"]},
    "bert-generation": {"num_key_value_heads": None, "architectures": ["BertGenerationEncoder"]},
    "modernbert": {
        "num_key_value_heads": None,
        "architectures": ["ModernBertModel"],
        "local_attention": 8,
        "cls_token_id": 1,
        "sep_token_id": 2,
    },
    "gpt_neox": {"num_key_value_heads": None},
    "gpt2": {"num_key_value_heads": None, "intermediate_size": None, "n_inner": 48},
    "gemma2": {"head_dim": 16, "sliding_window": 8, "query_pre_attn_scalar": 8},
    "gemma3_text": {"head_dim": 16, "sliding_window": 8, "sliding_window_pattern": 2, "query_pre_attn_scalar": 8},
}


def tiny_config(family: str, **changes: object) -> dict:
    if family in TWO_TOWERS:
        return copy.deepcopy(TWO_TOWERS[family]) | changes
    if family in EYES:
        return copy.deepcopy(EYES[family]) | changes
    config = TINY | (TINY_MOE if family in SPARSE else {}) | OWN.get(family, {})
    return {key: value for key, value in config.items() if value is not None} | changes


def make(config: dict) -> Any:
    """A model of the class that a config names, or the causal one of its family."""
    import transformers

    from rekindle.apply.load import class_called

    auto = "AutoModelForSeq2SeqLM" if config["model_type"] in ENCODER_DECODERS else "AutoModelForCausalLM"
    name = (config.get("architectures") or [auto])[0]
    cls = class_called(name)
    made = transformers.AutoConfig.for_model(**config)
    return cls.from_config(made) if name.startswith("Auto") else cls(made)


def save_tiny(folder: Path, family: str, dtype: str, fused: bool, changes: dict, seed: int = 0) -> Path:
    import torch

    from rekindle.apply.load import quietly

    torch.manual_seed(seed)
    with quietly():
        model = make(tiny_config(family, **changes) | {"model_type": family})
        for name, parameter in model.named_parameters():  # norms and biases too must matter
            if parameter.ndim == 1:
                torch.nn.init.normal_(parameter, mean=0.0 if name.endswith("bias") else 1.0, std=0.3)
        if not changes.get("tie_word_embeddings", True) and family == "t5":  # transformers ties a head that it makes
            model.lm_head.weight = torch.nn.Parameter(torch.randn_like(model.lm_head.weight))
        if family in EYES:  # vectors too
            for name, parameter in model.named_parameters():
                if name.endswith(("_token", "_embeddings", "lambda1", "probe")):
                    torch.nn.init.normal_(parameter, std=0.3)
        if getattr(model.config, "pad_token_id", None) is not None:  # real models have a padding row, not zeros
            torch.nn.init.normal_(model.get_input_embeddings().weight, std=0.3)
        model.to(getattr(torch, dtype))
        for name, buffer in model.named_buffers():  # stays float32 in models of any dtype
            if name.endswith("e_score_correction_bias"):
                buffer.data = torch.nn.init.normal_(buffer.float(), std=0.3)
        model.save_pretrained(folder, save_original_format=not fused)
    return folder
