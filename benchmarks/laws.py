"""Fitting laws: speed against the usual recipe, and whether 90 % intervals hold the truth in 90 % of draws.

The usual recipe is scipy's L-BFGS-B from 4,500 starts, then one BFGS start for each of 4,000 bootstraps, with finite
differences and default tolerances (Epoch's notebook; most laws since). A slice of it is run and scaled.
"""

from __future__ import annotations

import time
from itertools import product
from pathlib import Path

import numpy as np
from scipy.optimize import minimize
from scipy.special import logsumexp

from benchmarks.measure import Row, record
from rekindle.laws.config import DELTA
from rekindle.laws.fit import Fit, fit
from rekindle.laws.intervals import bootstrap, percentiles, profile
from rekindle.laws.law import published
from rekindle.laws.table import Table, make_table

STARTS, BOOTSTRAPS = 4500, 4000
SLICE = 12  # of either that is run of the usual recipe
DRAWS, FITS = 200, 400
NOISE = 0.005  # nats
SEED = 7


def main(work: Path) -> None:
    record("Laws: 240 points of the Chinchilla form", speed())
    record(
        f"Laws: coverage of 90 % intervals, {DRAWS} draws",
        coverage(),
        f"216 points of the upcycling law (6 sizes x 6 D1 x 6 D2), noise of sd {NOISE} nats, {FITS} bootstrap fits. "
        "Shared: half of the variance is one error for each branch of 6 points.",
    )


def chinchilla() -> Table:
    law, random = published()["chinchilla-epoch"].row("dense"), np.random.default_rng(SEED)
    n, d = (
        np.exp(random.uniform(np.log(7e7), np.log(1.6e10), 240)),
        np.exp(random.uniform(np.log(5e9), np.log(5e11), 240)),
    )
    loss = law.loss(params=n, tokens=d) + random.normal(0, NOISE, 240)
    return make_table([{"params": a, "tokens": b, "loss": c} for a, b, c in zip(n, d, loss)], "drawn")


def speed() -> list[Row]:
    table = chinchilla()
    fit(table, "chinchilla")  # once, so that nothing is imported while the clock runs
    found, ours = timed(lambda: fit(table, "chinchilla"))
    drawn, drawing = timed(lambda: bootstrap(found, BOOTSTRAPS))
    theirs, least = usual_starts(table)
    each = usual_bootstraps(table, found)
    usual = theirs * STARTS + each * BOOTSTRAPS
    return [
        Row("fit, 256 starts", f"{ours:.2f} s", f"L-BFGS-B, {STARTS} starts {theirs * STARTS:.0f} s",
            f"{theirs * STARTS / ours:.0f} x", ""),
        Row(f"{BOOTSTRAPS} bootstraps", f"{drawing:.2f} s", f"BFGS, one start each {each * BOOTSTRAPS:.0f} s",
            f"{each * BOOTSTRAPS / drawing:.0f} x", "<= 5 s"),
        Row("both", f"{ours + drawing:.2f} s", f"{usual:.0f} s, scaled from {SLICE} of each",
            f"{usual / (ours + drawing):.0f} x", ">= 100 x"),
        Row("objective", f"{found.objective:.10f}", f"best of the slice {least:.10f}",
            f"{found.objective - least:+.1e}", "not above"),
        Row("bootstraps that ended", f"{len(drawn.z)}", f"{BOOTSTRAPS}", "", ""),
    ]  # fmt: skip


def timed(job) -> tuple:
    start = time.perf_counter()
    found = job()
    return found, time.perf_counter() - start


def objective(x: np.ndarray, n: np.ndarray, d: np.ndarray, loss: np.ndarray) -> float:
    """Hoffmann's, as Epoch's notebook has it: sum of Huber of log residuals."""
    a, b, e, alpha, beta = x
    terms = np.stack([a - alpha * n, b - beta * d, np.full_like(n, e)])
    r = np.abs(logsumexp(terms, axis=0) - loss)
    return float(np.where(r <= DELTA, r**2 / 2, DELTA * (r - DELTA / 2)).sum())


