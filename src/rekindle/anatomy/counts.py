"""Parameters of a model by what they are for, and what its cache holds, from its family's table alone.

All parameters: `Family.parameters`.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rekindle.anatomy.family import Family
    from rekindle.anatomy.settings import Settings


def parameters_of(family: Family, settings: Settings, *parts: str) -> int:
    """Of the tensors whose part begins so, in all layers; of an expert's once, not once for each expert."""
    top, sparse, dense = family.shapes(settings)
    experts = len(settings.sparse_layers)
    own = sum(
        max(times - row.from_layer, 0) * math.prod(shape)
        for times, rows in ((1, top), (experts, sparse), (settings.num_layers - experts, dense))
        for row, shape in rows
        if row.part.startswith(parts) and not row.buffer
    )
    towers = family.towers.items()
    return own + sum(parameters_of(tower, settings.towers[name], *parts) for name, tower in towers)


def dense_parameters(family: Family, settings: Settings) -> int:
    """The laws' N1: the active parameters, but for those of all experts but one and of the routers."""
    further = max(settings.top_k - 1, 0) * parameters_of(family, settings, "expert.")
    return family.parameters(settings)["active"] - further - parameters_of(family, settings, "router")


def cached(family: Family, settings: Settings) -> tuple[int, int]:
    """Values that the cache of keys and values holds of a token that a model writes, and of one that it reads for it.

    Of latent attention the small vectors, as serving engines keep them. A model that looks both ways writes nothing;
    one that reads no other text has 0 of the second.
    """
    if family.towers:
        *_, (name, settings) = settings.towers.items()
        family = family.towers[name]
    if settings.bidirectional:
        return 0, 0

    def kept(*parts: str) -> int:
        _, sparse, dense = family.shapes(settings)
        experts = len(settings.sparse_layers)
        times = ((experts, sparse), (settings.num_layers - experts, dense))
        return sum(layers * shape[0] for layers, rows in times for row, shape in rows if row.part in parts)

    own = kept("attn.k", "attn.v", "attn.kv_a")
    return own, own if settings.merged_attention else kept("cross.k", "cross.v")
