"""Encoders: each token sees all others. With or without a head that predicts masked tokens."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rekindle.anatomy.family import Family
from rekindle.anatomy.rows import BIASES, INTERMEDIATE, KEYS, layer_norm, with_bias
from rekindle.anatomy.settings import Settings
from rekindle.anatomy.spelling import Config, Reading, Spelling
from rekindle.anatomy.tensor import Tensor

MLM = "cls.predictions."


def _embeddings(base: str) -> tuple[Tensor, ...]:
    at = f"{base}.embeddings."
    return (
        Tensor("embed", f"{at}word_embeddings.weight", "V D"),
        Tensor("positions", f"{at}position_embeddings.weight", "M D"),
        Tensor("token_types", f"{at}token_type_embeddings.weight", "T D", when="token_types"),
        *layer_norm("embed_norm", f"{at}LayerNorm"),
    )


def _attention(base: str) -> tuple[Tensor, ...]:
    at = f"{base}.encoder.layer.{{layer}}."
    return (
        *with_bias(Tensor("attn.q", f"{at}attention.self.query.weight", "H D")),
        *with_bias(Tensor("attn.k", f"{at}attention.self.key.weight", "K D")),
        *with_bias(Tensor("attn.v", f"{at}attention.self.value.weight", "K D")),
        *with_bias(Tensor("attn.o", f"{at}attention.output.dense.weight", "D H")),
        *layer_norm("attn.post_norm", f"{at}attention.output.LayerNorm"),
        *layer_norm("ffn.post_norm", f"{at}output.LayerNorm"),
    )


def _feed_forward(base: str) -> tuple[Tensor, ...]:
    at = f"{base}.encoder.layer.{{layer}}."
    return (
        *with_bias(Tensor("ffn.up", f"{at}intermediate.dense.weight", "F D")),
        *with_bias(Tensor("ffn.down", f"{at}output.dense.weight", "D F")),
    )


def _pooler(base: str) -> tuple[Tensor, Tensor]:
    return with_bias(Tensor("pooler", f"{base}.pooler.dense.weight", "D D", when="output=none"), "output=none")


BERT_KEYS = KEYS | INTERMEDIATE | {"norm_eps": "layer_norm_eps"}
BERT_FIXED = {
    "norm": "layer", "norm_order": "post_ln", "gated": False, "learned_positions": True, "bidirectional": True,
    "qkv_bias": True, "o_bias": True, "mlp_bias": True,
}  # fmt: skip
BERT_DEFAULTS: dict[str, Any] = {
    "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
    "intermediate_size": 3072, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
    "attention_probs_dropout_prob": 0.1, "max_position_embeddings": 512, "type_vocab_size": 2,
    "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0, "use_cache": True,
    "classifier_dropout": None, "is_decoder": False, "add_cross_attention": False, "bos_token_id": None,
    "eos_token_id": None, "tie_word_embeddings": True,
}  # fmt: skip

BERT = Family(
    "bert", {"none": "BertModel", "masked": "BertForMaskedLM"},
    (
        *_embeddings("bert"),
        *_pooler("bert"),
        *with_bias(Tensor("mlm.dense", MLM + "transform.dense.weight", "D D", when="output=masked"), "output=masked"),
        *layer_norm("mlm.norm", MLM + "transform.LayerNorm", "output=masked"),
        Tensor("head", MLM + "decoder.weight", "V D", when="output=masked,not tie_word_embeddings"),
        Tensor("head.bias", MLM + "bias", "V", when="output=masked"),
    ),
    _attention("bert"), _feed_forward("bert"), (),
    keys=BERT_KEYS | {"token_types": "type_vocab_size"}, fixed=BERT_FIXED, defaults=BERT_DEFAULTS,
    prefix="bert.", rope="none", only={"is_decoder": False, "add_cross_attention": False},
    ignorable=(  # of the classes for pretraining, which have both heads
        "embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias",
        "cls.seq_relationship.weight", "cls.seq_relationship.bias", MLM + "decoder.bias",
    ),
    older={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
    copies={MLM + "decoder.bias": MLM + "bias"},
)  # fmt: skip


def _read_first(config: Config, family: Reading, given: Mapping[str, Any]) -> dict[str, Any]:
    return {"first_position": 1 + family.value(config, "pad_token_id")}


def _write_first(settings: Settings, config: dict[str, Any]) -> str | None:
    if settings.first_position == 1 + config["pad_token_id"]:
        return None
    return f"counts its positions from the one behind the id of its padding token, {config['pad_token_id']}"


ROBERTA = Family(
    "roberta", {"none": "RobertaModel", "masked": "RobertaForMaskedLM"},
    (
        *_embeddings("roberta"),
        *_pooler("roberta"),
        *with_bias(Tensor("mlm.dense", "lm_head.dense.weight", "D D", when="output=masked"), "output=masked"),
        *layer_norm("mlm.norm", "lm_head.layer_norm", "output=masked"),
        Tensor("head", "lm_head.decoder.weight", "V D", when="output=masked,not tie_word_embeddings"),
        Tensor("head.bias", "lm_head.bias", "V", when="output=masked"),
    ),
    _attention("roberta"), _feed_forward("roberta"), (),
    keys=BERT_KEYS | {"token_types": "type_vocab_size"}, fixed=BERT_FIXED,
    defaults=BERT_DEFAULTS | {"vocab_size": 50265, "pad_token_id": 1, "bos_token_id": 0, "eos_token_id": 2},
    prefix="roberta.", rope="none", spelt=(Spelling(("first_position",), _read_first, _write_first),),
    only={"is_decoder": False, "add_cross_attention": False},
    ignorable=("embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias", "lm_head.decoder.bias"),
    copies={"lm_head.decoder.bias": "lm_head.bias"},
)  # fmt: skip
# What sequence generation makes of a BERT: without kinds of tokens and without a pooler.
BERT_GENERATION = Family(
    "bert-generation", {"none": "BertGenerationEncoder"}, _embeddings("bert"), _attention("bert"),
    _feed_forward("bert"), (),
    keys=BERT_KEYS, fixed=BERT_FIXED,
    defaults={key: x for key, x in BERT_DEFAULTS.items() if key not in ("type_vocab_size", "classifier_dropout")} | {
        "vocab_size": 50358, "hidden_size": 1024, "num_hidden_layers": 24, "num_attention_heads": 16,
        "intermediate_size": 4096, "bos_token_id": 2, "eos_token_id": 1,
    },
    prefix="bert.", rope="none", only={"is_decoder": False, "add_cross_attention": False},
    ignorable=("embeddings.position_ids",),
)  # fmt: skip


# -- ModernBERT: RoPE, gates, windows of two kinds, and no norm before the first attention ---------------------

M = "model.layers.{layer}."
QKV = tuple(
    row
    for part, letter in (("q", "H"), ("k", "K"), ("v", "K"))
    for row in with_bias(Tensor(f"attn.{part}", M + "attn.Wqkv.weight", f"{letter} D", packed="rows"), "qkv_bias")
)
MODERNBERT = Family(
    "modernbert", {"none": "ModernBertModel", "masked": "ModernBertForMaskedLM"},
    (
        Tensor("embed", "model.embeddings.tok_embeddings.weight", "V D"),
        Tensor("embed_norm", "model.embeddings.norm.weight", "D"),
        Tensor("norm", "model.final_norm.weight", "D"),
        Tensor("mlm.dense", "head.dense.weight", "D D", when="output=masked"),
        Tensor("mlm.norm", "head.norm.weight", "D", when="output=masked"),
        Tensor("head", "decoder.weight", "V D", when="output=masked,not tie_word_embeddings"),
        Tensor("head.bias", "decoder.bias", "V", when="output=masked"),
    ),
    (
        *QKV,
        *with_bias(Tensor("attn.o", M + "attn.Wo.weight", "D H"), "o_bias"),
        Tensor("attn.pre_norm", M + "attn_norm.weight", "D", neutral="ones", from_layer=1),
        Tensor("ffn.pre_norm", M + "mlp_norm.weight", "D"),
    ),
    (
        *(
            row
            for part in ("gate", "up")  # what is activated comes first
            for row in with_bias(Tensor(f"ffn.{part}", M + "mlp.Wi.weight", "F D", packed="rows"), "mlp_bias")
        ),
        *with_bias(Tensor("ffn.down", M + "mlp.Wo.weight", "D F"), "mlp_bias"),
    ),
    (),
    keys=KEYS | INTERMEDIATE | BIASES | {
        "hidden_act": "hidden_activation", "norm_eps": "norm_eps", "mlp_bias": "mlp_bias",
    },
    fixed={"norm": "layer", "bidirectional": True},
    defaults={
        "vocab_size": 50368, "hidden_size": 768, "intermediate_size": 1152, "num_hidden_layers": 22,
        "num_attention_heads": 12, "hidden_activation": "gelu", "max_position_embeddings": 8192,
        "initializer_range": 0.02, "initializer_cutoff_factor": 2.0, "norm_eps": 1e-5, "norm_bias": False,
        "pad_token_id": 50283, "eos_token_id": 50282, "bos_token_id": 50281, "cls_token_id": 50281,
        "sep_token_id": 50282, "attention_bias": False, "attention_dropout": 0.0, "local_attention": 128,
        "embedding_dropout": 0.0, "mlp_bias": False, "mlp_dropout": 0.0, "decoder_bias": True,
        "classifier_pooling": "cls", "classifier_dropout": 0.0, "classifier_bias": False,
        "classifier_activation": "gelu", "deterministic_flash_attn": False, "sparse_prediction": False,
        "sparse_pred_ignore_index": -100, "tie_word_embeddings": True,
    },
    rope="global", rope_theta=160_000.0, windows="local", whole_heads=True,
    only={"norm_bias": False, "decoder_bias": True, "classifier_bias": False},
)  # fmt: skip

ENCODERS = (BERT, ROBERTA, BERT_GENERATION, MODERNBERT)
