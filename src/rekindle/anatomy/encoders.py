"""Encoders: each token sees all others. With or without a head that predicts masked tokens."""

from __future__ import annotations

from rekindle.anatomy.family import Family
from rekindle.anatomy.rows import INTERMEDIATE, KEYS, layer_norm, with_bias
from rekindle.anatomy.tensor import Tensor

E, MLM = "bert.encoder.layer.{layer}.", "cls.predictions."

BERT = Family(
    "bert", {"none": "BertModel", "masked": "BertForMaskedLM"},
    (
        Tensor("embed", "bert.embeddings.word_embeddings.weight", "V D"),
        Tensor("positions", "bert.embeddings.position_embeddings.weight", "M D"),
        Tensor("token_types", "bert.embeddings.token_type_embeddings.weight", "T D"),
        *layer_norm("embed_norm", "bert.embeddings.LayerNorm"),
        *with_bias(Tensor("pooler", "bert.pooler.dense.weight", "D D", when="output=none"), "output=none"),
        *with_bias(Tensor("mlm.dense", MLM + "transform.dense.weight", "D D", when="output=masked"), "output=masked"),
        *layer_norm("mlm.norm", MLM + "transform.LayerNorm", "output=masked"),
        Tensor("head", MLM + "decoder.weight", "V D", when="output=masked,not tie_word_embeddings"),
        Tensor("head.bias", MLM + "bias", "V", when="output=masked"),
    ),
    (
        *with_bias(Tensor("attn.q", E + "attention.self.query.weight", "H D")),
        *with_bias(Tensor("attn.k", E + "attention.self.key.weight", "K D")),
        *with_bias(Tensor("attn.v", E + "attention.self.value.weight", "K D")),
        *with_bias(Tensor("attn.o", E + "attention.output.dense.weight", "D H")),
        *layer_norm("attn.post_norm", E + "attention.output.LayerNorm"),
        *layer_norm("ffn.post_norm", E + "output.LayerNorm"),
    ),
    (
        *with_bias(Tensor("ffn.up", E + "intermediate.dense.weight", "F D")),
        *with_bias(Tensor("ffn.down", E + "output.dense.weight", "D F")),
    ),
    (),
    keys=KEYS | INTERMEDIATE | {"norm_eps": "layer_norm_eps", "token_types": "type_vocab_size"},
    fixed={
        "norm": "layer", "norm_order": "post_ln", "gated": False, "learned_positions": True, "bidirectional": True,
        "qkv_bias": True, "o_bias": True, "mlp_bias": True,
    },
    defaults={
        "vocab_size": 30522, "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12,
        "intermediate_size": 3072, "hidden_act": "gelu", "hidden_dropout_prob": 0.1,
        "attention_probs_dropout_prob": 0.1, "max_position_embeddings": 512, "type_vocab_size": 2,
        "initializer_range": 0.02, "layer_norm_eps": 1e-12, "pad_token_id": 0, "use_cache": True,
        "classifier_dropout": None, "is_decoder": False, "add_cross_attention": False, "bos_token_id": None,
        "eos_token_id": None, "tie_word_embeddings": True,
    },
    prefix="bert.", rope="none", only={"is_decoder": False, "add_cross_attention": False},
    ignorable=(  # of the classes for pretraining, which have both heads
        "embeddings.position_ids", "pooler.dense.weight", "pooler.dense.bias",
        "cls.seq_relationship.weight", "cls.seq_relationship.bias", MLM + "decoder.bias",
    ),
    older={"LayerNorm.gamma": "LayerNorm.weight", "LayerNorm.beta": "LayerNorm.bias"},
    copies={MLM + "decoder.bias": MLM + "bias"},
)  # fmt: skip

ENCODERS = (BERT,)
