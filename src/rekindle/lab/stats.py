"""Differences over seeds: intervals, tests, Holm's adjustment, and how many seeds would decide.

    x_i    a paired difference, one for each of n seeds; normal, with mean mu and standard deviation sigma
    t      Student's t of n - 1 degrees of freedom

Two arms are alike within a margin by two one-sided tests (Schuirmann 1987), each at 5 %: the 90 % interval lies inside.
"""

from __future__ import annotations

import math
from bisect import bisect_left
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from statistics import mean, stdev
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

LEVEL = 0.05  # errors allowed on a page, in all its claims together
POWER = 0.8  # of a number of seeds that decides
FEWEST, MOST = 5, 1000  # seeds
_POINTS = 400  # at which the spread's distribution is read


@dataclass(frozen=True)
class Sample:
    """Mean and standard deviation (nan for one value) of n independent values."""

    mean: float
    spread: float
    n: int

    def half(self, confidence: float = 0.95) -> float:
        """Half the width of Student's interval of the mean; nan for one value."""
        from scipy.special import stdtrit

        if self.n < 2:
            return math.nan
        return float(stdtrit(self.n - 1, 0.5 + confidence / 2)) * self.error

    @property
    def error(self) -> float:
        """Standard error of the mean."""
        return self.spread / math.sqrt(self.n)

    def above(self, bound: float) -> float:
        """p of "the mean is `bound` or less", one-sided: small where it lies clearly above."""
        from scipy.special import stdtr

        if self.n < 2:
            return math.nan
        apart = self.mean - bound
        if self.error == 0:
            return 0.5 if apart == 0 else float(apart < 0)
        return float(stdtr(self.n - 1, -apart / self.error))

    def below(self, bound: float) -> float:
        """p of "the mean is `bound` or more", one-sided."""
        return Sample(-self.mean, self.spread, self.n).above(-bound)

    def within(self, margin: float) -> float:
        """p of "the mean is `margin` or more away from 0": the larger of the two one-sided tests'."""
        return max(self.above(-margin), self.below(margin))

    def beyond(self, margin: float) -> float:
        """p of "the mean is at most `margin` away from 0", two-sided."""
        return min(1.0, 2 * min(self.above(margin), self.below(-margin)))


def sample(values: Sequence[float]) -> Sample:
    return Sample(mean(values), stdev(values) if len(values) > 1 else math.nan, len(values))


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusted p-values (Holm 1979): the i-th smallest of m times m - i + 1, never below one before it."""
    adjusted, most = [0.0] * len(ps), 0.0
    for rank, i in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        most = max(most, min(1.0, (len(ps) - rank) * ps[i]))
        adjusted[i] = most
    return adjusted


def chance_apart(n: int, spread: float, effect: float, level: float = LEVEL) -> float:
    """Power of the two-sided t test: how often n seeds tell a true mean of `effect` from 0, in its own direction."""
    from scipy.special import ndtr, stdtrit

    t = stdtrit(n - 1, 1 - level / 2)
    return float(_over_spreads(n, lambda s: ndtr(abs(effect) * math.sqrt(n) / spread - t * s)))


def chance_alike(n: int, spread: float, effect: float, margin: float, level: float = LEVEL) -> float:
    """Power of the two one-sided tests: how often n seeds hold a true mean of `effect` to be within the margin."""
    from scipy.special import ndtr, stdtrit

    t, root = stdtrit(n - 1, 1 - level), math.sqrt(n) / spread

    def inside(s):
        high, low = (margin - effect) * root - t * s, (-margin - effect) * root + t * s
        return (ndtr(high) - ndtr(low)).clip(0.0)

    return float(_over_spreads(n, inside))


def seeds_for(chance: Callable[[int], float]) -> int | None:
    """The fewest seeds, at least five, whose chance to decide is 80 %; None where a thousand are not enough."""
    numbers = range(FEWEST, MOST + 1)  # a chance grows with them
    place = bisect_left(numbers, POWER, key=chance)
    return numbers[place] if place < len(numbers) else None


def _over_spreads(n: int, chance: Callable) -> float:
    """The mean of `chance` over what n values may show as their spread."""
    return chance(_spreads(n)).mean()


@cache
def _spreads(n: int) -> NDArray[np.float64]:
    """What n values may show as their spread, in units of the true one, each as likely as the next."""
    import numpy as np
    from scipy.special import gammaincinv

    places = (np.arange(_POINTS) + 0.5) / _POINTS
    return np.sqrt(gammaincinv((n - 1) / 2, places) / ((n - 1) / 2))
