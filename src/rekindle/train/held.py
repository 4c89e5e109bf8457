"""Whole weights and moments out of a model that many processes train together.

Whoever saves asks for them here, so that only a `Holder` knows how a model is spread over the ranks. To gather what is
spread takes all of them: each calls the holder, at the same point of the run, and the main one gets what was asked for.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

import torch

from rekindle.anatomy.adam import MOMENTS
from rekindle.apply.moments import moment_name

Names = Mapping[
    str, str | tuple[tuple[str, ...], ...]
]  # transformers' name -> that on disk, or those of a stack's parts


@dataclass(frozen=True)
class Whole:
    """All of a model by transformers' names, on any device; `on_disk` has it by the names it is saved under."""

    parameters: Mapping[str, torch.Tensor]
    buffers: Mapping[str, torch.Tensor]  # that are saved with them, though nothing trains them
    moments: Mapping[str, Mapping[str, torch.Tensor]]  # of each parameter "step", "exp_avg", "exp_avg_sq"
    betas: tuple[float, float]

    @property
    def weights(self) -> dict[str, torch.Tensor]:
        return {**self.parameters, **self.buffers}

    def moments_on_disk(self, names: Names) -> Iterator[tuple[str, torch.Tensor]]:
        """Views of the moments, by `apply.moments.moment_name`."""
        for moment in MOMENTS:
            for name, state in self.moments.items():
                yield from ((moment_name(disk, moment), part) for disk, part in split(names, name, state[moment]))

    def steps_on_disk(self, names: Names) -> dict[str, int]:
        """How many steps each weight took."""
        taken = {name: int(state["step"]) for name, state in self.moments.items()}
        return {disk: taken[name] for name, p in self.parameters.items() for disk, _ in split(names, name, p)}


class Holder(Protocol):
    """A collective: every rank calls it, with its own model and optimizer, or all wait forever."""

    def __call__(self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, main: bool) -> Whole | None:
        """All of it on the main rank, None on the others."""
        ...


def replicated(model: torch.nn.Module, optimizer: torch.optim.Optimizer, main: bool) -> Whole | None:
    """Where each rank has the whole model: what the main one has."""
    return whole_of(model, optimizer) if main else None


def whole_of(model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> Whole:
    """A model that this process has all of, without copying."""
    parameters, saved = dict(model.named_parameters()), model.state_dict().keys()
    return Whole(
        parameters={name: p.detach() for name, p in parameters.items()},
        buffers={name: x for name, x in model.named_buffers() if name in saved},
        moments={name: optimizer.state[p] or untouched(p) for name, p in parameters.items()},
        betas=optimizer.param_groups[0]["betas"],
    )


def untouched(p: torch.Tensor) -> dict[str, torch.Tensor]:
    """The state of a parameter that no gradient has reached."""
    return {"step": torch.zeros(()), **{moment: torch.zeros_like(p, dtype=torch.float32) for moment in MOMENTS}}


def split(names: Names, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Views of a tensor shaped like a parameter, each with its name on disk."""
    disk = names.get(name, name)
    if isinstance(disk, str):
        yield disk, tensor
        return
    for expert, parts in zip(tensor, disk, strict=True):
        yield from zip(parts, expert.chunk(len(parts)), strict=True)
