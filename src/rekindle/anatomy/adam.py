"""Which weight the moments in a torch optimizer's state belong to.

Such a state knows its parameters by number, unless it was told their names: in the order of its groups, and in each
group in the order that the training code met them. That is the model's own order wherever groups are made by going
through `named_parameters`, as nearly all code does. A pairing is taken for sure where there is just one way to deal
the model's parameters to the groups, each in its order, with every shape as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rekindle.store.torch_file import View

MOMENTS = ("exp_avg", "exp_avg_sq")
MOST_LEFT_OUT = 64  # parameters of the model that the optimizer may lack
MOST_WAYS = 4096  # half-dealt parameters followed at once

Shape = tuple[int, ...]
Key = int | str


@dataclass(frozen=True)
class Adam:
    """A state's parameters by number or name, group by group; of each its moments, and what else was saved."""

    groups: list[list[Key]]
    state: dict[Key, dict[str, Any]]
    names: dict[Key, str]  # where the training code told them to the optimizer, else empty
    options: dict[str, Any]  # of the first group

    @property
    def shapes(self) -> list[list[Shape | None]]:
        """Of each parameter, None where it took no step."""
        return [[x.shape if (x := self.moment(i, 0)) else None for i in group] for group in self.groups]

    def moment(self, number: Key, order: int) -> View | None:
        found = self.state.get(number, {}).get(MOMENTS[order])
        return found if isinstance(found, View) else None


def adam_of(tree: Any) -> Adam | None:
    """The state of an Adam that keeps its moments parameter by parameter; None where `tree` is something else."""
    state, groups = (tree.get("state"), tree.get("param_groups")) if isinstance(tree, dict) else (None, None)
    if not isinstance(state, dict) or not isinstance(groups, list):
        return None
    numbers, names = [], {}
    for group in groups:
        own = group.get("params") if isinstance(group, dict) else None
        if not isinstance(own, list) or not all(type(key) in (int, str) for key in own):
            return None
        numbers.append(own)
        told = group.get("param_names", own)
        if isinstance(told, list) and len(told) == len(own) and all(isinstance(name, str) for name in told):
            names |= dict(zip(own, told, strict=True))
    found = Adam(numbers, {i: x for i, x in state.items() if isinstance(x, dict)}, names, groups[0] if groups else {})
    known = [found.moment(i, 0) and found.moment(i, 1) for group in numbers for i in group]
    if not any(known) or len({i for group in numbers for i in group}) != len(known):
        return None
    return found if not names or len(names) == len(known) else Adam(numbers, found.state, {}, found.options)


def adams_in(tree: Any) -> list[Adam]:
    """The states of Adams in what a file holds: all of it, or entries beside others."""
    return list(filter(None, map(adam_of, [tree, *(tree.values() if isinstance(tree, dict) else ())])))


def deal(adam: Adam, parameters: Mapping[str, Shape]) -> dict[Key, str] | None:
    """Number -> name, of `parameters` in the model's order; None where that cannot be told for sure."""
    if adam.names:
        named = {number: name for number, name in adam.names.items() if adam.moment(number, 0)}
        fits = all(parameters.get(name) == adam.state[number][MOMENTS[0]].shape for number, name in named.items())
        return named if fits else None
    shapes = adam.shapes
    spare = len(parameters) - sum(map(len, shapes))
    if not 0 <= spare <= MOST_LEFT_OUT or any(shape is None for group in shapes for shape in group):
        return None
    # by how many of each group are dealt: the ways to come there, 2 for more, and the last deal of one of them
    ways: dict[tuple[int, ...], tuple[int, Any]] = {(0,) * len(shapes): (1, None)}
    for seen, (name, shape) in enumerate(parameters.items()):
        after: dict[tuple[int, ...], tuple[int, Any]] = {}
        for dealt, (count, last) in ways.items():
            choices = [(dealt, last)] if seen - sum(dealt) < spare else []
            for group, at in enumerate(dealt):
                if at < len(shapes[group]) and shapes[group][at] == shape:
                    number = adam.groups[group][at]
                    choices.append(((*dealt[:group], at + 1, *dealt[group + 1 :]), (number, name, last)))
            for where, chain in choices:
                after[where] = min(2, after.get(where, (0, None))[0] + count), chain
        if len(after) > MOST_WAYS:
            return None
        ways = after
    count, chain = ways.get(tuple(map(len, shapes)), (0, None))
    found = {}
    while chain:
        number, name, chain = chain
        found[number] = name
    return found if count == 1 else None


def parameters_of(config: Mapping[str, Any]) -> dict[str, Shape] | None:
    """Names and shapes in the order of transformers' class for a config.json; None where it has none.

    Nothing is allocated; no code but transformers' own runs.
    """
    import torch
    import transformers

    try:
        cls = getattr(transformers, config["architectures"][0])
        if not issubclass(cls, transformers.PreTrainedModel):
            return None
        with torch.device("meta"):
            model = cls(transformers.AutoConfig.for_model(**config))
        return {name: tuple(x.shape) for name, x in model.named_parameters()}
    except Exception:  # transformers may raise anything on a config that it does not know
        return None
