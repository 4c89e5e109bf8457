"""Gradient search: Adam on the coefficients, with new data or noise at every step.

The gradient in the coefficients is one product of the stored matrix with the gradient in the tensors, see
`Store.gradient`: a forward and a backward pass are one evaluation and give K numbers, where a search by scores learns
one. What is drawn anew at every step cannot be learnt by heart. So the scores on the way are of different
draws, and what is given back are points of the way, the last first.
"""

from __future__ import annotations

import math

import numpy as np

from rekindle.errors import CheckFailed
from rekindle.search.coefficients import along, onto
from rekindle.search.draw import Draw
from rekindle.search.problem import Problem, Scored

RATE = 0.02  # of Adam, falling to 0 along a line
BETA1, BETA2, EPS = 0.9, 0.999, 1e-12
KEPT = 8  # points of the last half of the path that are given back


def gradient(problem: Problem) -> list[Scored]:
    """Raises CheckFailed where the objective has no gradient at half of all steps or more."""
    starts = problem.started
    alpha, steps = starts[0].alpha, problem.left
    exp_avg, exp_avg_sq, missed, path = np.zeros(problem.shape), np.zeros(problem.shape), 0, []
    for step in range(1, steps + 1):
        fresh = Draw("search", step, key=problem.draw.key)
        score, g = problem.ledger.slope(alpha, fresh)
        path.append(Scored(score, alpha))
        if g is None:
            missed += 1
            if missed > steps // 2:
                what = f"The objective had no finite gradient at {missed} of {step} steps."
                raise CheckFailed(what, hint="--search cma")
            continue
        g = along(g, problem.kind)
        exp_avg += (1 - BETA1) * (g - exp_avg)
        exp_avg_sq += (1 - BETA2) * (g * g - exp_avg_sq)
        rate = RATE * (1 - (step - 1) / steps)
        update = (exp_avg / (1 - BETA1**step)) / (np.sqrt(exp_avg_sq / (1 - BETA2**step)) + EPS)
        alpha = onto(alpha - rate * update, problem.kind)
    chosen = dict.fromkeys(math.ceil(len(path) * (0.5 + 0.5 * i / KEPT)) - 1 for i in range(KEPT, 0, -1))
    return [*(path[i] for i in chosen if path), *starts]
