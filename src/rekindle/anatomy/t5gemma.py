"""Encoder-decoders made of Gemma's layers. Each tower's config is a section of its own."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rekindle.anatomy.dense import GEMMA2
from rekindle.anatomy.family import Family
from rekindle.anatomy.rows import ATTENTION, FFN, HEAD_QK_NORMS, L
from rekindle.anatomy.tensor import Tensor
from rekindle.anatomy.towers import Towers

KEYS, FIXED = GEMMA2.keys, GEMMA2.fixed
READS, WRITES = {"output": "none", "bidirectional": True}, {"output": "seq2seq"}
DEFAULTS: dict[str, Any] = {
    "vocab_size": 256000, "hidden_size": 2304, "intermediate_size": 9216, "num_hidden_layers": 26,
    "num_attention_heads": 8, "num_key_value_heads": 4, "head_dim": 256, "hidden_activation": "gelu_pytorch_tanh",
    "max_position_embeddings": 8192, "initializer_range": 0.02, "rms_norm_eps": 1e-6, "use_cache": True,
    "pad_token_id": 0, "eos_token_id": 1, "bos_token_id": 2, "tie_word_embeddings": True, "attention_bias": False,
    "attention_dropout": 0.0, "query_pre_attn_scalar": 256, "sliding_window": 4096, "final_logit_softcapping": 30.0,
    "attn_logit_softcapping": 50.0, "is_decoder": False,
}  # fmt: skip
DEFAULTS_2 = {key: value for key, value in DEFAULTS.items() if key != "is_decoder"} | {
    "vocab_size": 262208, "max_position_embeddings": 131072, "final_logit_softcapping": None,
    "attn_logit_softcapping": None,
}  # fmt: skip
ABOVE: dict[str, Any] = {
    "encoder": None, "decoder": None, "is_encoder_decoder": True, "dropout_rate": 0.0, "classifier_dropout_rate": 0.0,
    "attention_dropout": 0.0, "tie_word_embeddings": True, "initializer_range": 0.02, "bos_token_id": 2,
    "pad_token_id": 0, "eos_token_id": 1, "vocab_size": 256000,
}  # fmt: skip
HEAD = Tensor("head", "lm_head.out_proj.weight", "V D", when="not tie_word_embeddings")


def _norms(part: str, name: str) -> tuple[Tensor, Tensor]:
    return (
        Tensor(f"{part}.pre_norm", f"{L}pre_{name}_layernorm.weight", "D"),
        Tensor(f"{part}.post_norm", f"{L}post_{name}_layernorm.weight", "D"),
    )


def _in(tower: str, rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(replace(row, name=row.name.replace("model.", f"model.{tower}.", 1)) for row in rows)


EMBED, NORM = Tensor("embed", "model.embed_tokens.weight", "V D"), Tensor("norm", "model.norm.weight", "D")
BLOCK = (*ATTENTION, *_norms("attn", "self_attn"), *_norms("ffn", "feedforward"))
CROSS = tuple(
    replace(
        row,
        part=row.part.replace("attn", "cross"),
        name=row.name.replace("self_attn", "cross_attn"),
        shape=row.shape.replace("K D", "K Y"),
    )
    for row in (*ATTENTION, *_norms("attn", "self_attn"))
)


def _tower(
    name: str, model_type: str, top: tuple[Tensor, ...], block: tuple[Tensor, ...], fixed: Mapping[str, Any], **own: Any
) -> Family:
    usual: dict[str, Any] = {"section": (name,), "keys": KEYS, "defaults": DEFAULTS, "windows": "alternating"}
    return Family(
        model_type, {}, _in(name, top), _in(name, block), _in(name, FFN), (), fixed={**FIXED, **fixed}, prefix="",
        whole_heads=True, **{**usual, **own},
    )  # fmt: skip


T5GEMMA = Towers(
    "t5gemma", {"seq2seq": "T5GemmaForConditionalGeneration"}, (HEAD,), (), (), (),
    keys={"tie_word_embeddings": "tie_word_embeddings"}, fixed={}, defaults=ABOVE, prefix="", rope="none",
    reads="cross_attention_hidden_size",
    towers={
        "encoder": _tower("encoder", "t5_gemma_module", (EMBED, NORM), BLOCK, READS, called="t5gemma"),
        "decoder": _tower(
            "decoder", "t5_gemma_module", (EMBED, NORM), (*BLOCK, *CROSS), WRITES,
            called="t5gemma", keys={**KEYS, "cross_size": "cross_attention_hidden_size"},
            stand_ins={"cross_attention_hidden_size": "hidden_size"},
            defaults=DEFAULTS | {"cross_attention_hidden_size": None, "is_decoder": True},
        ),
    },
    embeddings="decoder", start="bos_token_id", only={"is_encoder_decoder": True},
)  # fmt: skip
# Of t5gemma2's decoder, which has the encoder's where the head is tied.
OWN_EMBED = tuple(
    Tensor(f"decoder.{part}", f"model.decoder.embed_tokens.{of}", shape, when="not tie_word_embeddings")
    for part, of, shape in (("embed", "weight", "V D"), ("eoi", "eoi_embedding", "D"))
)
# One attention reads what the encoder has read and what the decoder has written; and there is an eye.
T5GEMMA2 = Towers(
    "t5gemma2", {"seq2seq": "T5Gemma2ForConditionalGeneration"}, (HEAD, *OWN_EMBED), (), (), (),
    keys={"tie_word_embeddings": "tie_word_embeddings"}, fixed={},
    defaults=ABOVE | {"vocab_size": 262208, "image_token_index": 256001, "eoi_token_index": 256000}, prefix="",
    rope="none",
    towers={
        "encoder": _tower(
            "encoder", "t5gemma2_text", (EMBED, NORM), (*BLOCK, *HEAD_QK_NORMS), READS | {"qk_norm": "head"},
            section=("encoder", "text_config"), defaults=DEFAULTS_2, windows="patterned", rope="local",
            called="t5gemma2", rope_theta=1_000_000.0,
            runtime={f"model.encoder.{of}": f"model.encoder.text_model.{of}" for of in ("layers", "embed", "norm")},
        ),
        "decoder": _tower(
            "decoder", "t5gemma2_decoder", (NORM,), (*BLOCK, *HEAD_QK_NORMS),
            WRITES | {"qk_norm": "head", "merged_attention": True}, defaults=DEFAULTS_2, windows="patterned",
            called="t5gemma2", rope="local", rope_theta=1_000_000.0,
        ),
    },
    embeddings="encoder", start="bos_token_id", only={"is_encoder_decoder": True},
    copies={
        f"model.decoder.embed_tokens.{of}": f"model.encoder.text_model.embed_tokens.{of}"
        for of in ("weight", "eoi_embedding")
    },
    opaque=("model.encoder.vision_tower.", "model.encoder.multi_modal_projector.",
            "model.encoder.embed_tokens.eoi_embedding"),
)  # fmt: skip

GEMMAS = (T5GEMMA, T5GEMMA2)
