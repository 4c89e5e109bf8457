"""Random search, what every other one is held against: as many candidates, normal around the best start."""

from __future__ import annotations

import numpy as np

from rekindle.search.coefficients import onto
from rekindle.search.problem import Problem, Scored, ranked

LEAST, MOST = 0.005, 0.2  # standard deviation, drawn anew for each on a logarithmic scale
ROUND = 8


def at_random(problem: Problem) -> list[Scored]:
    rng = np.random.default_rng(problem.seed)
    pool = problem.started
    origin = pool[0].alpha
    while problem.left > 0:
        steps = np.exp(rng.uniform(np.log(LEAST), np.log(MOST), (ROUND, *[1] * len(problem.shape))))
        drawn = origin + steps * rng.standard_normal((ROUND, *problem.shape))
        pool += problem.raced([onto(alpha, problem.kind) for alpha in drawn])[0]
    return ranked(pool)
