"""From a filled table to a list of tensors to write: strict accounting, layout, cost.

Every target tensor is filled exactly once and has the shape its family says; every source tensor is used, or named
as dropped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rekindle.anatomy import Packed, Role, opaque_name, packs
from rekindle.edit.arithmetic import Fresh
from rekindle.edit.checkpoint import ONCE, TIED, Checkpoint
from rekindle.edit.expressions import Expr, labelled, signature
from rekindle.edit.joining import joined
from rekindle.errors import RekindleError, together


class Use:
    """A distinct expression of a plan: what becomes of it (copied file to file, computed, new), how often it stands."""

    __slots__ = ("expr", "fate", "times")

    def __init__(self, expr: Expr):
        self.expr, self.times = expr, 1
        self.fate = "copied" if expr.spans() is not None else "computed" if any(expr.leaves()) else "new"


@dataclass(frozen=True)
class Plan:
    """What will be written, tensor by tensor, in order."""

    tensors: dict[str, Expr]
    config: dict[str, Any]
    source: frozenset[str]  # labels of all tensors of the folders it reads
    buffers: frozenset[str] = frozenset()  # tensors that are not trained

    @cached_property
    def census(self) -> dict[int, Use]:
        """Each distinct expression by its id: experts share theirs, so there are far fewer than tensors."""
        census: dict[int, Use] = {}
        for expr in self.tensors.values():
            use = census.get(id(expr))
            if use is None:
                census[id(expr)] = Use(expr)
            else:
                use.times += 1
        return census

    @property
    def made(self) -> list[Expr]:
        """Each distinct expression that is more than a copy from file to file, which waits for nothing."""
        return [use.expr for use in self.census.values() if use.fate != "copied"]

    @property
    def nbytes(self) -> int:
        return sum(count["bytes"] for count in self.counts.values())

    @cached_property
    def counts(self) -> dict[str, dict[str, int]]:
        """Tensors and bytes by what becomes of them."""
        counts = {fate: {"tensors": 0, "bytes": 0} for fate in ("copied", "computed", "new")}
        for use in self.census.values():
            count = counts[use.fate]
            count["tensors"] += use.times
            count["bytes"] += use.times * use.expr.nbytes
        return counts

    def changed(self) -> Iterator[tuple[str, str]]:
        """(name, fate) of the tensors that are not plain copies."""
        for name, expr in self.tensors.items():
            fate = self.census[id(expr)].fate
            if fate != "copied":
                yield name, fate

    def memory(self, workers: int, window: int) -> int:
        """Upper bound on bytes in memory while writing: blocks of the deepest expression, for each worker."""
        return workers * (max((expr.memory() for expr in self.made), default=0) + 2) * window

    @cached_property
    def dropped(self) -> list[str]:
        """Tensors of the sources that nothing is made of."""
        used = {leaf.label() for use in self.census.values() for leaf in use.expr.leaves()}
        return sorted(self.source - used)

    def digest(self) -> str:
        """Names the plan: the same whenever the same bytes would be written from the same stored tensors."""
        state = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        seen: dict[int, str] = {}
        for name, expr in self.tensors.items():
            state.update(f"{name}={signature(expr, seen)};".encode())
        return state.hexdigest()


def plan(checkpoint: Checkpoint, *, fused: bool = False, whole: bool = False) -> Plan:
    """Settle what is written; raises RekindleError with every tensor unfilled, unknown or misshaped.

    `whole`: with the copies that a config says are written once.

    `fused`: as transformers v5 holds the tensors in memory, a layer's experts stacked, under its names.
    """
    problems: list[RekindleError] = []
    tensors: dict[str, Expr] = {}
    table = dict(checkpoint.family.table(checkpoint.settings, fused=True)) if fused else checkpoint.rows
    for role, (name, shape, _) in table.items():
        expr = checkpoint.tensors.get(role)
        if expr is None:
            problems.append(RekindleError(f"Nothing fills the {role}.", where=f"{name} {list(shape)}"))
        elif expr.shape != shape:
            problems.append(RekindleError(f"The {role} would be {list(expr.shape)}, not {list(shape)}.", where=name))
        else:
            tensors[name] = expr
    if len(checkpoint.tensors) > len(table) - len(problems):
        for role, expr in checkpoint.tensors.items():
            if role in table:
                continue
            if (name := opaque_name(role)) is not None:
                tensors[checkpoint.family.name_in_memory(name) if fused else name] = expr
            else:
                problems.append(RekindleError(f"{checkpoint.family.model_type} has no {role}.", where="the method"))
    if problems:
        raise together(problems)
    for pack in packs(table.items(), checkpoint.settings, fused=fused):
        tensors[pack.name] = put_together(pack, checkpoint.tensors)
    if checkpoint.config.get(ONCE) and not whole:
        for name in checkpoint.config.get(TIED, {}):
            tensors.pop(name, None)
    buffers = frozenset(name for name, _, row in table.values() if row.buffer)
    config = checkpoint.config | checkpoint.family.generating(checkpoint.settings)
    return Plan(tensors, config, _labels(checkpoint), buffers)


def put_together(pack: Packed, roles: Mapping[Role, Expr]) -> Expr:
    """A packed tensor out of its roles: the stored tensor itself where none of them was changed."""
    whole = {role: x.x for role in pack.roles if isinstance(x := roles[role], Fresh)}
    if len(whole) == len(pack.roles):
        return Fresh(put_together(pack, whole))
    shape = pack.shape[::-1] if pack.transposed else pack.shape
    x = joined([roles[role].rows(lo, hi) for role, lo, hi in pack.pieces()], shape)
    return x.transposed() if pack.transposed else x


def _labels(checkpoint: Checkpoint) -> frozenset[str]:
    """Of all tensors of the folders it reads, as leaves have them."""
    return frozenset(
        labelled(key, name)
        for key, source in checkpoint.sources.items()
        for name in {leaf.name for x in source.tensors.values() for leaf in x.leaves()}.union(source.unused)
    )
