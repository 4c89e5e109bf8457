"""The search of the paper: a pool that is never emptied, whose best have children.

A child has two of the best as parents, or one; each of its coefficients may be changed a little; then the sum is
brought back to 1. Nothing is discarded. A round of children is bred from all that came before it, so that they can be
scored together.

    crossover   with probability .3, each coefficient from the first parent with .6, else from the second
    mutation    each coefficient with probability .25, and one in any case, by a normal of .065
    parents     the best 10 of all

Source: LCSC (Liu et al. 2024, arXiv 2404.02241), whose search was never released; the operators and their numbers are
those of EEP, by the same first authors, whose search was.
"""

from __future__ import annotations

import numpy as np

from rekindle.search.coefficients import Alpha, Sum, onto
from rekindle.search.problem import Problem, Scored, ranked

ROUND = 8
PARENTS = 10
CROSSOVER, FROM_FIRST = 0.3, 0.6
MUTATION, STEP = 0.25, 0.065


def evolution(problem: Problem) -> list[Scored]:
    rng = np.random.default_rng(problem.seed)
    pool = problem.started
    while problem.left > 0:
        children = [child(pool, rng, problem.shape, problem.kind) for _ in range(ROUND)]
        pool = ranked([*pool, *problem.raced(children)[0]])
    return pool


def child(pool: list[Scored], rng: np.random.Generator, shape: tuple[int, ...], kind: Sum) -> Alpha:
    """Of a pool that is sorted: coefficients of this shape."""
    parents = [one.alpha for one in pool[:PARENTS]]
    first, second = rng.choice(len(parents), 2, replace=len(parents) < 2)
    crossed = rng.random() < CROSSOVER
    made = np.where(rng.random(shape) < FROM_FIRST, parents[first], parents[second]) if crossed else None
    alpha = parents[first] if made is None else made
    changed = rng.random(shape) < MUTATION
    changed.flat[rng.integers(changed.size)] = True  # every child is another one
    return restored(alpha + changed * rng.normal(0, STEP, shape), kind)


def restored(alpha: Alpha, kind: Sum) -> Alpha:
    """Divided by its sum, as the paper does; moved where that is too near to 0 to divide by."""
    if kind == "free":
        return alpha
    alpha = np.maximum(alpha, 0) if kind == "convex" else alpha
    total = alpha.sum(axis=-1, keepdims=True)
    return onto(alpha / np.where(total > 0.1, total, 1.0), kind)
