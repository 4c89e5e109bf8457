"""The bench every study works on: its steps for each seed, and what came out of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from rekindle.report.metrics import read_metrics
from rekindle.sweep.engines import Local
from rekindle.sweep.steps import Say, Step
from rekindle.sweep.steps import perform as sweep_steps


@dataclass(frozen=True)
class Size:
    """How much a study does: seeds, and a factor on all its tokens."""

    seeds: int
    scale: float = 1.0
    quick: bool = False

    def tokens(self, full: int) -> int:
        """`full` tokens at full size, in whole steps of 4096."""
        return max(4096, int(full * self.scale) // 4096 * 4096)


def losses(runs: Path, name: str, seeds: int, *, start: bool = False) -> list[float]:
    """The last validation loss of a `train` step, for each seed; with `start` the first, before any training."""
    found = [read_metrics(runs / seeded(name, seed)).evaluations for seed in range(seeds)]
    return [rows[0 if start else -1].loss for rows in found]


def ratio_of_active(one: Path, other: Path) -> float:
    """How many times the FLOPs per token of `other` does `one` cost? By active parameters."""
    from rekindle import api

    active = [api.inspect(folder)["parameters"]["active"] for folder in (one, other)]
    return active[0] / active[1]


def command(study: str, size: Size) -> str:
    """What to type to do it again."""
    return f"rekindle lab {study} --seeds {size.seeds}" + (" --quick" if size.quick else "")


def seeds_drawn(size: Size) -> str:
    return (
        f"{size.seeds} seed{'s' * (size.seeds > 1)}: each draws the parent, the order of its text and all that follows."
    )


def seeded(name: str, seed: int) -> str:
    """The folder of a step for one seed."""
    return f"{name}-{seed}"


def perform(steps_of_seed: Callable[[int], Sequence[Step]], seeds: int, out: Path, say: Say) -> None:
    """Run all steps of all seeds under `out`; see sweep.steps."""
    steps = [
        replace(step, name=seeded(step.name, seed), source=step.source and seeded(step.source, seed), seed=seed)
        for seed in range(seeds)
        for step in steps_of_seed(seed)
    ]
    with Local() as engine:
        sweep_steps(steps, out, engine, say)
