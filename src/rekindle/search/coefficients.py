"""Coefficients that need no search: the last checkpoint, single ones, averages of every length, decayed rates.

They are what a search begins with, and what it has to beat. All are arrays [K], oldest first, and sum to 1. What is
searched is that as well, or an array [G, K] of those of every group.

last, single   one checkpoint
uniform        of the last n: LAWA (Kaddour 2022, arXiv 2209.14981)
ema            alpha_k ~ gamma^(K - k): an exponential average over the saved checkpoints, renormalised
power          alpha_k ~ t_k^g: the average whose length grows with the run (EDM2: Karras et al. 2023, arXiv 2312.02696,
               section 3), here of checkpoints; its relative length is sigma = sqrt(g + 1) / ((g + 2) sqrt(g + 3))
kept EMA       that of every step's weights, which the run itself kept: in front of the checkpoints, if it did
wsm            what a decaying learning rate would have weighed (Tian et al. 2025, arXiv 2507.17634), of the last n
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rekindle.methods.merging.post_hoc import exponent
from rekindle.methods.merging.series import SHAPES, wsm

Alpha = NDArray[np.float64]
Sum = Literal["one", "free", "convex"]
KEPT_EMA = "kept EMA"
RELATIVE = (0.01, 0.02, 0.03, 0.05, 0.07, 0.10, 0.14, 0.20, 0.25)  # lengths of a power-function average


def single(count: int, k: int) -> Alpha:
    alpha = np.zeros(count)
    alpha[k] = 1.0
    return alpha


def uniform(count: int, last: int | None = None) -> Alpha:
    alpha = np.zeros(count)
    alpha[count - (last or count) :] = 1 / (last or count)
    return alpha


def ema(count: int, gamma: float) -> Alpha:
    alpha = gamma ** np.arange(count - 1, -1, -1.0)
    return alpha / alpha.sum()


def power(steps: Sequence[float], sigma: float) -> Alpha:
    """`steps`: how far the run was at each checkpoint, from its beginning."""
    along = np.asarray(steps, np.float64) / steps[-1]
    alpha = along ** exponent(sigma)
    return alpha / alpha.sum()


def lengths(count: int) -> list[int]:
    """From 2 to K, each about a quarter more than the one before."""
    found = [2]
    while (then := max(found[-1] + 1, round(found[-1] * 1.25))) < count:
        found.append(then)
    return [n for n in dict.fromkeys([*found, count]) if n <= count]


def rivals(
    names: Sequence[str], steps: Sequence[float] | None = None, averages: Sequence[str] = ()
) -> dict[str, dict[str, Alpha]]:
    """What every combination is held against, {kind: {name: alpha}}: of each kind the best counts."""
    count, of = len(names), lengths(len(names))
    found = {
        "last": {names[-1]: single(count, count - 1)},
        "single": {name: single(count, k) for k, name in enumerate(names)},
        "uniform": {f"last {n}": uniform(count, n) for n in of},
        "EMA": {f"EMA over {n:g}": ema(count, 1 - 1 / n) for n in (*of, 2 * count)},
        "WSM": dict(_decays(count, of)),
    }
    if steps is not None and 0 < steps[0] < steps[-1]:
        found["post-hoc EMA"] = {f"sigma {sigma:g}": power(steps, sigma) for sigma in RELATIVE}
    if averages:
        both = len(averages) + count
        found[KEPT_EMA] = {name: single(both, n) for n, name in enumerate(averages)}
    return found


def _decays(count: int, of: Sequence[int]) -> Iterator[tuple[str, Alpha]]:
    for shape in SHAPES:
        for n in of[:: 2 if len(of) > 4 else 1] if shape != "linear" else ():  # that is the plain average
            alpha = np.zeros(count)
            alpha[count - n :] = wsm(n, shape)
            yield f"{shape} over {n}", alpha


def onto(alpha: Alpha, kind: Sum) -> Alpha:
    """The nearest coefficients that sum to 1; of `convex` those that have no negative one; of `free` any."""
    if kind == "free":
        return alpha
    if kind == "one":
        return alpha + (1 - alpha.sum(axis=-1, keepdims=True)) / alpha.shape[-1]
    return np.apply_along_axis(_convex, -1, alpha)


def _convex(alpha: Alpha) -> Alpha:
    alpha = alpha - alpha.max()  # the same projection, with digits to spare
    falling = np.sort(alpha)[::-1]  # Duchi et al. 2008: projection onto the simplex
    excess = (np.cumsum(falling) - 1) / np.arange(1, alpha.size + 1)
    found = np.maximum(alpha - excess[np.flatnonzero(falling > excess)[-1]], 0.0)
    return found / found.sum()


def along(g: Alpha, kind: Sum) -> Alpha:
    """A gradient without the part that `onto` would take back."""
    return g if kind == "free" else g - g.mean(axis=-1, keepdims=True)
