"""How many tokens until one curve meets another: the lowest root, in every draw of a law at once.

Only the lowest counts, and only below 5e12 tokens: the fitted curves cross a second time at 1e13 to 1e15, which is an
artefact of extrapolation (the model terms differ).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from rekindle.laws.forms import Floats
from rekindle.laws.options import ends

LEAST, MOST = 1e6, 5e12  # tokens between which curves are compared; from fewer where the question is small
GRID = 240
_HALVINGS = 60

Difference = Callable[[Floats], Floats]  # tokens [..., n] -> how far the first curve is above the second


@dataclass(frozen=True)
class Range:
    """Tokens at the law's own numbers, and between which they lie in 90 % of its draws; inf is none below 5e12."""

    low: float
    mid: float
    high: float


def least_for(tokens: float) -> float:
    return min(LEAST, tokens / 1000)


def range_of(mid: Difference, drawn: Difference, least: float) -> Range:
    """Where the first curve comes to lie above the second: under the law's numbers, and in its draws [n, 1]."""
    middle = lowest(mid, least)[0]
    low, high = ends(lowest(drawn, least))
    return Range(float(low), float(middle), float(high))


def lowest(difference: Difference, least: float) -> Floats:
    """The lowest tokens [n] from which the difference is positive; `least` where it always is, inf where never."""
    grid = np.geomspace(least, MOST, GRID)
    with np.errstate(invalid="ignore"):  # of infinite losses neither is above
        return _lowest(difference, grid)


def _lowest(difference: Difference, grid: Floats) -> Floats:
    above = np.atleast_2d(difference(grid)) > 0
    first = above.argmax(axis=1)
    log_hi = np.log(grid[first])[:, None]
    log_lo = np.log(grid[np.maximum(first - 1, 0)])[:, None]
    for _ in range(_HALVINGS):
        middle = (log_lo + log_hi) / 2
        positive = np.atleast_2d(difference(np.exp(middle))).reshape(len(middle), -1) > 0
        log_lo, log_hi = np.where(positive, log_lo, middle), np.where(positive, middle, log_hi)
    return np.where(above.any(axis=1), np.exp(log_hi[:, 0]), np.inf)
