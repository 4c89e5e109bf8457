"""How far a death throws training back: steps of progress that are lost with each stage that is made of others.

Nothing is lost by `redundant`, and nothing but steps that are done again by `checkpoint`. Of the others it is
known within ends, `low` and `high`, and each number has its source:

checkfree, checkfree+   the paper's table 2, see `TABLE_2`
shadow, copy            the same, times the ratio of gaps in our own small runs, see `GAPS` and `lab checkfree`
any of them             runs of your own, see `measured`
random                  nothing: the paper's and our runs spare the ends, whose embeddings would be new

A stage of a pipeline of S is one S-th of the model. Table 2 has six stages. Whether a death among S of them costs as
much as there, or 6/S of it, nobody has measured: these are two of the ends.

Source: "All is Not Lost: LLM Recovery without Checkpoints", arXiv 2506.15461, section 5.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from rekindle.errors import counted
from rekindle.recovery.failures import hourly
from rekindle.train.config import Recover

CHANCES = (0.05, 0.10, 0.16)  # an hour, of table 2
STAGES = 6  # of the 500M model
STEP_SECONDS = 91.3
STEPS = 10_000.0  # that it takes to a loss of 2.85 without failures: 419.6 h of redundant steps of 151.04 s
# Hours to that loss and seconds of a step, at each chance
TABLE_2: Mapping[str, tuple[tuple[float, float], ...]] = {
    "checkfree": ((367.8, 91.32), (405.9, 91.32), (563.0, 92.12)),
    "checkfree+": ((355.1, 91.32), (367.8, 91.32), (460.6, 92.12)),
}
# How many of six stages died in it: CheckFree has nothing for its ends, but in the authors' later code they die too
DYING: Mapping[str, tuple[int, int]] = {"checkfree": (6, 4), "checkfree+": (6, 6)}
# Gap to no failures over that of checkfree, least and greatest of eight seeds, shadows sent every 10 steps: five of
# `lab checkfree` (shadows -0.19, counted as 0, to 0.41; copies 1.5 to 4.4), and three of 5 stages of 2 layers of width
# 32, of which the inner three died some 20 times in 600 steps (0 to 0.4; 1.0 to 1.48)
GAPS: Mapping[str, tuple[float, float]] = {"shadow": (0.0, 0.41), "copy": (1.0, 4.4)}
TABLE = "table 2"
EXACT = ("redundant", "checkpoint")


@dataclass(frozen=True)
class Damage:
    """Steps of progress that a stage's death costs, between `low` and `high`, and where that is known from."""

    low: float
    high: float
    source: str


def damage_of(policy: Recover, stages: int, per_step: float) -> Damage:
    """As published or measured by us; `per_step`: deaths of one stage in a step.

    Outside of the table's three rates the nearest one's holds. Raises KeyError for a policy of which nothing is known.

    >>> found = damage_of("checkfree", 24, hourly(0.1) * 91.32 / 3600)
    >>> round(found.low, 1), round(found.high, 1), found.source
    (5.8, 35.1, 'table 2')
    """
    if policy in EXACT:
        return Damage(0.0, 0.0, "exact")
    if policy in TABLE_2:
        low, high = (_by_table(policy, dying, per_step) for dying in DYING[policy])
        share = STAGES / stages
        return Damage(low * min(1.0, share), high * max(1.0, share), TABLE)
    least, most = GAPS[policy]
    of_averages = damage_of("checkfree", stages, per_step)
    return Damage(least * of_averages.low, most * of_averages.high, f"{TABLE} and our gaps")


def _by_table(policy: str, dying: int, per_step: float) -> float:
    """Steps that the paper's run took more, over the deaths that it must have seen."""
    rates, lost = [], []
    for chance, (hours, seconds) in zip(CHANCES, TABLE_2[policy], strict=True):
        rates.append(hourly(chance) * seconds / 3600)
        lost.append((hours * 3600 / seconds - STEPS) / (dying * hourly(chance) * hours))
    return float(np.interp(np.log(per_step), np.log(rates), lost))


Curve = Sequence[tuple[int, float]]  # validation loss after so many steps, in their order


def measured(none: Curve, runs: Sequence[tuple[Curve, Sequence[int]]]) -> Damage:
    """From real runs: how many steps those with deaths are behind `none`, which had none, over how many died.

    Each run comes with the steps at which its stages died. Every evaluation of its second half says one number; low and
    high are the least and the greatest, and none is below 0. Raises ValueError where nobody died before the last.

    >>> found = measured([(0, 4.0), (100, 2.0)], [([(0, 4.0), (50, 3.4), (100, 2.2)], [10, 20])])
    >>> round(found.low, 6), round(found.high, 6), found.source
    (5.0, 10.0, '2 deaths of 1 run')
    """
    steps, losses = (np.array(column, float) for column in zip(*none, strict=True))
    reached = np.minimum.accumulate(losses)  # a loss counts as reached when it first was
    found: list[float] = []
    for curve, deaths in runs:
        for step, loss in curve[len(curve) // 2 :]:
            if died := sum(death < step for death in deaths):
                equal = float(np.interp(-loss, -reached, steps))
                found.append(max(0.0, step - equal) / died)
    if not found:
        raise ValueError("no stage died before the last evaluation")
    died = sum(len(deaths) for _, deaths in runs)
    return Damage(min(found), max(found), f"{counted(died, 'death')} of {counted(len(runs), 'run')}")
