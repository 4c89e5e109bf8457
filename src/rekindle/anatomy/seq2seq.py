"""Encoder-decoders: one tower reads, the other writes, and looks at what the first has read."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rekindle.anatomy.family import Family
from rekindle.anatomy.kinds import ACTIVATIONS
from rekindle.anatomy.settings import Settings
from rekindle.anatomy.spelling import Config, Reading, Spelling
from rekindle.anatomy.tensor import Tensor
from rekindle.anatomy.towers import Towers
from rekindle.errors import RekindleError

# -- T5: the feed-forward's name says its activation and whether it has a gate -------------------------------


def _read_feed_forward(config: Config, family: Reading, given: Mapping[str, Any]) -> dict[str, Any]:
    said = family.value(config, "feed_forward_proj")
    gate, _, act = said.rpartition("-")
    if gate not in ("", "gated") or act not in ACTIVATIONS:
        what = f"feed_forward_proj is {said!r}, not an activation that transformers knows, nor gated-ACTIVATION."
        raise RekindleError(what, where="config.json: feed_forward_proj")
    act = "gelu_new" if said == "gated-gelu" else act
    # what transformers saves besides overrules it (5.23)
    return {"gated": config.get("is_gated_act", gate == "gated"), "hidden_act": config.get("dense_act_fn", act)}


def _write_feed_forward(settings: Settings, config: dict[str, Any]) -> str | None:
    act = "gelu" if settings.gated and settings.hidden_act == "gelu_new" else settings.hidden_act
    config["feed_forward_proj"] = f"gated-{act}" if settings.gated else act
    config |= {"is_gated_act": settings.gated, "dense_act_fn": settings.hidden_act}
    return None


FEED_FORWARD = Spelling(("gated", "hidden_act"), _read_feed_forward, _write_feed_forward)


def _read_scale(config: Config, family: Reading, given: Mapping[str, Any]) -> dict[str, Any]:
    tied = family.value(config, "tie_word_embeddings") is not False
    return {"scaled_output": config.get("scale_decoder_outputs", tied)}


def _write_scale(settings: Settings, config: dict[str, Any]) -> str | None:
    config["scale_decoder_outputs"] = settings.scaled_output
    return None


SCALE = Spelling(("scaled_output",), _read_scale, _write_scale)  # transformers ties T5's head by the weights alone

# -- T5's rows ---------------------------------------------------------------------------------------------


def _attention(part: str, name: str) -> tuple[Tensor, ...]:
    reads = "Y" if part == "cross" else "D"
    return (
        Tensor(f"{part}.q", f"{name}.q.weight", "H D"),
        Tensor(f"{part}.k", f"{name}.k.weight", f"K {reads}"),
        Tensor(f"{part}.v", f"{name}.v.weight", f"K {reads}"),
        Tensor(f"{part}.o", f"{name}.o.weight", "D H"),
    )


def _dense(name: str) -> tuple[Tensor, ...]:
    return (
        Tensor("ffn.gate", f"{name}.wi_0.weight", "F D", when="gated"),
        Tensor("ffn.up", f"{name}.wi_1.weight", "F D", when="gated"),
        Tensor("ffn.up", f"{name}.wi.weight", "F D", when="not gated"),
        Tensor("ffn.down", f"{name}.wo.weight", "D F"),
    )


def _relative(tower: str, layer: str) -> Tensor:
    name = f"{tower}.block.{layer}.layer.0.SelfAttention.relative_attention_bias.weight"
    return Tensor("attn.relative_bias" if layer == "{layer}" else "relative_bias", name, "P N")


def _branch(tower: str) -> str:
    """The last of a block's branches: the feed-forward."""
    return f"{tower}.block.{{layer}}.layer.{2 if tower == 'decoder' else 1}"


