"""Held-out judgement: what was found against what needs no search, on draws that nothing was chosen by.

    1. of each kind of rival the best on the search's data      last, single, uniform, EMA, WSM, post-hoc EMA, random
    2. the best few candidates, and the rivals, again on other draws (re-rank): the best of these is the choice
    3. the choice and every rival once on draws of their own (report), compared draw by draw

Where the choice of step 2 is a rival that needs no search, or loses to the best of these in step 3, that rival is the
result.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
from scipy import stats

from rekindle.errors import RekindleError
from rekindle.search.coefficients import Alpha
from rekindle.search.draw import Draw
from rekindle.search.ledger import Ledger

RERANKED, RERANKS, REPORTS = 8, 3, 8  # candidates, draws of these, draws of the report
EMA, CHOSEN, RANDOM = "EMA", "combination", "random search"


@dataclass(eq=False)
class Row:
    """A line of the table: a model, its score where it was searched, and what was reported of it, draw by draw.

    `searched` is NaN of one whose score is of data that no other row saw.
    """

    kind: str
    name: str
    alpha: Alpha
    searched: float
    reported: dict[str, list[float]] = field(default_factory=dict)  # by metric


class Difference(NamedTuple):
    """The mean of paired differences and its 95 % interval (Student's t); of one pair no interval is known."""

    mean: float
    lo: float
    hi: float


def difference(row: Row, other: Row, metric: str | None = None) -> Difference:
    """row - other over the draws of the report, below 0 where the row is better; of what was searched, or `metric`."""
    metric = metric or next(iter(row.reported))
    apart = np.subtract(row.reported[metric], other.reported[metric])
    mean, n = float(apart.mean()), len(apart)
    if n < 2:
        return Difference(mean, -math.inf, math.inf)
    half = float(stats.t.ppf(0.975, n - 1) * apart.std(ddof=1) / math.sqrt(n))
    return Difference(mean, mean - half, mean + half)


def best_of_each(ledger: Ledger, rivals: Mapping[str, Mapping[str, Alpha]], draw: Draw) -> list[Row]:
    """Of each kind of rival the best on one draw."""
    named = [(kind, name, alpha) for kind, some in rivals.items() for name, alpha in some.items()]
    scores = ledger.scores([alpha for _, _, alpha in named], draw)
    rows = [Row(kind, name, alpha, score) for (kind, name, alpha), score in zip(named, scores, strict=True)]
    return [min((row for row in rows if row.kind == kind), key=lambda row: row.searched) for kind in rivals]


def check_spread(scores: Sequence[float]) -> None:
    """Raise RekindleError where different models all score the same, or none scores."""
    finite = [score for score in scores if math.isfinite(score)]
    if not finite:
        what = "The objective gives no finite number for any checkpoint, nor for any of their averages."
        raise RekindleError(what, hint="an objective that is finite where the model is one of its checkpoints")
    if len(finite) > 2 and max(finite) == min(finite):
        what = f"The objective gives {finite[0]:g} for all of {len(finite)} different models: it has no spread."
        raise RekindleError(what, hint="an objective that depends on the tensors it is given")


def reranked(ledger: Ledger, rows: Sequence[Row], key: int) -> list[Row]:
    """The best first, by draws that none was chosen by; by what was searched, where the objective knows no draws."""
    scores = [[row.searched for row in rows]]
    if ledger.objective.draws:
        draws = [Draw("rerank", number, key=key) for number in range(RERANKS)]
        scores = [ledger.scores([row.alpha for row in rows], draw, as_written=True) for draw in draws]
    means = np.mean(scores, axis=0)
    return [rows[i] for i in np.argsort(means, kind="stable")]


def report(ledger: Ledger, rows: Sequence[Row], key: int) -> None:
    """Fill in what is reported of each row, as it would be written: every draw is made once, and all rows see it.

    Of an objective that knows no draws there is one; where it is the one that was searched, no draw is held out.
    """
    for number in range(REPORTS if ledger.objective.draws else 1):
        draw = Draw("report", number, key=key)
        told = ledger.numbers([row.alpha for row in rows], draw, as_written=True)
        for row, numbers in zip(rows, told, strict=True):
            for metric, value in numbers.items():
                row.reported.setdefault(metric, []).append(value)
