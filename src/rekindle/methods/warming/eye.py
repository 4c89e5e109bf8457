"""The eye that `t5gemma2` has whether it is to see or not: the smallest, drawn, which no text looks at.

Shapes as transformers' `siglip_vision_model` has them; D is the hidden size of what it is shown to.
"""

from __future__ import annotations

from typing import Any

from rekindle.anatomy import OPAQUE, Role
from rekindle.edit import Expr, Fill, Normal

W, IMAGE, PATCH = 8, 8, 4  # width of all that is in it, and sides in pixels
ENCODER, TOWER = "model.encoder.", "model.encoder.vision_tower."
STD = 0.02

CONFIG: dict[str, Any] = {  # of the encoder, beside that of its text
    "vision_config": {
        "model_type": "siglip_vision_model", "hidden_size": W, "intermediate_size": W, "num_hidden_layers": 1,
        "num_attention_heads": 1, "num_channels": 3, "image_size": IMAGE, "patch_size": PATCH,
        "hidden_act": "gelu_pytorch_tanh", "layer_norm_eps": 1e-6, "attention_dropout": 0.0, "vision_use_head": False,
    },
    "mm_tokens_per_image": (IMAGE // PATCH) ** 2, "boi_token_index": 255_999, "eoi_token_index": 256_000,
    "image_token_index": 256_001,
}  # fmt: skip


def eye(dtype: str, hidden_size: int, seed: int) -> dict[Role, Expr]:
    """Its tensors, by roles that no table looks at."""
    linear, norm = {"weight": (W, W), "bias": (W,)}, {"weight": (W,), "bias": (W,)}
    layer = {f"self_attn.{x}_proj": linear for x in ("q", "k", "v", "out")}
    layer |= {"mlp.fc1": linear, "mlp.fc2": linear, "layer_norm1": norm, "layer_norm2": norm}
    parts = {f"{TOWER}encoder.layers.0.{name}": of for name, of in layer.items()} | {
        f"{TOWER}embeddings.patch_embedding": {"weight": (W, 3, PATCH, PATCH), "bias": (W,)},
        f"{TOWER}embeddings.position_embedding": {"weight": ((IMAGE // PATCH) ** 2, W)},
        f"{TOWER}post_layernorm": norm,
        f"{ENCODER}multi_modal_projector.mm_soft_emb_norm": {"weight": (W,)},
    }
    shapes = {f"{name}.{which}": shape for name, of in parts.items() for which, shape in of.items()}
    shapes |= {
        f"{ENCODER}multi_modal_projector.mm_input_projection_weight": (W, hidden_size),
        f"{ENCODER}embed_tokens.eoi_embedding": (hidden_size,),
    }
    return {Role(OPAQUE + name): _drawn(name, shape, dtype, seed) for name, shape in shapes.items()}


def _drawn(name: str, shape: tuple[int, ...], dtype: str, seed: int) -> Expr:
    if len(shape) > 1:
        return Normal(dtype, shape, STD, seed, name)
    gain = name.endswith("weight") and name.startswith(TOWER)  # of a layer norm; the other is 1 + its weight
    return Fill(dtype, shape, float(gain))
