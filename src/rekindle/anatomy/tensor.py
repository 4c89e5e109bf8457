"""One row of a family's table: a tensor, what it is called, its shape in letters, and when it is there."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from rekindle.anatomy.settings import Role, Settings


@dataclass(frozen=True)
class Tensor:
    """One row: its role, its name on disk, its shape in letters (see Settings.dims), when it is there.

    `when` names the setting that must be true, or "setting=value"; several are divided by commas. `neutral` is the
    value it takes in a child whose parent lacks it, chosen so that the function is kept and training is not blocked:
    "zeros", "ones", or "first ROLE" (the first units of the parent's tensor). How tensors that are not one role each
    are said: see `packing`. A `buffer` is not trained: it has no moments. Layers before `from_layer` lack it.
    """

    part: str
    name: str
    shape: str
    when: str = ""
    neutral: str = ""
    packed: str = ""
    transposed: bool = False
    stacked: str = ""
    buffer: bool = False
    from_layer: int = 0


Placed = tuple[str, tuple[int, ...], Tensor]  # name of the tensor that holds a role, the role's shape, its row
Shaped = list[tuple[Tensor, tuple[int, ...]]]


OPAQUE = "tensor "  # begins the part of a role that no row names; then comes its name, `{layer}` for the layer's number


def opaque_name(role: Role) -> str | None:
    """The name on disk of a tensor that no row names; None of any other."""
    return role.part.removeprefix(OPAQUE).replace("{layer}", str(role.layer)) if role.part.startswith(OPAQUE) else None


def shape_of(row: Tensor, dims: Mapping[str, int]) -> tuple[int, ...]:
    return tuple(dims[letter] for letter in row.shape.split())


def is_present(when: str, settings: Settings) -> bool:
    return all(_holds(condition, settings) for condition in when.split(",")) if when else True


def _holds(condition: str, settings: Settings) -> bool:
    name, _, value = condition.removeprefix("not ").partition("=")
    there = getattr(settings, name)
    return str(there) == value if value else bool(there) != condition.startswith("not ")
