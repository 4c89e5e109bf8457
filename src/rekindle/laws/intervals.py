"""How sure: bootstrap by run and by trunk, and profile intervals.

A bootstrap draws clusters of rows with replacement: runs, or the trunks that runs branch from, since what went wrong in
a trunk is in all of its branches. An interval holds the middle 90 % of the fits.

A profile holds one number and fits all others, further and further away, until the objective says no: 2 (F - F_min) / s
reaches the square of Student's t quantile, with s estimated from the residuals, sum r^2 / (n - p) for squares and
(n / (n - p)) mean psi^2 / mean psi' for Huber.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rekindle.laws.design import Design, Floats
from rekindle.laws.fit import SEED, Fit
from rekindle.laws.options import HIGH, LOW
from rekindle.laws.solve import solve

FEW_CLUSTERS = 8
_EXACT = 1e-28  # noise of data without any, nats squared
_FAR = 5.0  # a standard error beyond this, of an exponent or a logarithm, says nothing
_REACH = np.array([0.25, 0.5, 0.75, 1, 1.3, 1.6, 2, 2.5, 3, 4, 6, 9])  # standard errors at which a profile is taken


@dataclass(frozen=True)
class Bootstrap:
    """Fits of resampled tables: coordinates [B, p]."""

    z: Floats
    by: str  # "run" or "trunk"
    clusters: int
    fewest: tuple[str, int]  # the way with the fewest clusters, and how many it has
    lost: int  # fits that did not end: they wander where the objective is flat

    @property
    def note(self) -> str | None:
        way, few = self.fewest
        if few >= FEW_CLUSTERS:
            return None
        return f"only {few} {self.by}{'s' * (few > 1)} of {way} to draw from: intervals are too narrow"


def bootstrap(
    fit: Fit, count: int, by: str = "run", seed: int = SEED, say: Callable[[str], object] = lambda text: None
) -> Bootstrap:
    """Fit `count` resamples of the table, each from the fit's own numbers; `say` hears how many are done."""
    names, cluster = np.unique(fit.table.labels[by], return_inverse=True)
    random = np.random.default_rng(seed)
    times = random.multinomial(len(names), np.full(len(names), 1 / len(names)), count).astype(float)
    starts, weights = np.repeat(fit.z[None], count, axis=0), times[:, cluster]
    found = solve(fit.problem, starts, weights, done=lambda n: say(f"bootstrap: {n} of {count}"))
    per_way = {way: len(np.unique(cluster[fit.table.labels["way"] == way])) for way in fit.forms}
    fewest = min(per_way.items(), key=lambda pair: pair[1])
    return Bootstrap(found.z, by, len(names), fewest, int((~found.converged).sum()))


def percentiles(draws: Floats) -> Floats:
    """The 5th and 95th of each column: [2, p]; of one, [2]."""
    return np.percentile(draws, [LOW, HIGH], axis=0)


def standard_errors(fit: Fit, design: Design | None = None, z: Floats | None = None) -> Floats:
    """Of each coordinate, from the curvature at the fit: [p]; huge where the table says nothing about it."""
    return np.sqrt(np.maximum(np.diag(covariance(fit, design, z)), 0.0))


def covariance(fit: Fit, design: Design | None = None, z: Floats | None = None) -> Floats:
    """Of the coordinates, from the curvature at the fit: [p, p]."""
    return noise(fit) * _inverse(_curvature(fit, design or fit.design, fit.z if z is None else z))


def information(fit: Fit, losses: Floats) -> Floats:
    """What one more run at these losses would add to the inverse covariance, for a gradient of 1 by each nat."""
    if fit.problem.objective == "squares":
        return np.full(len(losses), 1 / noise(fit))
    return _inside(fit) / noise(fit) / losses**2


def _inverse(matrix: Floats) -> Floats:
    """Of a curvature; what it says nothing about becomes huge, where a pseudo-inverse would call it certain."""
    scale = np.sqrt(np.maximum(np.diag(matrix), 1e-300))
    return np.linalg.inv(matrix / np.outer(scale, scale) + 1e-13 * np.eye(len(matrix))) / np.outer(scale, scale)