def usual_starts(table: Table) -> tuple[float, float]:
    """Seconds of a start, and the least objective of the slice."""
    grid = list(
        product(range(0, 26, 5), range(0, 26, 5), (-1, -0.5, 0, 0.5, 1), (0, 0.5, 1, 1.5, 2), (0, 0.5, 1, 1.5, 2))
    )
    assert len(grid) == STARTS
    n, d, loss = (np.log(table.numbers[name]) for name in ("params", "tokens", "loss"))
    chosen = np.random.default_rng(SEED).choice(len(grid), SLICE, replace=False)
    runs, took = timed(lambda: [minimize(objective, grid[i], (n, d, loss), method="L-BFGS-B") for i in chosen])
    return took / SLICE, min(run.fun for run in runs)


def usual_bootstraps(table: Table, found: Fit) -> float:
    """Seconds of a bootstrap."""
    v = found.values
    start = [np.log(v["A"]), np.log(v["B"]), np.log(v["E"]), v["alpha"], v["beta"]]
    logs = np.log(np.stack([table.numbers[name] for name in ("params", "tokens", "loss")]))
    random = np.random.default_rng(SEED)
    samples = [logs[:, random.integers(0, logs.shape[1], logs.shape[1])] for _ in range(SLICE)]
    _, took = timed(lambda: [minimize(objective, start, tuple(sample), method="BFGS") for sample in samples])
    return took / SLICE


def coverage() -> list[Row]:
    law = published()["upcycling-2025"].row("upcycled")
    sizes, firsts, seconds = np.geomspace(15e6, 1e9, 6), np.geomspace(2e9, 74e9, 6), np.geomspace(1e9, 37e9, 6)
    cells = np.array(list(product(sizes, firsts, seconds)))
    clean = law.loss(params=cells[:, 0], sunk=cells[:, 1], tokens=cells[:, 2])
    branch = np.repeat(np.arange(36), 6)
    names = law.form.parameters
    hits = {kind: np.zeros(len(names)) for kind in ("bootstrap", "profile", "by branch", "naive")}
    random = np.random.default_rng(SEED)
    for _ in range(DRAWS):
        own = random.normal(0, NOISE, len(cells))
        together = random.normal(0, NOISE, 36)[branch]
        alone = fitted(cells, clean + own)
        hits["bootstrap"] += held(law, names, percentiles(alone.design.values(bootstrap(alone, FITS).z)))
        hits["profile"] += held(law, names, profile(alone))
        shared = fitted(cells, clean + (own + together) / 2**0.5, branch)
        hits["by branch"] += held(law, names, percentiles(shared.design.values(bootstrap(shared, FITS, "trunk").z)))
        hits["naive"] += held(law, names, percentiles(shared.design.values(bootstrap(shared, FITS).z)))
    wanted = {"bootstrap": "84 to 96 %", "profile": "84 to 96 %", "by branch": ">= 80 %", "naive": "seen to fail"}
    return [
        Row({"by branch": "shared error, by branch", "naive": "shared error, by row"}.get(kind, kind),
            ", ".join(f"{name} {100 * n / DRAWS:.0f}" for name, n in zip(names, counts, strict=True)),
            f"least {100 * counts.min() / DRAWS:.0f} %, most {100 * counts.max() / DRAWS:.0f} %", "", wanted[kind])
        for kind, counts in hits.items()
    ]  # fmt: skip


def fitted(cells: np.ndarray, loss: np.ndarray, branch: np.ndarray | None = None) -> Fit:
    rows = [{"way": "upcycled", "params": n, "sunk": d1, "tokens": d2, "loss": x, "run": str(i),
             "trunk": str(i if branch is None else branch[i])}
            for i, ((n, d1, d2), x) in enumerate(zip(cells, loss, strict=True))]  # fmt: skip
    return fit(make_table(rows, "drawn"), "upcycling", "squares")


def held(law, names: tuple[str, ...], bounds: np.ndarray) -> np.ndarray:
    truth = np.array([law.values[name] for name in names])
    return (bounds[0] <= truth) & (truth <= bounds[1])
