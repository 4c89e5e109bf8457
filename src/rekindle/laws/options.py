"""The ways from here to a model, and the loss that a law gives each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rekindle.laws.forms import Floats
from rekindle.laws.law import Law, Row
from rekindle.laws.question import FLOPS, Question

LOW, HIGH = 5.0, 95.0  # percentiles of an interval
DRAWS = 500  # sets of numbers in which everything is decided

# What D1 and D2 are multiplied with, of r = N2 / N1
FACTORS: dict[str, Callable[[float], float]] = {
    "0": lambda r: 0.0,
    "1": lambda r: 1.0,
    "r": lambda r: r,
    "1/r": lambda r: 1 / r,
}


@dataclass(frozen=True)
class Way:
    """An option: which row of the law, and how many tokens that row is given.

    A row of one stage is given `sunk` D1 + `tokens` D2, by the names of factors; one of two stages D1 and D2.
    """

    row: str
    title: str
    sunk: str | None = None
    tokens: str = "1"
    dense: bool = False

    def trained(self, d1: Any, d2: Any, ratio: float) -> Any:
        """Tokens of the last stage that the row knows."""
        if self.sunk is None:
            return d2
        return FACTORS[self.sunk](ratio) * d1 + FACTORS[self.tokens](ratio) * d2


SOURCE = Way("dense", "the checkpoint as it is", "1", "0", dense=True)
WAYS: dict[str, Way] = {
    "dense": Way("dense", "dense continued, as many tokens", "1", "1", dense=True),
    "dense_flops": Way("dense", "dense continued, as many FLOPs", "1", "r", dense=True),
    "upcycled": Way("upcycled", "upcycled"),
    "scratch": Way("scratch", "mixture from scratch, as many tokens", "0", "1"),
    "scratch_d1d2": Way("scratch", "mixture from scratch, D1 + D2 tokens", "1", "1"),
    "scratch_flops": Way("scratch", "mixture from scratch, all FLOPs of both stages", "1/r", "1"),
}


DENSE_ALONE: dict[str, Way] = {  # of a law of dense models: nothing to upcycle to
    "dense": Way("dense", "dense continued, as many tokens", "1", "1", dense=True),
    "dense_scratch": Way("dense", "dense from scratch, as many tokens", "0", "1", dense=True),
}


def dense_alone(law: Law) -> bool:
    """Whether a law tells of dense models of one stage and of nothing else that is an option."""
    return "dense" in law.rows and not {"scratch", "upcycled"} & law.rows.keys() and not _further(law)


def ways_of(law: Law) -> dict[str, Way]:
    """The options that a law can tell of: those above, and any further row of two stages under its own name."""
    if dense_alone(law):
        return DENSE_ALONE
    known = {name: way for name, way in WAYS.items() if way.row in law.rows}
    return known | _further(law)


def _further(law: Law) -> dict[str, Way]:
    used = {way.row for way in WAYS.values()}
    return {n: Way(n, n) for n, row in law.rows.items() if n not in used and "sunk" in row.form.variables}


def points(row: Row, way: Way, q: Question, tokens: Any) -> dict[str, NDArray]:
    """Where a row is asked: what each of its variables is for an option after `tokens` of the second stage."""
    d2 = np.asarray(tokens, float)
    count = {"dense": q.params, "active": q.active, "total": q.total}[row.params]
    here: dict[str, Any] = {
        "params": q.params if way.dense else count,
        "sunk": q.sunk,
        "tokens": way.trained(q.sunk, d2, q.ratio),
        "experts": 1 if way.dense else q.experts,
        "active_share": 1.0 if way.dense else q.top_k / q.experts,
        "granularity": 1.0,
    }
    return {name: np.asarray(value, float) for name, value in here.items()}


def loss(law: Law, way: Way, q: Question, tokens: Any, values: Mapping[str, Any] | None = None) -> Floats:
    """The loss of an option after `tokens` of the second stage, under the law's numbers or under drawn ones."""
    row = law.row(way.row)
    return row.form.predict(row.values if values is None else values, points(row, way, q, tokens))


def flops(way: Way, q: Question) -> float:
    """Training FLOPs still to be spent on an option."""
    if way.dense:
        return FLOPS * q.params * FACTORS[way.tokens](q.ratio) * q.tokens
    return FLOPS * q.active * float(way.trained(q.sunk, q.tokens, q.ratio))


def ends(draws: Floats) -> tuple[Floats, Floats]:
    """Between which 90 % of the draws [draws, ...] lie: draws themselves, so that infinite ones do no harm."""
    low, high = np.percentile(draws, [LOW, HIGH], axis=0, method="nearest")
    return low.squeeze(), high.squeeze()


def outside(law: Law, q: Question) -> list[str]:
    """In words, where the question leaves what the law was fitted on, for any of the options."""
    found: list[str] = []
    for way in ways_of(law).values():
        row = law.row(way.row)
        known = set(row.form.variables) | (set() if way.dense else {"experts", "top_k"})
        asked = points(row, way, q, q.tokens) | {"top_k": np.asarray(float(q.top_k))}
        found += row.outside({name: value for name, value in asked.items() if name in known})
    return list(dict.fromkeys(found))
