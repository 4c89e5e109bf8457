"""Carry Adam's moments from the parent to the child by the rules of the child's expressions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rekindle.anatomy import Adapter, on_disk, runtime_names
from rekindle.anatomy.adam import MOMENTS
from rekindle.apply.moments import moment_name, weight_of
from rekindle.apply.state import read_state
from rekindle.edit.checkpoint import Checkpoint
from rekindle.edit.expressions import Expr, Leaf
from rekindle.edit.joining import Joined
from rekindle.edit.plan import Plan
from rekindle.errors import RekindleError, counted, together

_WHOLE = "the whole `optimizer/` of the run that made SRC, or no --optimizer-state"


class OptimizerState:
    """One parent's moments, by name on disk."""

    def __init__(self, folder: Path, parent: Checkpoint, key: str = ""):
        found = read_state(folder, parent.config)
        self.info, self._stored, self._key = found.info, found.moments, key
        names = {leaf.name for x in parent.tensors.values() for leaf in x.leaves()}
        runtime = runtime_names(parent.config, map(parent.family.name_in_memory, names))
        self._stacked = {name: runtime[name] for name in names if not isinstance(runtime.get(name, ""), str)}
        self._check(parent)

    def moment(self, leaf: Leaf, order: int) -> Expr:
        """The moment of a stored tensor; of a stacked one, stacked the same way."""
        suffix = MOMENTS[order - 1]
        if leaf.name in self._stacked:
            parts = [self._leaf(moment_name(n, suffix)) for row in self._stacked[leaf.name] for n in row]
            return Joined(parts, leaf.shape)
        return self._leaf(moment_name(leaf.name, suffix))

    def _leaf(self, name: str) -> Leaf:
        return Leaf(name, self._stored[name], self._key)

    def step(self, moment: Leaf) -> int:
        """Steps behind a stored moment."""
        return int(self.info["steps"].get(weight_of(moment.name), 0))

    def _check(self, parent: Checkpoint) -> None:
        problems = []
        trained = {role: placed for role, placed in parent.rows.items() if not placed[2].buffer}
        for name, shape in on_disk(trained.items(), parent.settings).items():
            if name not in self.info["steps"]:
                problems.append(
                    RekindleError("The optimizer state does not say the step of a weight.", where=name, hint=_WHOLE)
                )
            for suffix in MOMENTS:
                stored = self._stored.get(moment_name(name, suffix))
                if stored is None:
                    problems.append(
                        RekindleError(f"The optimizer state lacks {suffix} of a weight.", where=name, hint=_WHOLE)
                    )
                elif stored.shape != shape:
                    what = f"{suffix} is {list(stored.shape)}, but the weight {list(shape)}."
                    problems.append(RekindleError(what, where=name))
        if problems:
            raise together(problems)


class OptimizerStates:
    """The moments of all sources, by their keys."""

    def __init__(self, states: Mapping[str, OptimizerState]):
        self._states = states
        self.info = next(iter(states.values())).info  # but for the steps, that of the first

    def moment(self, leaf: Leaf, order: int) -> Expr:
        """The moment of a stored tensor."""
        return self._states[leaf.source].moment(leaf, order)

    def step(self, moment: Expr) -> int:
        """Steps behind a child's moment: the most of what it was made of, 0 for a new tensor."""
        return max((self._states[leaf.source].step(leaf) for leaf in moment.leaves()), default=0)


def states_of(sources: Mapping[str, Checkpoint], paths: Sequence[str]) -> OptimizerStates:
    """One state for each source, in order; raises RekindleError where there are more or fewer, or one does not fit.

    An adapter has none: what it changes starts with empty moments.
    """
    sources = {key: source for key, source in sources.items() if not isinstance(source.family, Adapter)}
    if len(paths) != len(sources):
        what = f"{counted(len(sources), 'source')} and {counted(len(paths), 'optimizer state')}: each needs its own."
        raise RekindleError(what, hint="--optimizer-state A,B in the order of the sources; or none")
    found = zip(sources.items(), paths, strict=True)
    return OptimizerStates({key: OptimizerState(Path(path), source, key) for (key, source), path in found})


def recycle(plan: Plan, state: OptimizerStates) -> tuple[dict[str, Expr], dict[str, Any]]:
    """The child's moments as tensors to write, and its optimizer.json."""
    tensors: dict[str, Expr] = {}
    steps: dict[str, int] = {}
    for name, expr in plan.tensors.items():
        if name in plan.buffers:
            continue
        for order, suffix in enumerate(MOMENTS, 1):
            tensors[moment_name(name, suffix)] = expr.moment(order, state.moment)
        steps[name] = state.step(tensors[moment_name(name, MOMENTS[0])])
    mark = {"approximate": True} if any(map(_is_average, tensors.values())) else {}
    return tensors, state.info | {"steps": steps} | mark


def told(moments: Mapping[str, Expr]) -> list[str]:
    """What the user should know of a child's moments."""
    if moments and not any(True for x in moments.values() for _ in x.leaves()):
        return ["nothing of the optimizer state is carried: all moments start empty"]
    averaged = sum(map(_is_average, moments.values()))
    return [f"{averaged} of {len(moments)} moments are averages: an approximation"] if averaged else []


def _is_average(moment: Expr) -> bool:
    """Whether it is made of those of several sources."""
    return len({leaf.source for leaf in moment.leaves()}) > 1