def _block(tower: str) -> tuple[Tensor, ...]:
    at = f"{tower}.block.{{layer}}.layer."
    cross = (
        *_attention("cross", f"{at}1.EncDecAttention"),
        Tensor("cross.pre_norm", f"{at}1.layer_norm.weight", "D"),
    )
    return (
        *_attention("attn", f"{at}0.SelfAttention"),
        Tensor("attn.pre_norm", f"{at}0.layer_norm.weight", "D"),
        *(cross if tower == "decoder" else ()),
        Tensor("ffn.pre_norm", f"{_branch(tower)}.layer_norm.weight", "D"),
    )


def _norm(tower: str) -> Tensor:
    return Tensor("norm", f"{tower}.final_layer_norm.weight", "D")


TOWERS = ("encoder", "decoder")
SHARED = (
    Tensor("embed", "shared.weight", "V D"),
    Tensor("head", "lm_head.weight", "V D", when="not tie_word_embeddings"),
)
TWINS = ("switch_transformers",)
T5_KEYS = {
    "vocab_size": "vocab_size", "hidden_size": "d_model", "num_heads": "num_heads", "head_dim": "d_kv",
    "intermediate_size": "d_ff", "norm_eps": "layer_norm_epsilon", "tie_word_embeddings": "tie_word_embeddings",
    "relative_buckets": "relative_attention_num_buckets", "relative_distance": "relative_attention_max_distance",
}  # fmt: skip
T5_FIXED = {
    "qkv_bias": False, "o_bias": False, "mlp_bias": False,
    "query_scalar": 1.0,  # scores are not scaled
    "max_position_embeddings": 512,  # positions are relative, and have no end: what T5 was trained on
}  # fmt: skip
T5_DEFAULTS: dict[str, Any] = {
    "vocab_size": 32128, "d_model": 512, "d_kv": 64, "d_ff": 2048, "num_layers": 6, "num_decoder_layers": None,
    "num_heads": 8, "relative_attention_num_buckets": 32, "relative_attention_max_distance": 128, "dropout_rate": 0.1,
    "layer_norm_epsilon": 1e-6, "initializer_factor": 1.0, "feed_forward_proj": "relu", "is_encoder_decoder": True,
    "use_cache": True, "pad_token_id": 0, "eos_token_id": 1, "classifier_dropout": 0.0, "is_decoder": False,
    "tie_word_embeddings": True,
}  # fmt: skip
MT5_DEFAULTS = T5_DEFAULTS | {
    "vocab_size": 250112, "d_ff": 1024, "num_layers": 8, "num_heads": 6, "feed_forward_proj": "gated-gelu",
    "decoder_start_token_id": 0, "bos_token_id": None,
}  # fmt: skip
UMT5_DEFAULTS = {key: value for key, value in MT5_DEFAULTS.items() if key != "bos_token_id"}


def _stack(
    tower: str, model_type: str, defaults: Mapping[str, Any], feed_forward: tuple[Tensor, ...], **own: Any
) -> Family:
    """A tower: its blocks, and in the first of them the biases of relative positions, which all share."""
    writes = tower == "decoder"
    depth = {"num_layers": "num_decoder_layers", "cross_size": "d_model"} if writes else {"num_layers": "num_layers"}
    says = {"output": "seq2seq"} if writes else {"output": "none", "bidirectional": True}
    return Family(
        model_type, {}, (_norm(tower), _relative(tower, "0")), _block(tower), feed_forward, (),
        keys=T5_KEYS | depth, fixed=T5_FIXED | says | own.pop("fixed", {}), defaults=defaults, prefix="", rope="none",
        spelt=(FEED_FORWARD, *own.pop("spelt", ())), stand_ins={"num_decoder_layers": "num_layers"}, **own,
    )  # fmt: skip


def _model(model_type: str, cls: str, defaults: Mapping[str, Any], towers: Mapping[str, Family]) -> Towers:
    embeddings = dict.fromkeys(("encoder.embed_tokens.weight", "decoder.embed_tokens.weight"), "shared.weight")
    return Towers(
        model_type, {"seq2seq": cls}, SHARED, (), (), (), keys={}, fixed={}, defaults=defaults, prefix="", rope="none",
        towers=towers, tied="weights", copies=embeddings, only={"is_encoder_decoder": True, "is_decoder": False},
        ignorable=("EncDecAttention.relative_attention_bias.weight",),
    )  # fmt: skip


