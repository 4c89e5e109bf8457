"""The best size and token count for a second-stage budget: how large a checkpoint to recycle, and for how long.

For the upcycling form it has a closed form; here it is found by search, so that every form in N, D1 and D2 has one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rekindle.laws.forms import Floats
from rekindle.laws.law import Law
from rekindle.laws.options import HIGH, LOW, dense_alone
from rekindle.laws.question import FLOPS, Question

SIZES = (1e3, 1e13)  # parameters searched
_GRID, _ROUNDS = 200, 6


@dataclass(frozen=True)
class Split:
    """Dense parameters and second-stage tokens of the lowest loss, and where 90 % of the law's draws put them."""

    params: float
    params_low: float
    params_high: float
    tokens: float
    loss: float
    outside: list[str]


def best_split(law: Law, question: Question, budget: float, draws: int) -> Split | None:
    """For `budget` FLOPs of the upcycled mixture, from a source of as many sunk tokens; None without such a row.

    Of a law of dense models alone: of one from scratch.
    """
    name = "dense" if dense_alone(law) else "upcycled"
    variables = {"params", "tokens"} if name == "dense" else {"params", "sunk", "tokens"}
    if name not in law.rows or set(law.rows[name].form.variables) != variables:
        return None
    row, sample = law.row(name), law.sample(draws)[name]
    per_size = budget / (FLOPS * question.ratio)

    def points(params: Floats) -> dict[str, Floats]:
        return {"params": params, "sunk": np.asarray(question.sunk), "tokens": per_size / params}

    middle = float(lowest_at(lambda n: row.form.predict(row.values, points(n)), SIZES)[0])
    low, high = np.percentile(lowest_at(lambda n: row.form.predict(sample, points(n)), SIZES), [LOW, HIGH])
    if not 1.01 * SIZES[0] < middle < SIZES[1] / 1.01:
        return None  # the law knows no best size
    found = {"params": middle, "sunk": question.sunk, "tokens": per_size / middle}
    loss, outside = float(row.loss(**found)), row.outside(found)
    if "dense" in law.rows and name != "dense":
        source = float(law.row("dense").loss(params=middle, tokens=question.sunk))
        if loss >= source:
            outside.append(f"so few tokens that its source, at {source:.3f}, is not regained")
    return Split(middle, float(low), float(high), per_size / middle, loss, outside)


def lowest_at(curve: Callable[[Floats], Floats], between: tuple[float, float]) -> Floats:
    """Where each of the curves is lowest: [n], on a logarithmic scale; a grid, made finer around the least."""
    low, high = np.log(between[0]), np.log(between[1])
    grid = np.linspace(low, high, _GRID)[None]
    for _ in range(_ROUNDS):
        values = np.atleast_2d(curve(np.exp(grid)))
        rows = np.arange(len(values))
        grid = np.broadcast_to(grid, values.shape)
        at = values.argmin(axis=1)
        left, right = grid[rows, np.maximum(at - 1, 0)], grid[rows, np.minimum(at + 1, _GRID - 1)]
        grid = left[:, None] + (right - left)[:, None] * np.linspace(0, 1, _GRID)
    return np.exp(grid.mean(axis=1))
