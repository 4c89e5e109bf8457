"""From a filled table to a list of tensors to write: strict accounting, layout, cost.

Every target tensor is filled exactly once and has the shape its family says; every source tensor is used, or named
as dropped.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from rekindle.anatomy import fused_slots, runtime_name
from rekindle.anatomy.family import Family
from rekindle.edit.checkpoint import Checkpoint
from rekindle.edit.expressions import Expr, Joined, signature
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
    source: frozenset[str]  # names of all tensors of the folder it reads

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
        computed = (use.expr for use in self.census.values() if use.fate != "copied")
        return workers * (max((expr.memory() for expr in computed), default=0) + 2) * window

    @cached_property
    def dropped(self) -> list[str]:
        """Tensors of the source that nothing is made of."""
        used = {leaf.name for use in self.census.values() for leaf in use.expr.leaves()}
        return sorted(self.source - used)

    def digest(self) -> str:
        """Names the plan: the same whenever the same bytes would be written from the same stored tensors."""
        state = hashlib.sha256(json.dumps(self.config, sort_keys=True).encode())
        seen: dict[int, str] = {}
        for name, expr in self.tensors.items():
            state.update(f"{name}={signature(expr, seen)};".encode())
        return state.hexdigest()


def plan(checkpoint: Checkpoint, *, fused: bool = False) -> Plan:
    """Settle what is written; raises RekindleError with every tensor unfilled, unknown or misshaped."""
    problems: list[RekindleError] = []
    named: dict[str, Expr] = {}
    rows = checkpoint.rows
    for role, (name, shape, _) in rows.items():
        expr = checkpoint.tensors.get(role)
        if expr is None:
            problems.append(RekindleError(f"Nothing fills the {role}.", where=f"{name} {list(shape)}"))
        elif expr.shape != shape:
            problems.append(RekindleError(f"The {role} would be {list(expr.shape)}, not {list(shape)}.", where=name))
        else:
            named[name] = expr
    for role in checkpoint.tensors if len(checkpoint.tensors) > len(named) else ():
        if role in rows:
            continue
        problems.append(RekindleError(f"{checkpoint.family.model_type} has no {role}.", where="the method"))
    if problems:
        raise together(problems)
    tensors = dict(_fuse(checkpoint, named)) if fused else named
    return Plan(tensors, checkpoint.config, _source_names(checkpoint))


def _fuse(checkpoint: Checkpoint, named: dict[str, Expr]) -> Iterator[tuple[str, Expr]]:
    """The same tensors as transformers v5 holds them in memory: experts stacked, its names."""
    family: Family = checkpoint.family
    for role, (name, _, _) in checkpoint.rows.items():
        if role.expert < 0:
            yield runtime_name(family, name), named[name]
    for name, experts in fused_slots(family, checkpoint.settings).items():
        parts = [checkpoint.tensors[role] for roles in experts for role in roles]
        rows = sum(part.shape[0] for part in parts[: len(experts[0])])
        yield name, Joined(parts, (len(experts), rows, parts[0].shape[1]))


def _source_names(checkpoint: Checkpoint) -> frozenset[str]:
    """As leaves name them: with the base-model prefix that a file may lack."""
    return frozenset(
        name if name.startswith(("model.", "lm_head.")) else f"model.{name}" for name in checkpoint.folder.tensors
    )
