"""Weeks of a pipeline whose stages die, from outage to outage.

An outage begins with a death and ends `recovery` seconds after the last one that fell into it; stages that die in it
are lost together. Between outages whole steps are taken; the one that is cut off is begun again. Then, where a stage

    is made of others           that costs `damage` steps of progress, and nobody goes back
    has nobody to be made of    all go back to the state that was saved last; what deaths have cost since comes back

Who can be made of whom is what `remedies` says, which the live pipeline asks too. A run has arrived when its steps,
less those that deaths have cost, are as many as are asked for.

Not here: supervisors and storage that die, machines that take several stages with them, and new ones that are slower.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cache, cached_property

import numpy as np
from numpy.typing import NDArray

from rekindle.recovery.failures import Deaths, Floats, Ints
from rekindle.recovery.policies import Uncovered, remedies
from rekindle.train.config import Recover

HOUR = 3600.0


@dataclass(frozen=True)
class Machine:
    """How many stages there are, and the seconds of a step, of a recovery, and that all wait for a saved state."""

    stages: int
    step: float
    recovery: float
    save: float


@dataclass(frozen=True)
class Run:
    """What became of a run: infinite `hours` where it did not arrive. The rest counts until then, or to the end."""

    hours: float
    deaths: int
    back: int  # times that all went back to a saved state
    redone: float  # steps that they took again for that
    regained: float  # steps' worth of progress that deaths have cost


@dataclass(frozen=True)
class Outages:
    """Deaths, those of one recovery taken together."""

    deaths: Deaths
    machine: Machine

    @cached_property
    def first(self) -> Ints:
        """Of each outage, the place of its first death."""
        return np.flatnonzero(np.diff(self.deaths.hour, prepend=-math.inf) > self.machine.recovery / HOUR)

    @cached_property
    def begins(self) -> Floats:
        return self.deaths.hour[self.first]

    @cached_property
    def last(self) -> Floats:
        """When the last stage of each died, hours."""
        return self.deaths.hour[np.append(self.first, len(self.deaths.hour))[1:] - 1]

    @cached_property
    def up(self) -> Floats:
        """From when on steps are taken, hours: at first, and after each outage."""
        return np.append(0.0, self.last + self.machine.recovery / HOUR)

    @cached_property
    def running(self) -> Floats:
        """For how long, hours."""
        return np.maximum(np.append(self.begins, self.deaths.end) - self.up, 0.0)

    @cached_property
    def lost(self) -> tuple[Ints, Ints]:
        """(outage, stage) of all that were lost: once, also where its successor died in the same outage."""
        which = np.repeat(np.arange(len(self.first)), np.diff(np.append(self.first, len(self.deaths.hour))))
        return np.divmod(np.unique(which * self.machine.stages + self.deaths.stage), self.machine.stages)

    @cached_property
    def axis(self) -> tuple[float, Floats]:
        """All deaths on one axis, those of each stage `span` hours behind those of the stage before it."""
        span = 2 * float(np.max(self.deaths.hour, initial=0.0)) + 1
        return span, np.append(-math.inf, np.sort(self.deaths.stage * span + self.deaths.hour))

    def uncovered(self, policy: Recover) -> NDArray[np.bool_]:
        """The outages after which all go back: a lost stage has nobody to be made of, or died with them."""
        if policy == "checkpoint":
            return np.ones(len(self.first), bool)
        (outage, stage), (span, axis) = self.lost, self.axis
        sources = sources_of(policy, self.machine.stages)
        gone = np.array([one is None for one in sources])[stage]
        for place in range(max(len(one or ()) for one in sources)):
            other = np.array([one[place] if one and place < len(one) else -1 for one in sources])[stage]
            died = axis[np.searchsorted(axis, other * span + self.last[outage], "right") - 1]  # the last time
            gone |= (other >= 0) & (died >= other * span + self.begins[outage])
        return np.bincount(outage, gone, len(self.first)) > 0


@cache
def sources_of(policy: Recover, stages: int) -> tuple[tuple[int, ...] | None, ...]:
    """Of each stage that is lost alone, whom it is made of; None where there is nobody."""
    found: list[tuple[int, ...] | None] = []
    for stage in range(stages):
        try:
            remedy = remedies(policy, [stage], stages, [1.0] * stages, 1.0)[stage]
            found.append(tuple(source for source, _ in remedy.sources))
        except Uncovered:
            found.append(None)
    return tuple(found)


def backs(policy: Recover, machine: Machine, per_hour: float) -> float:
    """How often an hour all go back, to first order in deaths that meet; `per_hour`: deaths of one stage."""
    together = 2 * machine.recovery / HOUR  # one dies before the other, or after it
    meets = [1.0 if one is None else len(one) * per_hour * together for one in sources_of(policy, machine.stages)]
    return per_hour * sum(min(1.0, share) for share in meets)


def best_interval(step: float, save: float, per_hour: float, steps: int) -> int:
    """Steps of so many seconds between saved states that cost the least where all go back `per_hour` times.

    Source: Daly 2006, "A higher order estimate of the optimum checkpoint interval for restart dumps", FGCS 22: the
    expected time M e^(R/M) (e^((t + d) / M) - 1) / t is least at t = M (1 + W(-e^(-1 - d / M))), of mean time M between
    failures, restart R, save d. A tenth of the run at most, as `train` saves by default.

    >>> best_interval(91.3, 30.0, 2.53, 10_000)
    3
    """
    from scipy.special import lambertw

    if per_hour == 0:
        return max(1, steps // 10)
    mean = HOUR / per_hour
    cost = max(save / mean, 1e-9)  # W has a branch point at 0
    seconds = mean * (1 + float(lambertw(-math.exp(-1 - cost)).real))
    return min(max(1, round(seconds / step)), max(1, steps // 10))


def simulate(outages: Outages, back: NDArray[np.bool_], step: float, every: int, damage: float, steps: float) -> Run:
    """A run to so many `steps`' worth of progress, in which all go back after the outages `back`.

    `step`: seconds of one, its share of the saving that comes `every` so many included; `damage`: steps of progress
    that each lost stage costs which is made of others.
    """
    taken = np.floor(outages.running * HOUR / step * (1 + 1e-12))  # whole ones, whatever the last bit says
    done = np.append(0.0, np.cumsum(taken))  # before and after each time of running, what went for nothing included
    harm = damage * np.bincount(outages.lost[0], minlength=len(back)) * ~back
    harmed = np.append(0.0, np.cumsum(harm))  # before and after each outage
    at = np.flatnonzero(back)
    begun = np.append(0, at + 1)[:-1]  # the first outage since all went back before
    saved = done[begun] + (done[at + 1] - done[begun]) // every * every
    before_save = np.maximum(np.searchsorted(done[1:-1], saved), begun)  # outages whose cost was saved too
    redone, healed = np.zeros(len(taken)), np.zeros(len(taken))
    redone[at + 1] = done[at + 1] - saved
    healed[at + 1] = harmed[at] - harmed[before_save]
    redone, behind = np.cumsum(redone), harmed - np.cumsum(healed)
    progress = done[:-1] - redone - behind  # at the beginning of each time of running
    arrived = progress + taken >= steps
    i = int(np.argmax(arrived)) if arrived.any() else len(taken) - 1
    hours = outages.up[i] + (steps - progress[i]) * step / HOUR if arrived.any() else math.inf
    died = int(np.searchsorted(outages.deaths.hour, min(hours, outages.deaths.end)))
    return Run(float(hours), died, int(back[:i].sum()), float(redone[i]), float(behind[i]))
