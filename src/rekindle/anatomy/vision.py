"""Models that read images: ViT and its kin, with or without a head that gives an image a label; V-MoE.

An image is as many tokens as it has patches, and those that stand before them: of the class, of DeiT's distillation.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from rekindle.anatomy.family import Family
from rekindle.anatomy.rows import INTERMEDIATE, layer_norm, with_bias
from rekindle.anatomy.settings import Settings
from rekindle.anatomy.spelling import Config, Reading, Spelling
from rekindle.anatomy.tensor import Tensor
from rekindle.errors import RekindleError

# -- sizes of images, and labels ---------------------------------------------------------------------------


def _read_image(config: Config, family: Reading, given: Mapping[str, Any]) -> dict[str, Any]:
    image, patch = (_height_and_width(family.value(config, key), key) for key in ("image_size", "patch_size"))
    patches = (image[0] // patch[0]) * (image[1] // patch[1])
    if not patches:
        raise RekindleError(f"No patch of {patch} fits into an image of {image}.", where="config.json: patch_size")
    return {"image_size": image, "patch_size": patch, "max_position_embeddings": patches + given["prefix_tokens"]}


def _height_and_width(said: Any, key: str) -> tuple[int, int]:
    both = said if isinstance(said, list | tuple) else (said, said)
    if len(both) != 2 or not all(type(size) is int and size > 0 for size in both):
        raise RekindleError(f"{key} is {said!r}, not a size in pixels.", where="config.json", hint="224, or [224, 224]")
    return both[0], both[1]


def _write_image(settings: Settings, config: dict[str, Any]) -> str | None:
    for key in ("image_size", "patch_size"):
        height, width = getattr(settings, key)
        config[key] = height if height == width else [height, width]
    return None


def _read_labels(config: Config, family: Reading, given: Mapping[str, Any]) -> dict[str, Any]:
    """As transformers has it: the number that is said, else that of the names, else 2."""
    if given["output"] == "none":
        return {"num_labels": 0}
    names, said = config.get("id2label"), config.get("num_labels")
    number = said if said is not None else len(names) if names else 2
    if type(number) is not int or number < 1:
        raise RekindleError(f"num_labels is {number!r}, not a number of labels.", where="config.json")
    return {"num_labels": number}


def _write_labels(settings: Settings, config: dict[str, Any]) -> str | None:
    config.pop("num_labels", None)
    if settings.output != "none" and settings.num_labels != len(config.get("id2label") or range(2)):
        names = [f"LABEL_{label}" for label in range(settings.num_labels)]
        config["id2label"] = {str(label): name for label, name in enumerate(names)}
        config["label2id"] = {name: label for label, name in enumerate(names)}
    return None


IMAGE = Spelling(("image_size", "patch_size", "max_position_embeddings"), _read_image, _write_image)
LABELS = Spelling(("num_labels",), _read_labels, _write_labels)

# -- ViT and DeiT ------------------------------------------------------------------------------------------

LABELLED = "output=labels"
TAUGHT = "output=taught"


def _token(name: str) -> Tensor:
    return Tensor(name, f"vit.embeddings.{name}", "1 1 D")


TOP = (
    *with_bias(Tensor("patches", "vit.embeddings.patch_embeddings.projection.weight", "D c h w")),
    Tensor("positions", "vit.embeddings.position_embeddings", "1 M D"),
    *layer_norm("norm", "vit.layernorm"),
)
POOLER = with_bias(Tensor("pooler", "vit.pooler.dense.weight", "D D", when="output=none"), "output=none")
CLASSIFIER = with_bias(Tensor("classifier", "classifier.weight", "L D", when=LABELLED), LABELLED)
L = "vit.encoder.layer.{layer}."
ATTENTION = (
    *with_bias(Tensor("attn.q", L + "attention.attention.query.weight", "H D"), "qkv_bias"),
    *with_bias(Tensor("attn.k", L + "attention.attention.key.weight", "K D"), "qkv_bias"),
    *with_bias(Tensor("attn.v", L + "attention.attention.value.weight", "K D"), "qkv_bias"),
    *with_bias(Tensor("attn.o", L + "attention.output.dense.weight", "D H")),
)
NORMS = (*layer_norm("attn.pre_norm", L + "layernorm_before"), *layer_norm("ffn.pre_norm", L + "layernorm_after"))
FFN = (
    *with_bias(Tensor("ffn.up", L + "intermediate.dense.weight", "F D")),
    *with_bias(Tensor("ffn.down", L + "output.dense.weight", "D F")),
)
IN_MEMORY = {
    ".attention.attention.query.": ".attention.q_proj.",
    ".attention.attention.key.": ".attention.k_proj.",
    ".attention.attention.value.": ".attention.v_proj.",
    ".attention.output.dense.": ".attention.o_proj.",
    ".intermediate.dense.": ".mlp.fc1.",
    ".output.dense.": ".mlp.fc2.",
    "encoder.layer.": "layers.",
}
KEYS = INTERMEDIATE | {
    "hidden_size": "hidden_size", "num_layers": "num_hidden_layers", "num_heads": "num_attention_heads",
    "hidden_act": "hidden_act", "norm_eps": "layer_norm_eps", "num_channels": "num_channels",
}  # fmt: skip
FIXED: dict[str, Any] = {
    "vocab_size": 0, "tie_word_embeddings": False, "prefix_tokens": 1, "norm": "layer", "gated": False,
    "learned_positions": True, "bidirectional": True, "qkv_bias": True, "o_bias": True, "mlp_bias": True,
}  # fmt: skip
SIZES: dict[str, Any] = {
    "hidden_size": 768, "num_hidden_layers": 12, "num_attention_heads": 12, "intermediate_size": 3072,
    "hidden_act": "gelu", "initializer_range": 0.02, "layer_norm_eps": 1e-12, "image_size": 224, "patch_size": 16,
    "num_channels": 3,
}  # fmt: skip
VIT_KEYS = KEYS | {"qkv_bias": "qkv_bias"}
VIT_FIXED = {name: value for name, value in FIXED.items() if name != "qkv_bias"}
VIT_DEFAULTS = SIZES | {
    "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "qkv_bias": True, "encoder_stride": 16,
    "pooler_output_size": None, "pooler_act": "tanh",
}  # fmt: skip

VIT = Family(
    "vit", {"none": "ViTModel", "labels": "ViTForImageClassification"},
    (_token("cls_token"), *TOP, *POOLER, *CLASSIFIER), ATTENTION + NORMS, FFN, (),
    keys=VIT_KEYS, fixed=VIT_FIXED, defaults=VIT_DEFAULTS, prefix="vit.", rope="none", spelt=(IMAGE, LABELS),
    twins=("vmoe",), runtime=IN_MEMORY, ignorable=("pooler.dense.weight", "pooler.dense.bias"),
)  # fmt: skip


def _deit(rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return tuple(replace(row, name=row.name.replace("vit.", "deit.")) for row in rows)


DEIT = Family(
    "deit",
    {
        "none": "DeiTModel", "labels": "DeiTForImageClassification", "taught": "DeiTForImageClassificationWithTeacher",
    },
    (
        *_deit((_token("cls_token"), _token("distillation_token"), *TOP, *POOLER)), *CLASSIFIER,
        *with_bias(Tensor("classifier", "cls_classifier.weight", "L D", when=TAUGHT), TAUGHT),
        *with_bias(Tensor("distillation_classifier", "distillation_classifier.weight", "L D", when=TAUGHT), TAUGHT),
    ),
    _deit(ATTENTION + NORMS), _deit(FFN), (),
    keys=VIT_KEYS, fixed=VIT_FIXED | {"prefix_tokens": 2}, defaults=VIT_DEFAULTS, prefix="deit.", rope="none",
    spelt=(IMAGE, LABELS), runtime=IN_MEMORY, ignorable=("pooler.dense.weight", "pooler.dense.bias"),
)  # fmt: skip

# -- V-MoE: our own class, see `rekindle.models.vmoe` ---------------------------------------------------------


def _as_in_memory(rows: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Its files have the names of today."""

    def renamed(name: str) -> str:
        for old, new in IN_MEMORY.items():
            name = name.replace(old, new)
        return name

    return tuple(replace(row, name=renamed(row.name)) for row in rows)


