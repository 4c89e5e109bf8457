"""A paper's claim as a difference between two arms, measured over seeds and judged; a page's claims together.

A claim is that an arm ends better than its rival, with a least effect that is worth the name, or that it ends as well,
within a margin. Both are settled in a file before the runs (lab/margins). It is the paper's that the page is about,
another paper's, or the study's own, and a page counts these apart. d is how much better the arm ends, paired by seed,
on average; p is of the test that decides, and Holm's adjustment goes over all claims of a page:

    better    holds: d is above 0            does not hold: d is below the least effect     95 % interval
    alike     holds: d is within the margin  does not hold: d is outside it                 90 % and 95 % interval
              undecided: neither, by adjusted p <= 0.05

Where d is clearly above 0 and clearly below the least effect, the nearer of the two is what it is.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rekindle.errors import RekindleError
from rekindle.lab.margin import Margin, Margins
from rekindle.lab.stats import FEWEST, LEVEL, MOST, Sample, chance_alike, chance_apart, holm, sample, seeds_for

Judgement = Literal["holds", "does not hold", "undecided", "direction only"]
Whose = Literal["paper", "another", "ours"]


@dataclass(frozen=True)
class Metric:
    """What is measured of an arm, and which way is better."""

    name: str
    unit: str
    lower_is_better: bool = True

    def gain(self, arm: float, rival: float) -> float:
        """How much better `arm` is than `rival`."""
        return rival - arm if self.lower_is_better else arm - rival

    def shown(self, value: float) -> str:
        """To a thousandth, or four digits of what is large, with a real minus."""
        return (f"{value:.3f}" if abs(value) < 100 else f"{value:.4g}").replace("-", "−")

    @property
    def axis(self) -> str:
        return f"{self.name}, {self.unit}" if self.unit else self.name

    @property
    def short(self) -> str:
        """The unit of a difference."""
        return self.unit.removesuffix(" per token").removesuffix(" per image")


LOSS = Metric("Validation loss", "nats per token")
Values = Mapping[str, Sequence[float]]  # of an arm, for each seed


@dataclass(frozen=True)
class Claim:
    """`arm` ends better than `rival`, says the paper; or as well, where `alike`. `key` is its row of margins."""

    key: str
    text: str
    paper: str  # what the paper reports, with its units; empty of a claim of ours
    arm: str
    rival: str
    alike: bool = False
    metric: Metric = LOSS
    of: Whose = "paper"  # the one that the page names, another one, or nobody's but ours


@dataclass(frozen=True)
class Finding:
    """`gain`: how much better the arm ended, paired by seed. `p` and `adjusted` are nan where there is no test."""

    claim: Claim
    margin: Margin
    gain: Sample
    p: float = math.nan
    adjusted: float = math.nan
    judgement: Judgement = "direction only"
    decides: int | None = None  # seeds that would decide, of what is undecided; None where a thousand would not

    @property
    def confidence(self) -> float:
        """Of the interval that is shown: the two one-sided tests at 5 % look at 90 %."""
        return 0.90 if self.claim.alike else 0.95

    @property
    def half(self) -> float:
        return self.gain.half(self.confidence)

    @property
    def interval(self) -> tuple[float, float]:
        return self.gain.mean - self.half, self.gain.mean + self.half

    @property
    def shown_p(self) -> str:
        """p after Holm's adjustment; a dash where nothing was tested."""
        return "–" if math.isnan(self.adjusted) else "<0.001" if self.adjusted < 0.001 else f"{self.adjusted:.3f}"

    @property
    def measured(self) -> str:
        """+0.063 ± 0.015 nats: to two digits of the half width, or of the margin."""
        known = self.half if self.half > 0 else self.margin.size / 2
        digits = min(6, max(0, 1 - math.floor(math.log10(known))))
        bars = "" if math.isnan(self.half) else f" ± {self.half:.{digits}f}"
        return f"{self.gain.mean:+.{digits}f}{bars} {self.claim.metric.short}".replace("-", "−").rstrip()


def judge(claims: Sequence[Claim], margins: Margins, values: Mapping[Metric, Values], *, quick: bool) -> list[Finding]:
    """All claims of a page, each compared seed by seed: seeds share the parent, so that their differences vary least.

    A quick run, or one of fewer than five seeds, gives directions only.
    """
    found = [_measure(claim, margins.rows[claim.key], values[claim.metric]) for claim in claims]
    if quick or any(finding.gain.n < FEWEST for finding in found):
        return found
    tests = [_test(finding) for finding in found]
    adjusted = holm([p for p, _ in tests])
    left = sum(p > LEVEL for p in adjusted)  # what Holm asks of the smallest that is left
    judged = []
    for finding, (p, judgement), after in zip(found, tests, adjusted, strict=True):
        if after > LEVEL:
            seeds = deciding(finding.claim, finding.margin, finding.gain, LEVEL / left)
            judged.append(replace(finding, p=p, adjusted=after, judgement="undecided", decides=seeds))
        else:
            judged.append(replace(finding, p=p, adjusted=after, judgement=judgement))
    return judged


def _measure(claim: Claim, margin: Margin, values: Values) -> Finding:
    for arm in (claim.arm, claim.rival):
        for seed, value in enumerate(values[arm]):
            if not math.isfinite(value):
                what = f"{arm} ends at {value} with seed {seed}, so that {claim.text!r} cannot be judged."
                raise RekindleError(what, hint="another learning rate, for all arms")
    pairs = zip(values[claim.arm], values[claim.rival], strict=True)
    return Finding(claim, margin, sample([claim.metric.gain(arm, rival) for arm, rival in pairs]))


def _test(finding: Finding) -> tuple[float, Judgement]:
    """The smaller p of the two outcomes that there can be, and which one it is."""
    d, size = finding.gain, finding.margin.size
    if finding.claim.alike:
        holds, fails = d.within(size), d.beyond(size)
    else:
        holds, fails = min(1.0, 2 * d.above(0.0)), min(1.0, 2 * d.below(size))
    return (holds, "holds") if holds <= fails else (fails, "does not hold")


def deciding(claim: Claim, margin: Margin, seen: Sample, level: float) -> int | None:
    """Seeds that decide in four cases of five at this level, were mean and spread as `seen`; None: over a thousand."""
    size, spread = margin.size, max(seen.spread, 1e-3 * margin.size)
    if not claim.alike:
        apart = max(seen.mean, size - seen.mean)  # from 0 or from the least effect, whichever is farther
        return seeds_for(lambda n: chance_apart(n, spread, apart, level))
    if abs(seen.mean) < size:
        return seeds_for(lambda n: chance_alike(n, spread, seen.mean, size, level))
    return seeds_for(lambda n: chance_apart(n, spread, abs(seen.mean) - size, level))


def planned(claims: Sequence[Claim], margins: Margins) -> int:
    """Seeds of a study: what its claims need by the pilot's spread, each true or null, and five at least.

    At the level that Holm asks of the first of them.
    """
    level, needed = LEVEL / max(1, len(claims)), [FEWEST]
    for claim in claims:
        row = margins.rows[claim.key]
        if row.spread is not None:
            seen = Sample(0.0, row.spread, 2)
            seeds = deciding(claim, row, seen, level)
            if seeds is None:
                what = f"{claim.text!r} would need over {MOST} seeds: {row.size:g} is small beside {row.spread:g}."
                raise RekindleError(what, where=f"{margins.file}: {claim.key}", hint="a larger least effect or margin")
            needed.append(seeds)
    return max(needed)
