"""Which policy pays: each meets the same deaths, many times over.

What a death costs is known within ends. So each policy is simulated at both of them, and is first only where it is so
at its own worst against the others' best, in 95 of 100 draws of deaths.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

import numpy as np

from rekindle.recovery.damage import CHANCES, EXACT, GAPS, STAGES, STEP_SECONDS, TABLE, Damage, damage_of
from rekindle.recovery.failures import Deaths, Floats, hourly
from rekindle.recovery.simulate import HOUR, Machine, Outages, Run, backs, best_interval, simulate
from rekindle.train.config import Recover

POLICIES: tuple[Recover, ...] = ("shadow", "checkfree", "checkfree+", "copy", "random", "redundant", "checkpoint")
# What a step's time is multiplied by while nobody dies: by ours, which makes updates twice, in benchmarks/results.md,
# and by the paper's rival, which makes forward passes twice too, in its table 2. Over slow links ours lies between
STANDING: Mapping[str, tuple[float, float]] = {"redundant": (1.02, 151.04 / 91.35)}
MOST = 5.0  # times as long as without failures: a run that is not there by then never arrives
FIRST_LOOK = 2.0  # most are there after as many
SURE = 0.95  # of the draws


@dataclass(frozen=True)
class Option:
    """A policy: what it costs, and its runs at the least and at the most of that, one for each draw of deaths."""

    policy: Recover
    factors: tuple[float, float]  # of a step's time, while nobody dies
    every: int  # steps between saved states
    damage: Damage
    least: list[Run]
    most: list[Run]

    @property
    def exact(self) -> bool:
        """Whether what it costs is known to the end."""
        return self.damage.low == self.damage.high and self.factors[0] == self.factors[1]

    def to_dict(self, none: float) -> dict[str, Any]:
        """`none`: hours without failures. Means over draws; `low` to `high` holds 90 % of them, and both ends."""
        best, worst = hours(self.least), hours(self.most)
        return {
            "hours": [fmean(best), fmean(worst)],
            "low": float(np.percentile(best, 5, method="nearest")),
            "high": float(np.percentile(worst, 95, method="nearest")),
            "times": [fmean(best) / none, fmean(worst) / none],
            **{name: [fmean(getattr(run, name) for run in runs) for runs in (self.least, self.most)]
               for name in ("deaths", "back", "redone", "regained")},
            "factor": list(self.factors),
            "checkpoint_every": self.every,
            "damage": asdict(self.damage),
        }  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    machine: Machine
    steps: int
    per_hour: float  # deaths of one stage
    options: Sequence[Option]
    left_out: Mapping[str, str]  # policy -> why
    remarks: Sequence[str] = ()

    @property
    def none(self) -> float:
        """Hours without failures."""
        return self.steps * self.machine.step / HOUR

    @property
    def ordered(self) -> list[Option]:
        """The one that is first at its worst comes first."""
        return sorted(self.options, key=lambda one: (fmean(hours(one.most)), fmean(hours(one.least))))

    def open(self) -> list[Option]:
        """Those that may be before the first."""
        first, *others = self.ordered
        at_worst = hours(first.most)
        return [other for other in others if np.mean(at_worst < hours(other.least)) < SURE]

    def breaks_even(self, other: Option) -> float:
        """Steps that a death may cost another policy for it to be as soon as the first, to first order.

        Whatever that is, it takes as many steps in an hour, and as many of its stages die.
        """
        rival, mine = fmean(hours(self.ordered[0].most)), fmean(hours(other.least))
        died = fmean(run.deaths for run in other.least)
        return other.damage.low + self.steps * (1 - mine / rival) / died if died else math.inf

    def verdict(self) -> tuple[str, str]:
        """A policy, "undecided" or "none", and why in a sentence."""
        first = self.ordered[0]
        best, worst = fmean(hours(first.least)), fmean(hours(first.most))
        limit, draws = f"{MOST:g} times {self.none:,.0f} h", len(first.most)
        if not math.isfinite(best):
            return "none", f"Within {limit} not all runs of any policy are there."
        if not math.isfinite(worst):
            return "undecided", f"{first.policy} takes {best:,.0f} h at best; at worst no policy is there in {limit}."
        taken = f"{first.policy} takes {worst:,.0f} h, {worst / self.none:.2f} times as long as without failures"
        if rivals := self.open():
            return "undecided", f"{taken}. May take fewer: {', '.join(map(self._may, rivals))}."
        where = f"in at least {SURE:.0%} of {draws} draws" if draws > 1 else "with these deaths"
        return first.policy, f"{taken}, and fewer than any other {where}."

    def _may(self, other: Option) -> str:
        rival, mine = fmean(hours(self.ordered[0].most)), fmean(hours(other.least))
        if other.exact or mine > rival:
            return other.policy
        if other.damage.low == other.damage.high:
            return f"{other.policy} (below {other.factors[0] * rival / mine:.2f} times a step's time)"
        return f"{other.policy} (below {self.breaks_even(other):.2g} steps a death)"

    def to_dict(self) -> dict[str, Any]:
        """Everything at full precision, for `--format json`; hours that are infinite were never reached."""
        verdict, reason = self.verdict()
        return {
            "verdict": verdict,
            "reason": reason,
            "steps": self.steps,
            **{f"{name}_seconds": getattr(self.machine, name) for name in ("step", "recovery", "save")},
            "stages": self.machine.stages,
            "deaths_per_hour": self.per_hour * self.machine.stages,
            "draws": len(self.options[0].least),
            "none_hours": self.none,
            "policies": {one.policy: one.to_dict(self.none) for one in self.ordered},
            "left_out": dict(self.left_out),
            "notes": self.notes(),
        }

    def notes(self) -> list[str]:
        """What the numbers rest on."""
        sources = {one.policy: one.damage.source for one in self.options if one.policy not in EXACT}
        by_table = [policy for policy, source in sources.items() if source.startswith(TABLE)]
        found = [*self.remarks]
        if by_table:
            what = "what a death costs is derived from table 2 of arXiv 2506.15461, one run of 6 stages at each rate"
            found.append(f"{', '.join(by_table)}: {what}; --runs takes it from runs of yours")
        if scaled := [policy for policy in by_table if policy in GAPS]:
            found.append(f"{', '.join(scaled)}: and scaled by the gaps that small runs of ours left, eight seeds")
        if by_table and self.machine.stages != STAGES:
            share = f"{STAGES}/{self.machine.stages}"
            found.append(
                f"whether a death in {self.machine.stages} stages costs as much, or {share} of it, is not known"
            )
        low, high = (hourly(chance) * STEP_SECONDS / HOUR for chance in (CHANCES[0], CHANCES[-1]))
        if by_table and not 0.99 * low < self.per_hour * self.machine.step / HOUR < 1.01 * high:
            found.append("the table has 5 to 16 % an hour at 91.3 s a step: beyond them its nearest rate counts")
        found += [f"{policy}: what a death costs is measured, {source}, and taken as it is whatever the stages"
                  for policy, source in sources.items() if policy not in by_table]  # fmt: skip
        found.append(f"all wait {self.machine.save:g} s for a saved state, on which checkpoint hangs: --save-seconds")
        least, most = STANDING["redundant"]
        times = f"{least:.2f} (our toy, where updates are made twice) to {most:.2f} times (that table, passes too)"
        found.append(f"redundant: a step takes {times} as long")
        return found + [f"{policy} is left out: {why}" for policy, why in self.left_out.items()]


def hours(runs: Sequence[Run]) -> Floats:
    return np.array([run.hours for run in runs])


def compare(
    machine: Machine,
    steps: int,
    per_hour: float,
    traces: Iterable[Deaths],
    *,
    every: int | None = None,
    known: Mapping[str, Damage] | None = None,
    remarks: Sequence[str] = (),
) -> Comparison:
    """Every policy of which something is known, with each of these deaths; `known`: damage that was measured.

    `per_hour`: deaths of one stage, by which states are saved as often as is best, or all `every` so many steps.
    """
    known, options = known or {}, []
    left_out: dict[str, str] = {
        policy: why for policy in POLICIES if (why := _impossible(policy, machine.stages, known))
    }
    for policy in [policy for policy in POLICIES if policy not in left_out]:
        factors = STANDING.get(policy, (1.0, 1.0))
        often = every or best_interval(factors[1] * machine.step, machine.save, backs(policy, machine, per_hour), steps)
        damage = known.get(policy) or damage_of(policy, machine.stages, per_hour * machine.step / HOUR)
        options.append(Option(policy, factors, often, damage, [], []))
    for trace in traces:
        looks = _looks(trace, machine, steps)
        for option in options:
            least, most = _runs(looks, option, steps)
            option.least.append(least)
            option.most.append(most)
    return Comparison(machine, steps, per_hour, options, left_out, remarks)


def _looks(trace: Deaths, machine: Machine, steps: int) -> list[Outages]:
    none = steps * machine.step / HOUR
    return [Outages(trace.until(times * none), machine) for times in (FIRST_LOOK, MOST)]


def _runs(looks: Sequence[Outages], option: Option, steps: int) -> tuple[Run, Run]:
    """At the least that it costs and at the most, no longer looked at than it takes."""
    damage, every = option.damage, option.every
    for outages in looks:
        back, save = outages.uncovered(option.policy), outages.machine.save / every
        low, high = (factor * outages.machine.step + save for factor in option.factors)
        least = simulate(outages, back, low, every, damage.low, steps)
        most = least if option.exact else simulate(outages, back, high, every, damage.high, steps)
        if math.isfinite(most.hours):
            break
    return least, most


def _impossible(policy: Recover, stages: int, known: Mapping[str, Damage]) -> str:
    """Why nothing can be said of a policy; empty where something can."""
    if policy == "random" and policy not in known:
        return "what new values cost, embeddings among them, was not measured"
    if policy == "checkfree+" and stages < 4:
        return "it needs four stages"
    if policy in ("checkfree", "copy") and stages < 3:
        return "it has nothing for the ends"
    return ""