def _expert(part: str, projection: str, shape: str) -> tuple[Tensor, Tensor]:
    at = "vit.layers.{layer}.mlp.experts."
    weight, bias = with_bias(Tensor(part, f"{at}{{expert}}.{projection}.weight", shape, stacked=at + projection))
    return weight, replace(bias, stacked=f"{at}{projection}_bias")


VMOE = Family(
    "vmoe", {"none": "VMoEModel", "labels": "VMoEForImageClassification"},
    (_token("cls_token"), *TOP, *POOLER, *CLASSIFIER), _as_in_memory(ATTENTION + NORMS), _as_in_memory(FFN),
    (
        Tensor("router", "vit.layers.{layer}.mlp.router.weight", "E D"),
        *_expert("expert.up", "up_proj", "X D"), *_expert("expert.down", "down_proj", "D X"),
    ),
    keys=VIT_KEYS | {
        "expert_size": "intermediate_size", "num_experts": "num_experts", "top_k": "num_experts_per_tok",
        "routing": "routing", "routing_group": "routing_group", "aux_loss_coef": "router_aux_loss_coef",
    },
    fixed=VIT_FIXED, defaults=VIT_DEFAULTS | {
        "num_experts": 8, "num_experts_per_tok": 2, "moe_layers": None, "routing": "experts",
        "routing_group": "image", "output_router_logits": False, "router_aux_loss_coef": 0.01,
    },
    prefix="vit.", rope="none", sparsity="named", spelt=(IMAGE, LABELS), module="rekindle.models",
    ignorable=("pooler.dense.weight", "pooler.dense.bias"),
)  # fmt: skip

