"""Carry Adam's moments from the parent to the child by the rules of the child's expressions."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rekindle.anatomy import on_disk, runtime_names
from rekindle.anatomy.adam import MOMENTS
from rekindle.apply.moments import key, weight_of
from rekindle.apply.state import read_state
from rekindle.edit.checkpoint import Checkpoint
from rekindle.edit.expressions import Expr, Joined, Leaf
from rekindle.edit.plan import Plan
from rekindle.errors import RekindleError, together

_WHOLE = "the whole `optimizer/` of the run that made SRC, or no --optimizer-state"


class OptimizerState:
    """The parent's moments, by name on disk."""

    def __init__(self, folder: Path, parent: Checkpoint):
        found = read_state(folder, parent.config)
        self.info, self.stored = found.info, found.moments
        names = {leaf.name for x in parent.tensors.values() for leaf in x.leaves()}
        runtime = runtime_names(parent.config)
        self._stacked = {name: runtime[name] for name in names if not isinstance(runtime.get(name, ""), str)}
        self._check(parent)

    def moment(self, leaf: Leaf, order: int) -> Expr:
        """The moment of a stored tensor; of a stacked one, stacked the same way."""
        suffix = MOMENTS[order - 1]
        if leaf.name in self._stacked:
            parts = [Leaf(key(n, suffix), self.stored[key(n, suffix)]) for row in self._stacked[leaf.name] for n in row]
            return Joined(parts, leaf.shape)
        name = key(leaf.name, suffix)
        return Leaf(name, self.stored[name])

    def step(self, moment: Expr) -> int:
        """Steps behind a child's moment: the most of what it was made of, 0 for a new tensor."""
        names = [weight_of(leaf.name) for leaf in moment.leaves()]
        return max((int(self.info["steps"].get(name, 0)) for name in names), default=0)

    def _check(self, parent: Checkpoint) -> None:
        problems = []
        trained = {role: placed for role, placed in parent.rows.items() if not placed[2].buffer}
        for name, shape in on_disk(trained.items(), parent.settings).items():
            if name not in self.info["steps"]:
                problems.append(
                    RekindleError("The optimizer state does not say the step of a weight.", where=name, hint=_WHOLE)
                )
            for suffix in MOMENTS:
                stored = self.stored.get(key(name, suffix))
                if stored is None:
                    problems.append(
                        RekindleError(f"The optimizer state lacks {suffix} of a weight.", where=name, hint=_WHOLE)
                    )
                elif stored.shape != shape:
                    what = f"{suffix} is {list(stored.shape)}, but the weight {list(shape)}."
                    problems.append(RekindleError(what, where=name))
        if problems:
            raise together(problems)


def recycle(plan: Plan, state: OptimizerState) -> tuple[dict[str, Expr], dict[str, Any]]:
    """The child's moments as tensors to write, and its optimizer.json."""
    tensors: dict[str, Expr] = {}
    steps: dict[str, int] = {}
    for name, expr in plan.tensors.items():
        if name in plan.buffers:
            continue
        for order, suffix in enumerate(MOMENTS, 1):
            tensors[key(name, suffix)] = expr.moment(order, state.moment)
        steps[name] = state.step(tensors[key(name, MOMENTS[0])])
    return tensors, state.info | {"steps": steps}
