"""FLOPs of a model, from its family's table alone.

2 FLOPs for each weight of a matrix that a token is multiplied by, a product and a sum; and in attention 2 for each dim
of a key and of a value, for each head, each token and each token that it sees. In are routers, shared experts, the
output layer (tied or not) and, of the experts, the K that a token is sent to. Out are what is looked up (embeddings,
positions), norms, biases and softmax. Heads that share keys cost as much as those with their own. The backward pass
costs twice the forward pass: a gradient for what came in, and one for the weights.

The scaling laws count otherwise, C = 6 N D: see `laws.question`.

T tokens of a sequence   K experts of a token
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rekindle.anatomy.family import Family
    from rekindle.anatomy.settings import Settings
    from rekindle.anatomy.tensor import Shaped, Tensor

# A row for each token, or a number for each distance, and no product.
LOOKED_UP = (
    "embed", "decoder.embed", "positions", "token_types", "relative_bias", "attn.relative_bias", "cls_token",
    "distillation_token", "mask_token",
)  # fmt: skip
OF_ONE_TOKEN = ("pooler", "classifier", "distillation_classifier")


def training_flops(
    family: Family, settings: Settings, tokens: float, length: int, *, source: int | None = None
) -> float:
    """Of `tokens` tokens in sequences of `length`, forward and backward; for `source` see `forward_flops`."""
    return 3 * tokens * forward_flops(family, settings, length, source=source) / length


def flops_per_token(family: Family, settings: Settings, read: int, written: int) -> float:
    """Of each token that is read in rows of `read`, for each of which a model foresees `written`: in training."""
    if settings.num_channels:
        return training_flops(family, settings, 1, read)
    return training_flops(family, settings, written / read, written, source=read)


def forward_flops(
    family: Family, settings: Settings, length: int, *, source: int | None = None, full: bool = False
) -> int:
    """Of one sequence of `length` tokens, forward.

    A token sees itself and those before it, within the layer's window; where the model looks both ways, those after it
    too. `full`: it sees all, as kernels without a mask compute it and torch's counter counts it. Of a model of several
    towers the last one writes the sequence, and the others read one of `source` tokens for it (default: as many).
    """
    rows = _untied(family, settings)
    if not family.towers:
        return tower_flops(rows, settings, length, full=full)
    source = length if source is None else source
    total = tower_flops(rows, replace(settings, num_layers=0, windows=(), sparse_layers=()), length)
    *_, last = settings.towers
    for name, own in settings.towers.items():
        how = {"length": length, "source": source} if name == last else {"length": source}
        total += tower_flops(_untied(family.towers[name], own), own, **how, full=full)
    return total


def _untied(family: Family, settings: Settings) -> tuple[Shaped, Shaped, Shaped]:
    """The rows of a model, its head among them also where it is tied: a product all the same."""
    return family.shapes(replace(settings, tie_word_embeddings=False))


def tower_flops(
    rows: tuple[Shaped, Shaped, Shaped], settings: Settings, length: int, *, source: int = 0, full: bool = False
) -> int:
    """Of one column of layers: rows of the top, of a layer with experts, of one without, see `Family.shapes`.

    `source`: tokens of another tower that it reads besides, in attention of its own or in the same.
    """
    experts = len(settings.sparse_layers)
    total = attention_flops(settings, length, full=full)
    for times, kind in zip((1, experts, settings.num_layers - experts), rows, strict=True):
        total += times * sum(2 * math.prod(shape) * _uses(row, settings, length, source) for row, shape in kind)
    if settings.cross_size or settings.merged_attention:
        total += settings.num_layers * _of_a_pair(settings) * length * source
    return total


def attention_flops(settings: Settings, length: int, *, full: bool = False) -> int:
    """Of the scores and the weighted values in all layers of a tower, one sequence forward."""
    both_ways = settings.bidirectional or full
    return _of_a_pair(settings) * sum(_pairs(length, None if full else w, both_ways) for w in settings.windows)


def _of_a_pair(settings: Settings) -> int:
    """For a token and one that it sees: its score, and the value's share."""
    return 2 * settings.num_heads * (settings.head_dim + (settings.value_dim or settings.head_dim))


def _pairs(length: int, window: int | None, both_ways: bool) -> int:
    """How many pairs of a token and one that it sees."""
    # A window of W is, looking back, the token itself and W - 1 before it; looking both ways, W on each side of it.
    w = min(length if window is None else window + both_ways, length)
    back = w * (w + 1) // 2 + (length - w) * w
    return 2 * back - length if both_ways else back


def _uses(row: Tensor, settings: Settings, length: int, source: int) -> int:
    """How many vectors of a sequence a tensor is multiplied by."""
    if " " not in row.shape or row.part in LOOKED_UP:  # a norm, a bias, an embedding
        return 0
    if row.part in OF_ONE_TOKEN:
        return 1
    if row.part == "patches":
        return length - settings.prefix_tokens
    if row.part in ("cross.k", "cross.v"):
        return source
    if settings.merged_attention and row.part in ("attn.k", "attn.v"):
        return length + source
    return length * (settings.top_k if row.part.startswith("expert.") else 1)
