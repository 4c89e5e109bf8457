"""What a grid costs before it is run: tokens and FLOPs, with trunks shared and without."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

from rekindle.config import resolve
from rekindle.errors import RekindleError
from rekindle.report.metrics import read_metrics
from rekindle.sweep.grid import Cell, Grid
from rekindle.sweep.steps import Step
from rekindle.train.config import InitConfig, TrainConfig
from rekindle.train.flops import training_flops


@dataclass(frozen=True)
class Cost:
    """`naive`: every cell trained on its own, its first stage included."""

    cells: int
    steps: int
    tokens: int
    flops: float
    naive_tokens: int
    naive_flops: float
    work: Mapping[str, tuple[float, float]]  # trained step -> active parameters, FLOPs with its two evaluations

    @property
    def saved(self) -> float:
        """Share of the naive FLOPs."""
        return 1 - self.flops / self.naive_flops

    def hours(self, speeds: Mapping[float, float], workers: int, done: Collection[str] = ()) -> float:
        """Of the steps that are not done, by the speed in FLOP/s of the size nearest to each."""
        left = [work for name, work in self.work.items() if name not in done]
        return sum(flops / speeds[_nearest(size, speeds)] for size, flops in left) / workers / 3600

    def to_dict(self) -> dict[str, Any]:
        return {key: value for key, value in asdict(self).items() if key != "work"} | {"saved": self.saved}


def _nearest(size: float, speeds: Mapping[float, float]) -> float:
    return min(speeds, key=lambda known: abs(math.log(known / size)))


def measured(out: Path, names: Collection[str]) -> dict[float, float]:
    """Active parameters -> FLOP/s of a worker: the median of the steps that are there and logged their speed."""
    found: dict[float, list[float]] = {}
    for name in names:
        try:
            metrics = read_metrics(out / name)
        except RekindleError:
            continue
        active = (metrics.header.get("parameters") or {}).get("active")
        speeds = [step.tokens_per_s for step in metrics.steps if step.tokens_per_s > 0]
        if active and speeds:
            found.setdefault(active, []).append(training_flops(active, 1) * median(speeds))
    return {active: median(speeds) for active, speeds in found.items()}


def cost_of(grid: Grid, steps: Sequence[Step], cells: Sequence[Cell]) -> Cost:
    """FLOPs by active parameters: 6 a token and parameter. A further way is counted as its dense model."""
    dense = [dense_parameters({**grid.model, **size}) for size in grid.sizes]
    active = {cell.step: _active(grid, dense, cell) for cell in cells}
    sizes = {step.name: _size_of(step.name, dense, active) for step in steps if step.verb == "train"}
    trained = {step.name: int(step.options["tokens"]) for step in steps if step.verb == "train"}
    validation = 2 * resolve(TrainConfig, {**grid.train, "tokens": 1}).config.eval_tokens / 3  # a third of training
    work = {name: (sizes[name], training_flops(sizes[name], n + int(validation))) for name, n in trained.items()}
    naive = [(cell.sunk, cell.tokens, dense[cell.size], active[cell.step]) for cell in cells]
    return Cost(
        cells=len(cells),
        steps=len(steps),
        tokens=sum(trained.values()),
        flops=sum(training_flops(sizes[name], tokens) for name, tokens in trained.items()),
        naive_tokens=sum(sunk + tokens for sunk, tokens, _, _ in naive),
        naive_flops=sum(training_flops(n1, d1) + training_flops(n2, d2) for d1, d2, n1, n2 in naive),
        work=work,
    )


def dense_parameters(options: dict[str, Any]) -> int:
    """N1 of a size: what `init` makes of these options, experts left out."""
    config = resolve(InitConfig, {k: v for k, v in options.items() if k not in ("family", "experts", "top_k")}).config
    kind, _, size = config.tokenizer.partition(":")
    if kind != "bpe" or not size.isdigit():
        raise RekindleError(f"How many parameters {config.tokenizer} gives is not known.", hint="tokenizer: bpe:1024")
    h, ffn = config.hidden, config.ffn or 4 * config.hidden
    kv = h // config.heads * (config.kv_heads or config.heads)
    embeddings = int(size) * h * (1 if config.tie_embeddings else 2)
    return embeddings + config.layers * (2 * h * h + 2 * h * kv + 3 * h * ffn + 2 * h) + h


def _active(grid: Grid, dense: Sequence[int], cell: Cell) -> int:
    """N2: the dense model, further experts of a token, and routers."""
    if cell.experts == 1:
        return dense[cell.size]
    config = resolve(InitConfig, {**grid.model, **grid.sizes[cell.size]}).config
    ffn = config.ffn or 4 * config.hidden
    further = (cell.top_k - 1) * 3 * config.hidden * ffn + cell.experts * config.hidden
    return dense[cell.size] + config.layers * further


def _size_of(name: str, dense: Sequence[int], active: dict[str, int]) -> int:
    """Active parameters of a trained step: those of the cells on its trunk, or the dense model's."""
    if name in active:
        return active[name]
    trunk = name.rpartition("-trunk")[0] or name.rpartition("-")[0]
    alike = [size for step, size in active.items() if step.rpartition("-")[0] == trunk]
    return alike[0] if alike else dense[int(name.removeprefix("size").partition("-")[0])]
