"""Some of a checkpoint's layers, in any order: whatever its config says of each layer goes with it."""

from __future__ import annotations

from collections.abc import Sequence

from rekindle.edit.checkpoint import Checkpoint


def empty_of(parent: Checkpoint, layers: Sequence[int]) -> Checkpoint:
    """A child to be filled, whose layers are these of its parent.

    Raises RekindleError where the family's config cannot say which layers are which then.
    """
    s, sparse = parent.settings, frozenset(parent.settings.sparse_layers)
    child = parent.as_family(
        parent.family.model_type,
        num_layers=len(layers),
        windows=tuple(s.windows[layer] for layer in layers),
        sparse_layers=tuple(new for new, old in enumerate(layers) if old in sparse),
    )
    read = {"architectures", *parent.family.defaults}
    for key, value in child.config.items():
        each = isinstance(value, list) and len(value) == s.num_layers and key not in read
        if each and (own := [value[layer] for layer in layers]) != value:
            child.config[key] = own
            child.noting(f"{key} in config.json has a value for each layer: each went with its layer")
    return child