def _t5(model_type: str, cls: str, defaults: Mapping[str, Any], **own: Any) -> Towers:
    towers = {
        tower: _stack(tower, model_type, defaults, _dense(f"{_branch(tower)}.DenseReluDense"), **own)
        for tower in TOWERS
    }
    return _model(model_type, cls, defaults, towers)


T5 = replace(
    _t5("t5", "T5ForConditionalGeneration", T5_DEFAULTS, spelt=(SCALE,), twins=TWINS), renamed=("T5WithLMHeadModel",),
    twins=TWINS,
)  # fmt: skip
MT5 = _t5("mt5", "MT5ForConditionalGeneration", MT5_DEFAULTS)  # whatever its config says of tying
_UMT5 = _t5("umt5", "UMT5ForConditionalGeneration", UMT5_DEFAULTS, fixed={"scaled_output": True})
UMT5 = replace(  # each layer has biases of its own
    _UMT5, towers={
        name: replace(tower, top=(_norm(name),), block=(*tower.block, _relative(name, "{layer}")))
        for name, tower in _UMT5.towers.items()
    },
)  # fmt: skip


def _experts(branch: str) -> tuple[Tensor, ...]:
    name = f"{branch}.mlp.experts.expert_{{expert}}"
    return (
        Tensor("router", f"{branch}.mlp.router.classifier.weight", "E D"),
        Tensor("expert.up", f"{name}.wi.weight", "X D"),
        Tensor("expert.down", f"{name}.wo.weight", "D X"),
    )


SWITCH_KEYS = T5_KEYS | {
    "hidden_act": "dense_act_fn", "num_experts": "num_experts", "expert_size": "d_ff",
    "router_jitter": "router_jitter_noise", "aux_loss_coef": "router_aux_loss_coef",
    "expert_capacity": "expert_capacity",
}  # fmt: skip
SWITCH_DEFAULTS: dict[str, Any] = {
    **{key: value for key, value in T5_DEFAULTS.items() if key not in ("feed_forward_proj", "classifier_dropout")},
    "d_model": 768, "num_layers": 12, "num_decoder_layers": 12, "num_heads": 12, "expert_capacity": 64,
    "num_sparse_encoder_layers": 3, "num_sparse_decoder_layers": 3, "num_experts": 8, "router_bias": False,
    "router_jitter_noise": 0.01, "router_dtype": "float32", "router_ignore_padding_tokens": False,
    "router_z_loss_coef": 0.001, "router_aux_loss_coef": 0.001, "dense_act_fn": "relu", "add_router_probs": False,
    "bos_token_id": None, "add_cross_attention": False,
}  # fmt: skip


def _switch(tower: str) -> Family:
    """Every so many layers have experts, of which each token visits one, with its probability as weight."""
    plain = _stack(tower, "switch_transformers", SWITCH_DEFAULTS, _dense(f"{_branch(tower)}.mlp"))
    alike = {"gated": False, "top_k": 1, "norm_topk_prob": False, "scaled_output": True}
    return replace(
        plain, sparse=_experts(_branch(tower)), keys={**SWITCH_KEYS, **plain.keys}, fixed={**plain.fixed, **alike},
        spelt=(), sparsity=f"{tower}_step",
    )  # fmt: skip


SWITCH = replace(
    _model(
        "switch_transformers", "SwitchTransformersForConditionalGeneration", SWITCH_DEFAULTS,
        {tower: _switch(tower) for tower in TOWERS},
    ),
    only={"tie_word_embeddings": True, "router_bias": False, "is_encoder_decoder": True}, tied="config",
)  # fmt: skip

SEQ2SEQ = (T5, MT5, UMT5, SWITCH)
