"""What a table cannot tell: terms that the design does not separate, and how far off a law is on runs it has not seen.

condition       of the Jacobian at the fit, columns scaled to one, in centred coordinates
left out        each run left out in turn and predicted by the rest
held out        the largest D1 and the largest D2 predicted by the rest, the form chosen before they are opened
interaction     is alpha3 different from 0, and the smallest alpha3 that this design could have detected
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rekindle.errors import RekindleError
from rekindle.laws.config import FitConfig
from rekindle.laws.design import Floats
from rekindle.laws.fit import Fit, fit
from rekindle.laws.intervals import percentiles, standard_errors
from rekindle.laws.solve import solve
from rekindle.laws.table import Table

ILL = 1e3  # condition from which terms are not separated
WEAK = 0.5  # standard error of a number, relative to it, from which its term is weak
NOTHING = 10.0  # relative standard error from which nothing is known of it
RIVALS = ("upcycling", "no-interaction", "additive")
NORMAL = 1.645  # standard errors to the end of a 90 % interval
DETECTABLE = NORMAL + 0.841  # standard errors to leave it, and to do so in 8 of 10 cases


@dataclass(frozen=True)
class Identified:
    """`weak`: numbers whose standard error is above half of them; `together`: those that only go together."""

    condition: float
    weak: dict[str, float]  # name -> relative standard error
    together: list[str]

    @property
    def unknown(self) -> list[str]:
        """Numbers of which the table says nothing."""
        return [name for name, error in self.weak.items() if error >= NOTHING]

    @property
    def warnings(self) -> list[str]:
        errors = (f"{name} ({f'{100 * e:.0f} %' if e < NOTHING else 'not at all'})" for name, e in self.weak.items())
        found = [f"hardly known, standard error of it in brackets: {', '.join(errors)}"] if self.weak else []
        if self.together:
            found.append(f"{', '.join(self.together)} only go together (condition {self.condition:.2g})")
        return found


def identified(found: Fit) -> Identified:
    """What the design can tell at the fit."""
    jacobian = found.design.jacobian(found.z[None])[0]
    norms = np.linalg.norm(jacobian, axis=0)
    scaled = jacobian / np.where(norms > 0, norms, 1)
    _, sizes, directions = np.linalg.svd(scaled, full_matrices=False)
    condition = float(sizes[0] / sizes[-1]) if sizes[-1] > 0 else np.inf
    names = found.design.names
    weights = np.abs(directions[-1])
    alike = [names[i] for i in np.argsort(-weights) if weights[i] > 0.3] if condition > ILL else []
    return Identified(condition, _weak(found), alike)


def _weak(found: Fit) -> dict[str, float]:
    """Relative standard errors above WEAK, of the form's own numbers; an amplitude's is that of its logarithm."""
    design = found.design.uncentred()
    z = design.coordinates(found.design.values(found.z))
    errors = standard_errors(found, design, z)
    relative = np.where(design.logarithmic, errors, errors / np.maximum(np.abs(z), 1e-12))
    return {name: float(r) for name, r in zip(design.names, relative, strict=True) if r > WEAK}


def left_out(found: Fit) -> Floats:
    """Predicted minus measured [n], nats, each run predicted by a fit without it."""
    names, cluster = np.unique(found.table.labels["run"], return_inverse=True)
    weights = (np.arange(len(names))[:, None] != cluster[None]).astype(float)
    solved = solve(found.problem, np.repeat(found.z[None], len(names), axis=0), weights)
    return found.design.predict(solved.z)[cluster, np.arange(len(cluster))] - found.problem.losses


def rms(residuals: Floats) -> float:
    return float(np.sqrt(np.mean(residuals**2)))


@dataclass(frozen=True)
class Rival:
    """A form's root mean square errors, nats: on runs left out of what is not held out, and on what is."""

    form: str
    left_out: float
    held_out: dict[str, float]  # "sunk", "tokens": where that is largest


def rivals(table: Table, config: FitConfig) -> list[Rival]:
    """The forms that a table of two stages may follow, best first.

    Which is best is said by runs left out of the part that is not held out; only then the largest D1 and the largest D2
    are opened. A form that the rest cannot carry is not there.
    """
    held = {v: _largest(table, v) for v in ("sunk", "tokens")}
    rest = table.only(~(held["sunk"] | held["tokens"]))
    found = []
    for name in dict.fromkeys((*((config.form,) if config.form else ()), *RIVALS)):
        try:
            chosen_by = rms(left_out(fit(rest, name, config.objective, config.delta)))
            errors = {v: _held_out(table, rows, name, config) for v, rows in held.items()}
        except RekindleError:
            continue
        found.append(Rival(name, chosen_by, errors))
    return sorted(found, key=lambda rival: rival.left_out)


def _largest(table: Table, variable: str) -> NDArray[np.bool_]:
    """Rows of two stages at the largest value of a variable."""
    staged = table.numbers["sunk"] > 0
    column = table.numbers[variable]
    return staged & (column == column[staged].max())


def _held_out(table: Table, rows: NDArray[np.bool_], form: str, config: FitConfig) -> float:
    """Root mean square error of a fit of the others on these rows."""
    rest, opened = fit(table.only(~rows), form, config.objective, config.delta), table.only(rows)
    errors = []
    for way in opened.ways:
        own = opened.only(opened.labels["way"] == way)
        errors.append(rest.predict(rest.z[None], way, **own.numbers)[0] - own.numbers["loss"])
    return rms(np.concatenate(errors))


@dataclass(frozen=True)
class Interaction:
    """alpha3, its 90 % interval, and the smallest that a design like this detects in 8 of 10 cases."""

    value: float
    low: float
    high: float
    detectable: float

    @property
    def sentence(self) -> str:
        there = "different from 0" if self.low > 0 or self.high < 0 else "not told from 0"
        return (f"alpha3 is {self.value:.2e} ({self.low:.2e} to {self.high:.2e}), {there}; "
                f"this design detects {self.detectable:.1e} and more")  # fmt: skip


def interaction(values: Mapping[str, float], draws: Mapping[str, Floats]) -> Interaction | None:
    """Of a fit's numbers and its bootstrap's; None for a form without the term."""
    name = next((name for name in values if name.split(".")[-1] == "alpha3"), None)
    if name is None:
        return None
    low, high = percentiles(draws[name])
    error = float(high - low) / (2 * NORMAL)  # of draws with heavy tails the deviation would say too much
    return Interaction(values[name], float(low), float(high), DETECTABLE * error)
