"""Tensors on disk that are not one role each: several roles in one, or one transposed.

A row of the table says so: `packed="rows"` (tensors that share the name lie one below the other), `packed="heads"`
(the rows of head 0 of each, then those of head 1, ...), `transposed` ([in, out] instead of [out, in]); and `stacked`,
the name under which transformers v5 keeps all experts of a layer in memory, [E, rows, columns].
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from rekindle.anatomy.family import Family
    from rekindle.anatomy.settings import Role, Settings
    from rekindle.anatomy.tensor import Placed


class Piece(NamedTuple):
    """A run of rows of a role."""

    role: Role
    lo: int
    hi: int


class Packed(NamedTuple):
    """A tensor on disk, and the roles it holds, in order."""

    name: str
    shape: tuple[int, ...]
    roles: dict[Role, tuple[int, ...]]  # with the shape of each
    turns: int = 1  # each role's rows come in so many runs, taken in turn
    transposed: bool = False

    def pieces(self) -> Iterator[Piece]:
        """The runs of rows it is made of, in order, before it is transposed."""
        for turn in range(self.turns):
            for role, shape in self.roles.items():
                rows = shape[0] // self.turns
                yield Piece(role, turn * rows, (turn + 1) * rows)


def packs(table: Iterable[tuple[Role, Placed]], settings: Settings, *, fused: bool = False) -> list[Packed]:
    """All tensors of a table that are packed; `fused`: the table is that of the names in memory."""
    groups: dict[str, list[tuple[Role, Placed]]] = {}
    for role, placed in table:
        row = placed[2]
        if row.packed or row.transposed or (fused and row.stacked):
            groups.setdefault(placed[0], []).append((role, placed))
    return [_pack(name, group, settings, fused) for name, group in groups.items()]


def _pack(name: str, group: list[tuple[Role, Placed]], settings: Settings, fused: bool) -> Packed:
    roles = {role: shape for role, (_, shape, _) in sorted(group, key=lambda item: item[0].expert)}
    row = group[0][1][2]
    shape = (sum(shape[0] for shape in roles.values()), *group[0][1][1][1:])
    if fused and row.stacked:
        experts = settings.num_experts
        return Packed(name, (experts, shape[0] // experts, *shape[1:]), roles)
    turns = settings.num_heads if row.packed == "heads" else 1
    return Packed(name, shape[::-1] if row.transposed else shape, roles, turns, row.transposed)


def stacks(family: Family, settings: Settings) -> list[Packed]:
    """The parameters in which transformers v5 keeps all experts of a layer, layer by layer."""
    found = packs(family.table(settings, fused=True), settings, fused=True)
    return [pack for pack in found if next(iter(pack.roles)).expert >= 0]


def on_disk(table: Iterable[tuple[Role, Placed]], settings: Settings) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the tensors that a table's roles lie in."""
    rows = list(table)
    shapes = {name: shape for _, (name, shape, _) in rows}
    return shapes | {pack.name: pack.shape for pack in packs(rows, settings)}
