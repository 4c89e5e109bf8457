"""TIES: task vectors without their small entries, and of each entry only those that agree on its sign.

trim    of each task vector the `density` largest entries are kept, by size
elect   each entry gets the sign of the larger mass
merge   the mean of those kept entries that have that sign, times lambda, is added to the base

At density 1 equal sources come back bit for bit, where lambda is 1.

Departures: entries are ranked within their tensor, not within the whole model, so that a tensor is all that is read
(other tools do the same); where several entries have the size of the last one kept, all are kept; `weights` weigh both
the mass and the mean (the paper: equal), and a source of weight 0 has no say.

Source: Yadav et al. 2023, "TIES-Merging", arXiv 2306.01708, algorithm 1.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from rekindle.edit import Expr
from rekindle.edit.combine import Elected, Kept, linear
from rekindle.edit.weighing import Sizes


def ties(xs: Sequence[Expr], weights: Sequence[float], base: Expr, density: float, lambda_: float) -> Expr:
    voters = [(trimmed(x, base, density), a) for x, a in zip(xs, weights, strict=True) if a]
    merged = Elected([x for x, _ in voters], base, tuple(a for _, a in voters))
    return merged if lambda_ == 1 else linear([base, merged], [1 - lambda_, lambda_])


def trimmed(x: Expr, base: Expr, density: float, outliers: float = 0.0) -> Expr:
    """x where its task vector is among the largest `density` of entries, after the largest `outliers`; else base."""
    count = math.prod(x.shape)
    first = round(outliers * count)
    last = min(count, first + max(1, round(density * count))) - 1
    if (first, last) == (0, count - 1) or not count:
        return x
    sizes = Sizes(x, base, last, first)
    return Kept(x, base, sizes["lo"], sizes["hi"])
