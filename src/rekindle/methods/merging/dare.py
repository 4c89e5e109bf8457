"""DARE: drop entries of the task vectors at random, and rescale those that stay.

Each entry of w_i - w_0 is kept with probability `density` and divided by it, so that its expectation stays; what is
kept is added to the base as in task arithmetic. Which are kept depends on the seed, the source and the tensor alone.

Source: Yu et al. 2023, "Language Models are Super Mario", arXiv 2311.03099 (their drop rate p is 1 - density).
"""

from __future__ import annotations

from collections.abc import Sequence

from rekindle.edit import Expr
from rekindle.edit.combine import Dropped
from rekindle.methods.merging.task_arithmetic import task_arithmetic


def dare(
    xs: Sequence[Expr], weights: Sequence[float], base: Expr, density: float, lambda_: float, seed: int, key: str
) -> Expr:
    """`key` names the tensor."""
    if density < 1:
        xs = [Dropped(x, base, density, seed, f"{key}/{i}") for i, x in enumerate(xs)]
    return task_arithmetic(xs, weights, base, lambda_)
