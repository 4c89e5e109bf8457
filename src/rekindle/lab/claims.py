"""A paper's claim as a difference between two arms, measured over seeds and judged."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import mean, stdev
from typing import Literal

Judgement = Literal["reproduces", "does not reproduce", "undecided", "direction only"]


@dataclass(frozen=True)
class Interval:
    """Mean and half width of its 95 % interval over seeds; the half width is nan for one seed."""

    mean: float
    half: float
    seeds: int

    def __str__(self) -> str:
        return f"{self.mean:.3f}" if math.isnan(self.half) else f"{self.mean:.3f} ± {self.half:.3f}"


def interval(values: Sequence[float]) -> Interval:
    """Student's interval of the mean of independent values."""
    from scipy.special import stdtrit

    n = len(values)
    if n < 2:
        return Interval(values[0], math.nan, n)
    t = float(stdtrit(n - 1, 0.975))
    return Interval(mean(values), t * stdev(values) / math.sqrt(n), n)


@dataclass(frozen=True)
class Claim:
    """`low` ends below `high`, says the paper; or both alike, within `alike` nats where that is given."""

    text: str
    paper: str  # what the paper reports, with its units
    low: str
    high: str
    alike: float = 0.0


@dataclass(frozen=True)
class Finding:
    claim: Claim
    difference: Interval  # loss of `high` minus loss of `low`, nats per token, paired by seed
    judgement: Judgement

    @property
    def measured(self) -> str:
        d, digits = self.difference, 4 if 0 < self.claim.alike < 0.01 else 3
        sign = f"{d.mean:+.{digits}f}" + ("" if math.isnan(d.half) else f" ± {d.half:.{digits}f}")
        return f"{sign} nats"


def judge(claim: Claim, losses: Mapping[str, Sequence[float]]) -> Finding:
    """Compare two arms seed by seed: the seeds share the parent, so their differences are what varies."""
    pairs = zip(losses[claim.low], losses[claim.high], strict=True)
    difference = interval([high - low for low, high in pairs])
    return Finding(claim, difference, _judged(claim, difference))


def _judged(claim: Claim, d: Interval) -> Judgement:
    if math.isnan(d.half):
        return "direction only"
    if claim.alike:
        if abs(d.mean) + d.half <= claim.alike:
            return "reproduces"
        return "does not reproduce" if abs(d.mean) - d.half > claim.alike else "undecided"
    if d.mean - d.half > 0:
        return "reproduces"
    return "does not reproduce" if d.mean + d.half < 0 else "undecided"
