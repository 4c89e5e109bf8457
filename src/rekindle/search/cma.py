"""CMA-ES over the coefficients that sum to 1: K - 1 directions, each at right angles to (1, ..., 1) and to the others;
in every group.

Source: Hansen and Ostermeier 2001; the implementation is that of cmaes (Nomura and Shibata 2024, arXiv 2402.01373).
"""

from __future__ import annotations

import math
import warnings

import numpy as np
from cmaes import CMA
from numpy.typing import NDArray

from rekindle.search.coefficients import Sum, onto
from rekindle.search.problem import Problem, Scored, ranked

STEP = 0.065  # as far as evolution's mutation goes


def cma(problem: Problem) -> list[Scored]:
    pool = problem.started
    origin = pool[0].alpha
    turn = directions(origin.size, problem.kind)
    shape = (*problem.shape[:-1], turn.shape[1])
    generations = CMA(mean=np.zeros(math.prod(shape)), sigma=STEP, seed=problem.seed)
    while problem.left > 0:
        asked = [generations.ask() for _ in range(generations.population_size)]
        found, order = problem.raced([onto(origin + z.reshape(shape) @ turn.T, problem.kind) for z in asked])
        pool += found
        if len(order) < len(asked):
            break
        with warnings.catch_warnings(), np.errstate(all="ignore"):
            warnings.simplefilter("ignore")
            generations.tell([(asked[i], float(place)) for place, i in enumerate(order)])  # ranks are all it looks at
    return ranked(pool)


def directions(count: int, kind: Sum) -> NDArray[np.float64]:
    """[K, K - 1], columns at right angles that sum to 0 (Helmert); all K axes where the sum is free."""
    if kind == "free":
        return np.eye(count)
    out = np.zeros((count, count - 1))
    for j in range(1, count):
        out[:j, j - 1], out[j, j - 1] = 1.0, -j
        out[:, j - 1] /= np.sqrt(j * (j + 1))
    return out
