"""Find coefficients: the rivals first, then the search, its best few again, and the report."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from itertools import chain

import numpy as np

from rekindle.errors import RekindleError, counted
from rekindle.search.coefficients import KEPT_EMA, Alpha, rivals
from rekindle.search.config import SearchConfig
from rekindle.search.draw import Draw
from rekindle.search.judge import (
    CHOSEN,
    EMA,
    RANDOM,
    RERANKED,
    Row,
    best_of_each,
    check_spread,
    difference,
    report,
    reranked,
)
from rekindle.search.ledger import Ledger
from rekindle.search.problem import Problem, Scored
from rekindle.search.store import Store

SEARCHES = {
    "evolution": "rekindle.search.evolution:evolution",
    "cma": "rekindle.search.cma:cma",
    "gradient": "rekindle.search.gradient:gradient",
    "random": "rekindle.search.at_random:at_random",
}
BUDGET, BUDGET_GRADIENT = 500, 100  # evaluations where none are asked for
FEWEST = 8  # evaluations that are a search
OTHERS = 1000  # seeds of random search lie so far from those of the search
SCALES = (0.9, 0.92, 0.94, 0.96, 0.98, 0.99, 1.01, 1.02, 1.04)  # of the EMA, where sums are free


@dataclass(frozen=True)
class Outcome:
    """What was found. The last of `rows` is the combination; `result` is the row that is written."""

    search: str
    rows: list[Row]
    rival: Row  # the best that needs no search
    result: Row
    held_out: bool  # whether the report is of data that nothing was chosen by
    evaluations: Mapping[str, float]  # by what they were for
    distances: Sequence[float]  # of each row from the best EMA, in units of that between first and last checkpoint
    searched: str  # what the number is called that was searched
    alone: Sequence[float]  # scores of single checkpoints, where they were searched
    others: Sequence[Alpha]  # what the search of each seed found, by its own score
    invalid: int  # evaluations that gave no finite number

    @property
    def combination(self) -> Row:
        return self.rows[-1]

    @property
    def ema(self) -> Row:
        return _ema(self.rows)

    @property
    def metrics(self) -> list[str]:
        """What was reported, the one that was searched first."""
        return list(self.combination.reported)


def find(
    ledger: Ledger,
    config: SearchConfig,
    names: Sequence[str],
    *,
    steps: Sequence[float] | None = None,
    averages: Sequence[str] = (),
    held_out: Ledger | None = None,
) -> Outcome:
    """Search, and judge; raises RekindleError for an objective that has no spread, and a budget that is too small.

    `names` and `steps`: of the checkpoints; `averages`: that the run kept. `held_out`: the ledger of another objective,
    for the report of one that knows no draws.
    """
    spent, first = Spent(ledger), Draw("search", key=config.seed)
    search = _chosen(config, ledger, next(iter(rivals(names)[EMA].values())), first)
    budget = checked_budget(config, search, ledger.store.shape)
    if search == "gradient" and config.seeds > 1 and not ledger.objective.draws:
        what = f"{ledger.objective.name} takes no draw: {config.seeds} searches along its gradient are one."
        raise RekindleError(what, hint="--seeds 1, or --search cma")
    rows = best_of_each(ledger, rivals(names, steps, averages), first)
    check_spread([row.searched for row in rows])
    if config.sum == "free":
        scaled = {f"{c:g} x {_ema(rows).name}": c * _ema(rows).alpha for c in SCALES}
        rows += best_of_each(ledger, {"scaled EMA": scaled}, first)
    spent.on("rivals")

    starts = _distinct([*rivals(names)[EMA].values(), *(row.alpha for row in rows if row.kind != KEPT_EMA)])

    def found(kind: str, how: str, seed: int, other: int = 0) -> list[Row]:
        problem = Problem(ledger, starts, budget, config.sum, seed + other, Draw("search", key=seed))
        some = search_named(how)(problem)[:RERANKED]
        fresh = how == "gradient" and ledger.objective.draws  # its scores are of other data each
        return [Row(kind, f"seed {seed}", one.alpha, math.nan if fresh else one.score) for one in some]

    by_seed = [found(CHOSEN, search, config.seed + i) for i in range(config.seeds)]
    spent.on("search")
    drawn = [found(RANDOM, "random", config.seed + i, OTHERS) for i in range(config.seeds)]
    spent.on("random search")

    order = reranked(ledger, [*rows, *chain(*drawn, *by_seed)], config.seed)
    rows += [next(row for row in order if row.kind == kind) for kind in (RANDOM, CHOSEN)]
    rival = next(row for row in order if row.kind not in (CHOSEN, RANDOM))
    spent.on("re-rank")
    judged = held_out or ledger
    report(judged, rows, config.seed)
    spent.on("report", held_out.spent if held_out else 0)

    best = order[0] if order[0] is not rival and difference(order[0], rival).mean < 0 else rival
    return Outcome(
        search,
        rows,
        rival=rival,
        result=best,
        held_out=bool(judged.objective.draws or held_out),
        evaluations=spent.by,
        distances=_distances(ledger.store, rows),
        searched=next(iter(ledger.numbers([rows[0].alpha], first)[0])),
        alone=ledger.scores([*rivals(names)["single"].values()], first),
        others=[np.broadcast_to(some[0].alpha, ledger.store.shape) for some in by_seed],
        invalid=ledger.invalid,
    )


class Spent:
    """Evaluations by what they were for."""

    def __init__(self, ledger: Ledger):
        self.by: dict[str, float] = {}
        self._ledger, self._seen = ledger, 0.0

    def on(self, what: str, others: float = 0) -> None:
        """All since the last time were for this, and `others` that another ledger counted."""
        self.by[what] = self._ledger.spent - self._seen + others
        self._seen = self._ledger.spent


def _distinct(alphas: Sequence[Alpha]) -> list[Alpha]:
    return list({alpha.tobytes(): alpha for alpha in alphas}.values())


def search_named(search: str) -> Callable[[Problem], list[Scored]]:
    module, _, function = SEARCHES[search].partition(":")
    return getattr(import_module(module), function)


def _chosen(config: SearchConfig, ledger: Ledger, at: Alpha, draw: Draw) -> str:
    """Which search; raises RekindleError where a gradient is asked for and there is none. `at`: where that is tried."""
    if config.search not in ("auto", "gradient"):
        return config.search
    what, why = f"The objective {ledger.objective.name} gives a number without a gradient in the tensors.", None
    try:
        _, slope = ledger.slope(at, draw)
        if slope is not None and slope.any():
            return "gradient"
    except RekindleError as error:  # such as numpy, which takes no tensor that has a gradient
        why = error.what
    if config.search == "auto":
        return "cma"
    hint = "--search cma; or a torch scalar computed from the tensors, as torch.func.functional_call does"
    raise RekindleError(what, why=why, hint=hint)


def checked_budget(config: SearchConfig, search: str, shape: tuple[int, ...]) -> int:
    """That of `config`, or the usual one; raises RekindleError where it is too small for coefficients of this shape."""
    budget = config.budget or (BUDGET_GRADIENT if search == "gradient" else BUDGET)
    count = math.prod(shape)
    least = FEWEST if search in ("gradient", "auto") else max(FEWEST, count)
    if budget < least:
        what = f"A budget of {counted(budget, 'evaluation')} cannot search {count} coefficients."
        fewer = "fewer checkpoints, or no --groups" if len(shape) > 1 else "or fewer checkpoints"
        raise RekindleError(what, why=f"it needs {least}", hint=f"--budget {least}, {fewer}")
    return budget


def _ema(rows: Sequence[Row]) -> Row:
    return next(row for row in rows if row.kind == EMA)


def _distances(store: Store, rows: Sequence[Row]) -> list[float]:
    """|theta - theta of the EMA|, as a share of |theta_1 - theta_K|."""
    ema, theta = np.empty_like(store.last), np.empty_like(store.last)
    store.mix(_ema(rows).alpha, ema)
    store.mix(np.eye(store.count)[0], theta)
    way = float(np.linalg.norm(theta - store.last)) or 1.0
    return [float(np.linalg.norm(store.mix(row.alpha, theta) - ema)) / way for row in rows]
