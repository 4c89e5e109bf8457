"""Many small fits at once: Levenberg-Marquardt on a batch of weighted problems over one design.

A bootstrap is the same fit a thousand times with other weights, a search of starts the same with other beginnings, a
profile the same with one coordinate held: each is a batch here, and a step of all of them a few array operations.

Two objectives, both sums over points with weights w (Hoffmann et al. 2022 and Epoch's refit sum, and so do we; the mean
stops an optimiser early):

    squares   w (L' - L)^2 / 2               in nats
    huber     w Huber_delta(ln L' - ln L)    Hoffmann et al. 2022, section 3.3

Huber's steps are reweighted Gauss-Newton ones, which always descend, and Newton's once those become small: with the
curvature of the points within delta alone, they end a fit in a few steps where reweighting creeps.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rekindle.apply.threads import cores
from rekindle.laws.config import DELTA, Objective
from rekindle.laws.design import Design, Floats

_CHUNK = 256  # problems of a batch: their arrays stay in the cache
_STEPS = 300
_SPEAKS = 10.0  # seconds from one word of progress to the next
_FLAT = 1e-13  # share of the objective: three gains below it end a fit that wanders along a valley
_LEAST = 1e-6  # nats: a fit may pass through predictions below 0, which have no logarithm
_LONGEST = 20.0  # step of an exponent or a logarithm


@dataclass(frozen=True)
class Problem:
    """What is fitted: a design, the losses [n] and how residuals count. `tolerance` bounds the last step."""

    design: Design
    losses: Floats
    objective: Objective = "huber"
    delta: float = DELTA
    tolerance: float = 1e-10


@dataclass(frozen=True)
class Solution:
    """Coordinates [B, p], objectives [B], and which fits ended."""

    z: Floats
    objective: Floats
    converged: NDArray[np.bool_]


def solve(
    problem: Problem,
    starts: Floats,
    weights: Floats | None = None,
    held: NDArray | None = None,
    done: Callable[[int], object] = lambda fits: None,
) -> Solution:
    """Fit from each start [B, p], with weights [B, n] or [n]; coordinates where `held` [B, p] is true stay.

    `done` hears now and then how many fits have ended, where these take long.
    """
    weights = np.ones(problem.design.rows) if weights is None else weights
    batch = [slice(lo, lo + _CHUNK) for lo in range(0, len(starts), _CHUNK)]

    def part(rows: slice) -> Solution:
        own = weights[rows] if weights.ndim == 2 else weights[None]
        return _Batch(problem, starts[rows], own, None if held is None else held[rows]).run()

    with ThreadPoolExecutor(cores()) as pool:
        found, told = [], time.monotonic()
        for solution in pool.map(part, batch):
            found.append(solution)
            if time.monotonic() - told > _SPEAKS and len(found) < len(batch):
                told = time.monotonic()
                done(sum(len(s.z) for s in found))
    return Solution(*(np.concatenate(parts) for parts in zip(*((s.z, s.objective, s.converged) for s in found))))


class _Batch:
    """The problems of a chunk that have not ended yet, and where all of them stand."""

    def __init__(self, problem: Problem, starts: Floats, weights: Floats, held: NDArray | None):
        self.problem = problem
        self.z = np.array(starts, float)
        self.weights = np.broadcast_to(weights, (len(starts), problem.design.rows))
        self.free = np.ones_like(self.z, bool) if held is None else ~held

    def run(self) -> Solution:
        count = len(self.z)
        damping, newton = np.full(count, 1e-3), np.zeros(count, bool)
        objective = self.cost(self.residuals(self.problem.design.predict(self.z)), self.weights)
        ended, calm, live = np.zeros(count, bool), np.zeros(count, int), np.arange(count)
        for _ in range(_STEPS):
            step = self.step(live, damping[live], newton[live])
            tried = self.z[live] + step
            cost = self.cost(self.residuals(self.problem.design.predict(tried)), self.weights[live])
            before = objective[live]
            better = cost <= before
            small = np.abs(step).max(axis=1) <= self.problem.tolerance
            gained = before - cost
            taken = live[better]
            self.z[taken], objective[taken] = tried[better], cost[better]
            damping[taken] = np.maximum(damping[taken] / 8, 1e-14)
            damping[live[~better]] *= 6
            slow = better & (gained < 0.05 * before)
            if self.problem.objective == "huber":
                switched = live[~better & newton[live]]
                newton[live[slow]] = True
                newton[switched] = False
            flat = better & (gained <= _FLAT * before)
            calm[live] = np.where(small | flat, calm[live] + 1, 0)
            stuck = damping[live] > 1e12
            over = (calm[live] >= 3) | stuck
            ended[live[over]] = True
            live = live[~over]
            if not len(live):
                break
        return Solution(self.z, objective, ended)

    def residuals(self, predicted: Floats) -> Floats:
        if self.problem.objective == "squares":
            return predicted - self.problem.losses
        return np.log(np.maximum(predicted, _LEAST)) - np.log(self.problem.losses)

    def cost(self, residuals: Floats, weights: Floats) -> Floats:
        with np.errstate(over="ignore", invalid="ignore"):
            if self.problem.objective == "squares":
                each = residuals**2 / 2
            else:
                size, delta = np.abs(residuals), self.problem.delta
                each = np.where(size <= delta, size**2 / 2, delta * (size - delta / 2))
            found = np.einsum("bn,bn->b", weights, each)
        return np.where(np.isfinite(found), found, np.inf)

    def step(self, live: NDArray, damping: Floats, newton: NDArray) -> Floats:
        """Steps [b, p] of the live problems."""
        problem, z = self.problem, self.z[live]
        each = problem.design.each(z)
        predicted = problem.design.predict(z, each)
        jacobian = problem.design.jacobian(z, each)
        weights, residuals = self.weights[live], self.residuals(predicted)
        if problem.objective == "squares":
            pull, curve = weights * residuals, weights
        else:
            jacobian /= np.maximum(predicted, _LEAST)[..., None]
            size = np.abs(residuals)
            pull = weights * np.clip(residuals, -problem.delta, problem.delta)
            outer = np.where(newton[:, None], 0.0, problem.delta / np.maximum(size, problem.delta))
            curve = weights * np.where(size <= problem.delta, 1.0, outer)
        gradient = np.einsum("bnp,bn->bp", jacobian, pull)
        matrix = np.matmul((jacobian * curve[..., None]).transpose(0, 2, 1), jacobian)
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            step = -_damped(matrix, gradient, damping, self.free[live])
        return np.clip(np.nan_to_num(step, nan=_LONGEST), -_LONGEST, _LONGEST)


def _damped(matrix: Floats, gradient: Floats, damping: Floats, free: NDArray) -> Floats:
    """(H + damping diag H)^-1 g for each; 0 where a coordinate is held."""
    size = matrix.shape[-1]
    diagonal = np.einsum("bpp->bp", matrix)
    scale = np.sqrt(np.maximum(diagonal, 1e-12 * diagonal.max(axis=1, keepdims=True) + 1e-300))
    scaled = matrix / scale[:, :, None] / scale[:, None, :]
    mask = free[:, :, None] & free[:, None, :]
    scaled = np.where(mask, scaled, 0.0)
    index = np.arange(size)
    scaled[:, index, index] = np.where(free, scaled[:, index, index] + damping[:, None], 1.0)
    right = np.where(free, gradient / scale, 0.0)
    return np.linalg.solve(scaled, right[..., None])[..., 0] / scale
