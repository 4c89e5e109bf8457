"""fit: a form's numbers for a table, how sure each is, and what the table cannot tell."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from rekindle.errors import RekindleError, counted
from rekindle.laws.config import FitConfig
from rekindle.laws.design import Floats
from rekindle.laws.doubt import Identified, Interaction, Rival, identified, interaction, left_out, rivals, rms
from rekindle.laws.fit import STARTS, Fit, default_form, fit, problem_of
from rekindle.laws.intervals import Bootstrap, bootstrap, percentiles, profile
from rekindle.laws.next_run import Next, next_run, question_of
from rekindle.laws.question import Question
from rekindle.laws.table import Table

Say = Callable[[str], object]


@dataclass(frozen=True)
class Number:
    """A number of the form: at the fit, and its 90 % intervals by bootstrap and by profile (infinite: unbounded)."""

    value: float
    low: float
    high: float
    profile_low: float
    profile_high: float


@dataclass(frozen=True)
class Fitted:
    found: Fit
    drawn: Bootstrap
    numbers: dict[str, Number]
    identified: Identified
    left_out: Floats  # predicted minus measured, nats, each run predicted by the rest
    rivals: list[Rival]
    interaction: Interaction | None
    notes: list[str]
    next: Next | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values at full precision; what is unbounded is None."""
        table = self.found.table
        return {
            "points": len(table),
            "ways": {way: int((table.labels["way"] == way).sum()) for way in table.ways},
            "largest": {v: float(table.numbers[v].max()) for v in ("params", "sunk", "tokens") if v in table.numbers},
            "forms": {way: form.formula for way, form in self.found.forms.items()},
            "objective": {"kind": self.found.problem.objective, "value": self.found.objective},
            "converged": self.found.converged,
            "numbers": {name: {k: v if np.isfinite(v) else None for k, v in asdict(number).items()}
                        for name, number in self.numbers.items()},
            "bootstrap": {"by": self.drawn.by, "clusters": self.drawn.clusters, "fits": len(self.drawn.z)},
            "rms": rms(self.found.residuals),
            "rms_left_out": rms(self.left_out),
            "condition": self.identified.condition if np.isfinite(self.identified.condition) else None,
            "rivals": [asdict(rival) for rival in self.rivals],
            "interaction": self.interaction and asdict(self.interaction) | {"sentence": self.interaction.sentence},
            "next": self.next and asdict(self.next) | {"sentence": self.next.sentence},
            "notes": self.notes,
        }  # fmt: skip


@dataclass(frozen=True)
class Asked:
    """The form to fit, what is resampled ("run" or "trunk"), how many runs there are, what the next is to decide."""

    form: str
    by: str
    runs: int
    question: Question | None


def asked_of(table: Table, config: FitConfig) -> Asked:
    """Raises RekindleError for all that no fit is begun with: options out of range, a table that carries no form."""
    if config.bootstrap < 100:
        raise RekindleError(f"{config.bootstrap} bootstrap fits give no interval.", hint="--bootstrap 4000")
    if config.seed < 0:
        raise RekindleError(f"seed is {config.seed}.", hint="--seed 42")
    if not 0 < config.delta < float("inf"):
        raise RekindleError(f"delta is {config.delta:g}.", hint="--delta 1e-3")
    form = config.form or default_form(table)
    problem_of(table, form, config.objective, config.delta)
    trunks, runs = (len(np.unique(table.labels[label])) for label in ("trunk", "run"))
    if runs < 2:
        what = "All rows are of one run: there is nothing to resample, and so no interval."
        raise RekindleError(what, where=table.where, hint="a column run that tells independent runs apart, or none")
    by = "trunk" if 1 < trunks < runs else "run"
    return Asked(form, by, runs, question_of(config.next) if config.next else None)


def fitted(table: Table, config: FitConfig, say: Say = lambda text: None) -> Fitted:
    """`say` hears of each part as it begins. Raises RekindleError where the table cannot carry the form."""
    asked = asked_of(table, config)
    form, by, runs = asked.form, asked.by, asked.runs
    say(f"{counted(len(table), 'run')} of {', '.join(table.ways)}: the form {form}, from {STARTS} starts")
    found = fit(table, form, config.objective, config.delta)
    say(f"bootstrap: {config.bootstrap} fits of resampled {by}s")
    drawn, weak = bootstrap(found, config.bootstrap, by, config.seed, say), identified(found)
    draws = found.design.values(drawn.z)
    say(f"profiles of {len(found.z)} numbers")
    bounds, profiled = percentiles(draws), profile(found)
    numbers = {
        name: Number(value, *map(float, bounds[:, i]), *map(float, profiled[:, i]))
        for i, (name, value) in enumerate(found.values.items())
    }
    two_stage = any("sunk" in form.variables for form in found.forms.values())
    notes = [*table.notes, *weak.warnings]
    if config.form is None and not two_stage:
        notes.append(f"no run has sunk tokens: the form is {form}, of one stage")
    if weak.unknown:
        notes.append("where nothing is known a bootstrap stays where it starts: there only profile intervals hold")
    if not found.converged:
        notes.append("the fit did not end: its numbers may be better than any other start's, but are no optimum")
    notes += [drawn.note] if drawn.note else []
    notes += (
        [f"{drawn.lost} of the bootstrap fits did not end: some number wanders where the objective is flat"]
        if drawn.lost
        else []
    )
    say(f"each of {runs} runs left out in turn")
    errors = left_out(found)
    if two_stage:
        say("other forms, and the largest D1 and D2 held out")
    return Fitted(
        found=found,
        drawn=drawn,
        numbers=numbers,
        identified=weak,
        left_out=errors,
        rivals=rivals(table, config) if two_stage else [],
        interaction=interaction(found.values, dict(zip(found.design.names, draws.T, strict=True))),
        notes=notes,
        next=next_run(found, asked.question) if asked.question else None,
    )