def noise(fit: Fit) -> float:
    """s: what twice the objective's rise is measured in."""
    problem, n = fit.problem, fit.design.rows
    spare = max(n - len(fit.z), 1)
    if problem.objective == "squares":
        return max(float((fit.residuals**2).sum() / spare), _EXACT)
    pull = np.mean(np.clip(_logs(fit), -problem.delta, problem.delta) ** 2)
    return max(float(n / spare * pull / _inside(fit)), _EXACT)


def _curvature(fit: Fit, design: Design, z: Floats) -> Floats:
    """Second derivatives of the expected objective: [p, p]."""
    jacobian = design.jacobian(z[None])[0]
    if fit.problem.objective == "squares":
        return jacobian.T @ jacobian
    jacobian /= design.predict(z[None])[0][:, None]
    return jacobian.T @ jacobian * _inside(fit)


def _logs(fit: Fit) -> Floats:
    return np.log(fit.residuals + fit.problem.losses) - np.log(fit.problem.losses)


def _inside(fit: Fit) -> float:
    """The share of points within Huber's delta: mean psi'."""
    return max(float(np.mean(np.abs(_logs(fit)) <= fit.problem.delta)), 1 / fit.design.rows)


def profile(fit: Fit) -> Floats:
    """The 90 % interval of each of the form's own numbers, [2, p]; infinite where no value is refused."""
    design = fit.design.uncentred()
    problem = replace(fit.problem, design=design)
    z = design.coordinates(fit.design.values(fit.z))
    errors = np.minimum(standard_errors(fit, design, z), _FAR)
    size, offsets = len(z), np.concatenate([-_REACH[::-1], _REACH])
    inverse = _inverse(_curvature(fit, design, z))
    starts, held = [], []
    for i in range(size):
        along = inverse[:, i] / inverse[i, i]  # how the others follow a held one, to first order
        starts.append(z + offsets[:, None] * errors[i] * along)
        held.append(np.tile(np.arange(size) == i, (len(offsets), 1)))
    solved = solve(problem, np.concatenate(starts), held=np.concatenate(held))
    rises = np.maximum(solved.objective - fit.objective, 0)
    rises = np.where(solved.converged, rises, 0).reshape(size, len(offsets))  # what did not end refuses nothing
    depth = np.sqrt(2 * rises / noise(fit)) * np.sign(offsets)
    bounds = np.array([_reached(depth[i], z[i] + offsets * errors[i], z[i], _student(fit)) for i in range(size)]).T
    ends = np.where(np.isfinite(bounds), bounds, z)
    values = np.stack([design.values(np.where(np.eye(size, dtype=bool), row, z))[np.arange(size), np.arange(size)]
                       for row in ends])  # fmt: skip
    return np.where(np.isfinite(bounds), values, bounds)


def _student(fit: Fit) -> float:
    from scipy.special import stdtrit

    return float(stdtrit(max(fit.design.rows - len(fit.z), 1), HIGH / 100))


def _reached(depth: Floats, at: Floats, middle: float, limit: float) -> tuple[float, float]:
    """Where a profile's signed depth passes -limit and limit; infinite where it does not."""
    depth, at = np.insert(depth, len(depth) // 2, 0.0), np.insert(at, len(at) // 2, middle)
    half = len(depth) // 2
    low = _cross(-depth[half::-1], at[half::-1], limit)
    return (-np.inf if low is None else low), (
        np.inf if (high := _cross(depth[half:], at[half:], limit)) is None else high
    )


def _cross(depth: NDArray, at: NDArray, limit: float) -> float | None:
    """The first place, going out, where the depth reaches the limit; linear between two."""
    over = np.flatnonzero(depth >= limit)
    if not len(over):
        return None
    i = int(over[0])
    share = (limit - depth[i - 1]) / (depth[i] - depth[i - 1])
    return float(at[i - 1] + share * (at[i] - at[i - 1]))
