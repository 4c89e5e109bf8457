"""Fit a form to a table of runs: the least objective over many starts.

starts     exponents drawn anew for each, the amplitudes that fit them best solved for (variable projection)
rough      all starts at a loose tolerance
polish     the best few at a tight one
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np

from rekindle.errors import RekindleError, together
from rekindle.laws.config import DELTA, Objective
from rekindle.laws.design import Design, Floats
from rekindle.laws.forms import FORMS, Form, form_named
from rekindle.laws.law import published
from rekindle.laws.solve import Problem, solve
from rekindle.laws.table import Table

STARTS, POLISHED = 256, 8
SEED = 42
_ROUGH = 1e-4


@dataclass(frozen=True)
class Fit:
    """A form's numbers for a table; residuals are predicted minus measured, nats."""

    table: Table
    forms: Mapping[str, Form]
    constants: Mapping[str, float]
    problem: Problem
    z: Floats  # [p], in the design's coordinates
    objective: float
    converged: bool

    @property
    def design(self) -> Design:
        return self.problem.design

    @property
    def values(self) -> dict[str, float]:
        return dict(zip(self.design.names, self.design.values(self.z).tolist(), strict=True))

    @property
    def residuals(self) -> Floats:
        return self.design.predict(self.z[None])[0] - self.problem.losses

    def predict(self, z: Floats, way: str, **points: Floats | float) -> Floats:
        """Losses [B, m] of a way under coordinates [B, p], at points [m]."""
        form = self.forms[way]
        numbers = dict(zip(self.design.names, self.design.values(z).T[..., None], strict=True))
        own = {name: numbers[self.design.name(way, name)] for name in form.parameters}
        return form.predict({**own, **self.constants}, {v: np.asarray(points[v], float) for v in form.variables})


def fit(table: Table, form: str, objective: Objective = "huber", delta: float = DELTA, count: int = STARTS) -> Fit:
    """The best of `count` starts. Raises RekindleError where the table cannot carry the form."""
    forms, problem, constants = problem_of(table, form, objective, delta)
    random = np.random.default_rng(SEED)
    starts = np.stack([_start(problem, forms, random) for _ in range(count)])
    rough = solve(replace(problem, tolerance=_ROUGH), starts)
    best = np.argsort(rough.objective)[:POLISHED]
    found = solve(problem, rough.z[best])
    first = int(found.objective.argmin())
    z, least = found.z[first], float(found.objective[first])
    return Fit(table, forms, constants, problem, z, least, bool(found.converged[first]))


def default_form(table: Table) -> str:
    """That of two stages where runs have sunk tokens, or should have them; else that of one."""
    staged = np.any(table.numbers.get("sunk", np.zeros(1)) > 0) or "upcycled" in table.ways
    return "upcycling" if staged else "chinchilla"


def forms_of(table: Table, name: str) -> dict[str, Form]:
    """The form of each way: what was trained in one stage takes the one-stage form beside one of two stages."""
    form = form_named(name)
    if "sunk" not in form.variables:
        return dict.fromkeys(table.ways, form)
    sunk = table.numbers.get("sunk")
    if sunk is None:
        hint = "--form chinchilla for runs of one stage, or --columns sunk=NAME_IN_FILE"
        raise RekindleError(f"The form {name} needs the column sunk.", where=table.where, why=_has(table), hint=hint)
    one_stage = [way for way in table.ways if not np.any(sunk[table.labels["way"] == way] > 0)]
    return {way: FORMS["one-stage"] if way in one_stage else form for way in table.ways}


def problem_of(
    table: Table, form: str, objective: Objective = "huber", delta: float = DELTA
) -> tuple[dict[str, Form], Problem, dict[str, float]]:
    """What is solved, of which forms and constants; raises RekindleError where the table cannot carry the form."""
    forms = forms_of(table, form)
    constants = _constants(forms)
    points = {way: {} for way in forms}
    for way, own in forms.items():
        rows = table.labels["way"] == way
        if missing := [v for v in own.variables if v not in table.numbers]:
            hint = f"--columns {missing[0]}=NAME_IN_FILE"
            what = f"The form {own.name} needs {', '.join(missing)}."
            raise RekindleError(what, where=table.where, why=_has(table), hint=hint)
        points[way] = {v: table.numbers[v][rows] for v in own.variables}
    if problems := _too_little(table, forms, points):
        raise together(problems)
    shared = ("E",) if len(forms) > 1 and all("E" in own.parameters for own in forms.values()) else ()
    design = Design(forms, points, constants, shared)
    return forms, Problem(design, table.numbers["loss"], objective, delta), constants


def _has(table: Table) -> str:
    return f"the table has {', '.join((*table.numbers, *table.labels))}"


def _too_little(table: Table, forms: Mapping[str, Form], points: Mapping) -> list[RekindleError]:
    found = []
    for way, form in forms.items():
        rows = len(next(iter(points[way].values())))
        if rows < len(form.parameters) + 1:
            what = f"{rows} points of {way} cannot tell the {len(form.parameters)} numbers of the form {form.name}."
            found.append(RekindleError(what, where=table.where, why=f"L = {form.formula}", hint="more runs"))
        for variable, values in points[way].items():
            if np.any(values <= 0):
                what = f"{variable} is 0 in some row of {way}: the form {form.name} takes its logarithm."
                found.append(RekindleError(what, where=table.where, hint=f"another way than {way!r} for these rows"))
            elif len(np.unique(values)) == 1:
                what = f"All rows of {way} have {variable} {values[0]:g}: its exponent cannot be told."
                found.append(RekindleError(what, where=table.where, hint=f"runs at another {variable}"))
    return found


def _constants(forms: Mapping[str, Form]) -> dict[str, float]:
    """Those of the published law with the same form."""
    found: dict[str, float] = {}
    for form in forms.values():
        rows = [row for law in published().values() for row in law.rows.values() if row.form is form]
        found |= {name: rows[0].values[name] for name in form.constants}
    return found


def _start(problem: Problem, forms: Mapping[str, Form], random: np.random.Generator) -> Floats:
    """Random exponents with the signs that losses have, and the amplitudes that fit them best."""
    design, losses = problem.design, problem.losses
    z = np.zeros(len(design.names))
    for way, form in forms.items():
        for term in form.terms:
            for exponent, feature in term.exponents:
                drawn = np.exp(random.uniform(np.log(0.02), np.log(1.0)))
                size = drawn if len(feature.variables) == 1 else 0.0
                falls = feature.variables[:1] != ("experts",) or random.random() < 0.5
                z[design.names.index(design.name(way, exponent))] = (
                    -size * np.sign(feature.factor) * (1 if falls else -1)
                )
    basis = np.zeros((design.rows, len(design.names)))
    for piece, values in zip(design.pieces, design.each(z[None]), strict=True):
        if piece.amplitude is not None:
            basis[piece.rows, piece.amplitude] += 1.0 if piece.constant else values[0]
    at = np.flatnonzero(np.abs(basis).sum(axis=0))
    if len(at):
        solved = np.linalg.lstsq(basis[:, at], losses, rcond=1e-8)[0]
        solved = np.maximum(solved, 1e-3 * losses.mean())
        z[at] = np.where(design.constant[at], solved, np.log(solved))
    return z