# -- DINOv2: what a branch puts out is scaled, dim by dim ----------------------------------------------------------


def _read_ratio(config: Config, family: Reading, given: Mapping[str, Any]) -> dict[str, Any]:
    return {"intermediate_size": given["hidden_size"] * family.value(config, "mlp_ratio")}


def _write_ratio(settings: Settings, config: dict[str, Any]) -> str | None:
    _write_stages(settings, config)
    config["mlp_ratio"], rest = divmod(settings.intermediate_size, settings.hidden_size)
    return f"has feed-forwards of whole hidden sizes, not of {settings.intermediate_size} units" if rest else None


def _write_stages(settings: Settings, config: dict[str, Any]) -> None:
    """Which layers it puts out as a backbone: no word of it where that is the last one, or none that it has."""
    before, now = config.pop("stage_names", None), ["stem", *(f"stage{i + 1}" for i in range(settings.num_layers))]
    named, places = config.get("out_features"), config.get("out_indices")
    last = isinstance(before, list) and named == before[-1:]
    there = isinstance(named, list) and all(name in now for name in named)
    if last or not there or places != [now.index(name) for name in named]:
        for key in ("out_features", "out_indices", "_out_features", "_out_indices"):
            config.pop(key, None)


L = "dinov2.encoder.layer.{layer}."
DINOV2 = Family(
    "dinov2", {"none": "Dinov2Model", "labels": "Dinov2ForImageClassification"},
    (
        *(replace(row, name=row.name.replace("vit.", "dinov2.")) for row in (_token("cls_token"), *TOP)),
        Tensor("mask_token", "dinov2.embeddings.mask_token", "1 D", when="mask_token"),
        *with_bias(Tensor("classifier", "classifier.weight", "L d", when=LABELLED), LABELLED),
    ),
    (
        *(replace(row, name=row.name.replace("vit.", "dinov2.")) for row in ATTENTION),
        *layer_norm("attn.pre_norm", L + "norm1"), *layer_norm("ffn.pre_norm", L + "norm2"),
        Tensor("attn.scale", L + "layer_scale1.lambda1", "D"), Tensor("ffn.scale", L + "layer_scale2.lambda1", "D"),
    ),
    (
        *with_bias(Tensor("ffn.up", L + "mlp.fc1.weight", "F D")),
        *with_bias(Tensor("ffn.down", L + "mlp.fc2.weight", "D F")),
    ),
    (),
    keys={name: key for name, key in VIT_KEYS.items() if name != "intermediate_size"} | {
        "mask_token": "use_mask_token",
    },
    fixed=VIT_FIXED,
    defaults={key: x for key, x in SIZES.items() if key != "intermediate_size"} | {
        "mlp_ratio": 4, "hidden_dropout_prob": 0.0, "attention_probs_dropout_prob": 0.0, "layer_norm_eps": 1e-6,
        "patch_size": 14, "qkv_bias": True, "layerscale_value": 1.0, "drop_path_rate": 0.0, "use_swiglu_ffn": False,
        "apply_layernorm": True, "reshape_hidden_states": True, "use_mask_token": True,
    },
    prefix="dinov2.", rope="none",
    spelt=(IMAGE, LABELS, Spelling(("intermediate_size",), _read_ratio, _write_ratio)),
    # gate and up of its largest are one tensor in files, and two in memory
    beyond={"use_swiglu_ffn": True},
    runtime={disk: memory for disk, memory in IN_MEMORY.items() if ".attention." in disk},
)  # fmt: skip

