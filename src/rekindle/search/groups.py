"""Groups of tensors that have coefficients of their own: the layers of a model, or the kinds of its tensors.

layer   those of a layer, in every tower; what stands before the layers counts to the first, what stands behind to the
        last. Of a class that no table knows: by name, up to its first number (down_blocks.0), else its first word
role    attn, ffn, expert, router, embed, norm, ...: the first word of what a family's table calls a tensor

Coefficients are then an array [G, K]; [K] stands for the same ones in every group.
"""

from __future__ import annotations

import re
from typing import Literal

from rekindle.anatomy import Nameless, opaque_name
from rekindle.edit import Checkpoint
from rekindle.errors import RekindleError
from rekindle.methods.merging.weights import Course

By = Literal["layer", "role"]
OTHERS = "others"  # tensors whose role no table says
NUMBERED = re.compile(r"(?:[^.]+\.)*?\d+(?=\.)|[^.]+")


def is_by_depth(checkpoint: Checkpoint, by: By) -> bool:
    """Whether groups are layers by their numbers; else they are parts of names."""
    return by == "layer" and not isinstance(checkpoint.family, Nameless)


def groups_of(checkpoint: Checkpoint, by: By, *, fused: bool = False) -> dict[str, str]:
    """Of every tensor, by its name, that of its group; raises RekindleError where no table says which those are.

    `fused`: by transformers' names, else by those on disk.
    """
    family, settings = checkpoint.family, checkpoint.settings
    if isinstance(family, Nameless):
        if by == "role":
            what = f"Which kind of tensor each of a {family.name} is, no table says."
            raise RekindleError(what, where=checkpoint.folder.named, hint="--groups layer, by their names")
        names = [opaque_name(role) or "" for role in checkpoint.tensors]
        return {name: _by_name(name) for name in names}
    table = dict(family.table(settings, fused=True)) if fused else checkpoint.rows
    roles = {placed[0]: role for role, placed in table.items()}
    for role in checkpoint.tensors:
        if (name := opaque_name(role)) is not None:
            roles[family.name_in_memory(name) if fused else name] = role
    if not is_by_depth(checkpoint, by):
        opaque = {name for name, role in roles.items() if opaque_name(role) is not None}
        return {name: OTHERS if name in opaque else role.part.split(".")[0] for name, role in roles.items()}
    depths = {tower: own.num_layers for tower, own in settings.towers.items()}
    if len(set(depths.values())) > 1:
        said = ", ".join(f"{tower} {depth}" for tower, depth in depths.items())
        what = f"Layers are one group in both towers, and these have {said}."
        raise RekindleError(what, hint="--groups role")
    layers = Course(tuple(range(settings.num_layers)))
    return {name: str(round(layers.at(role, settings))) for name, role in roles.items()}


def in_order(group: str) -> tuple[tuple[int, str], ...]:
    """Sorts them: numbers in a name as numbers."""
    return tuple((int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", group))


def _by_name(name: str) -> str:
    found = NUMBERED.match(name)
    return found[0] if found else name
