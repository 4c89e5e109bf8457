"""What a grid costs before it is run: tokens and FLOPs, with trunks shared and without."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any, NamedTuple

from rekindle.anatomy import counts
from rekindle.anatomy.flops import training_flops
from rekindle.config import resolve
from rekindle.edit import Checkpoint
from rekindle.errors import RekindleError
from rekindle.report.metrics import read_metrics
from rekindle.sweep.grid import Cell, Grid
from rekindle.sweep.rehearse import begun, models_of
from rekindle.sweep.steps import Step
from rekindle.train.blank import Blank
from rekindle.train.config import TrainConfig


class Work(NamedTuple):
    """Of a step that trains: active parameters, FLOPs of a token, tokens with its two evaluations."""

    active: int
    each: float
    tokens: float


@dataclass(frozen=True)
class Cost:
    """`naive`: every cell trained on its own, its first stage included. FLOPs as in `anatomy.flops`."""

    cells: int
    steps: int
    tokens: int
    flops: float
    naive_tokens: int
    naive_flops: float
    work: Mapping[str, Work]

    @property
    def saved(self) -> float:
        """Share of the naive FLOPs."""
        return 1 - self.flops / self.naive_flops

    def hours(self, speeds: Mapping[float, float], workers: int, done: Collection[str] = ()) -> float:
        """Of the steps that are not done, by the speed in FLOP/s of the size nearest to each."""
        left = [work for name, work in self.work.items() if name not in done]
        return sum(w.each * w.tokens / speeds[_nearest(w.active, speeds)] for w in left) / workers / 3600

    def measured(self, out: Path, names: Collection[str]) -> dict[float, float]:
        """Active parameters -> FLOP/s of a worker: the median of the steps that are there and logged their speed."""
        found: dict[float, list[float]] = {}
        for name in names:
            try:
                steps = read_metrics(out / name).steps
            except RekindleError:
                continue
            speeds = [step.tokens_per_s for step in steps if step.tokens_per_s > 0]
            if speeds and name in self.work:
                work = self.work[name]
                found.setdefault(work.active, []).append(work.each * median(speeds))
        return {active: median(speeds) for active, speeds in found.items()}

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "work"} | {"saved": self.saved}


def _nearest(size: float, speeds: Mapping[float, float]) -> float:
    return min(speeds, key=lambda known: abs(math.log(known / size)))


def cost_of(grid: Grid, steps: Sequence[Step], cells: Sequence[Cell]) -> Cost:
    train = resolve(TrainConfig, {**grid.train, "tokens": 1}).config
    validation = 2 * train.eval_tokens / 3  # a third of training
    models = models_of(steps)

    def each(model: Checkpoint | Blank) -> float:
        return training_flops(model.family, model.settings, 1, train.seq_len)

    trained = {step.name: int(step.options["tokens"]) for step in steps if step.verb == "train"}
    work = {
        name: Work(models[name].parameters()["active"], each(models[name]), tokens + int(validation))
        for name, tokens in trained.items()
    }
    dense = [each(begun({**grid.model, **size})) for size in grid.sizes]
    return Cost(
        cells=len(cells),
        steps=len(steps),
        tokens=sum(trained.values()),
        flops=sum(work[name].each * tokens for name, tokens in trained.items()),
        naive_tokens=sum(cell.sunk + cell.tokens for cell in cells),
        naive_flops=sum(dense[cell.size] * cell.sunk + work[cell.step].each * cell.tokens for cell in cells),
        work=work,
    )


def dense_parameters(options: Mapping[str, Any]) -> int:
    """N1 of a size: what `init` makes of these options, experts but one and routers left out."""
    blank = begun(options)
    return counts.dense_parameters(blank.family, blank.settings)