# -- the towers of CLIP and SigLIP that read images ---------------------------------------------------------------

L = "vision_model.encoder.layers.{layer}."
CLIP_TOP = (
    Tensor("patches", "vision_model.embeddings.patch_embedding.weight", "D c h w"),
    Tensor("positions", "vision_model.embeddings.position_embedding.weight", "M D"),
    *layer_norm("norm", "vision_model.post_layernorm"),
)
CLIP_BLOCK = (
    *with_bias(Tensor("attn.q", L + "self_attn.q_proj.weight", "H D")),
    *with_bias(Tensor("attn.k", L + "self_attn.k_proj.weight", "K D")),
    *with_bias(Tensor("attn.v", L + "self_attn.v_proj.weight", "K D")),
    *with_bias(Tensor("attn.o", L + "self_attn.out_proj.weight", "D H")),
    *layer_norm("attn.pre_norm", L + "layer_norm1"), *layer_norm("ffn.pre_norm", L + "layer_norm2"),
)  # fmt: skip
CLIP_FFN = (
    *with_bias(Tensor("ffn.up", L + "mlp.fc1.weight", "F D")),
    *with_bias(Tensor("ffn.down", L + "mlp.fc2.weight", "D F")),
)
CLIP = Family(
    "clip_vision_model", {"none": "CLIPVisionModel"},
    (
        Tensor("cls_token", "vision_model.embeddings.class_embedding", "D"), *CLIP_TOP,
        *layer_norm("embed_norm", "vision_model.pre_layrnorm"),
    ),
    CLIP_BLOCK, CLIP_FFN, (),
    keys=KEYS, fixed=FIXED, defaults=SIZES | {
        "projection_dim": 512, "patch_size": 32, "hidden_act": "quick_gelu", "layer_norm_eps": 1e-5,
        "attention_dropout": 0.0, "initializer_factor": 1.0,
    },
    prefix="vision_model.", rope="none", spelt=(IMAGE,), whole_heads=True,
    ignorable=("embeddings.position_ids",),
)  # fmt: skip
SIGLIP = Family(
    "siglip_vision_model", {"none": "SiglipVisionModel"},
    (
        *CLIP_TOP, Tensor("patches.bias", "vision_model.embeddings.patch_embedding.bias", "D"),
    ),
    CLIP_BLOCK, CLIP_FFN, (),
    keys=KEYS, fixed=FIXED | {"prefix_tokens": 0},
    defaults={key: x for key, x in SIZES.items() if key != "initializer_range"} | {
        "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "attention_dropout": 0.0, "vision_use_head": True,
    },
    prefix="vision_model.", rope="none", spelt=(IMAGE,), ignorable=("embeddings.position_ids",),
    opaque=("head.", "vision_model.head."),  # attention of its own, which makes one vector of an image
)  # fmt: skip

VISION = (VIT, DEIT, DINOV2, CLIP, SIGLIP, VMOE)
