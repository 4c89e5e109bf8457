"""The decision: the loss of every option with an interval, where curves cross, and whether upcycling is worth it.

Everything is computed at the law's own numbers and again in each of its draws; an interval is what 90 % of the draws
say. Draws are shared: a difference of two options has the interval of the difference, not of two overlapping bands.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any, Literal

import numpy as np

from rekindle.errors import RekindleError
from rekindle.laws.crossing import MOST, Range, least_for, range_of
from rekindle.laws.forms import Floats
from rekindle.laws.law import Law
from rekindle.laws.options import DRAWS, SOURCE, dense_alone, ends, flops, loss, outside, ways_of
from rekindle.laws.question import Question

Answer = Literal["worth it", "not worth it", "undecided"]
UNKNOWN_FIT = 0.03  # nats: below this a difference is undecided where the fit's own error is not known
BEYOND = (
    "So many tokens are out of the law's reach: its curves cross a second time there, which is an artefact of the form."
)
RIVALS = ("scratch", "dense_flops")  # what the second stage's FLOPs could buy instead


@dataclass(frozen=True)
class Option:
    """Loss in nats per token, with the 90 % interval of the law's draws, and the FLOPs still to be spent."""

    title: str
    loss: float
    low: float
    high: float
    flops: float


@dataclass(frozen=True)
class Difference:
    """Upcycled minus the best of its rivals, nats per token; 90 % of the draws lie between low and high."""

    rival: str
    mid: float
    low: float
    high: float


@dataclass(frozen=True)
class Decision:
    options: dict[str, Option]
    source_loss: float | None  # of the checkpoint as it is, by the law
    difference: Difference | None
    crossing: Range | None  # D*: where a mixture from scratch overtakes the upcycled one, tokens
    regain: Range | None  # tokens until the upcycled model is as good as its source, by the law
    verdict: Answer
    reason: str
    outside: list[str]

    def to_dict(self) -> dict[str, Any]:
        """Plain values at full precision; an infinite crossing is None."""
        return _finite(asdict(self))


def _finite(data: Any) -> Any:
    """With None for what is infinite, which JSON cannot write."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    return None if isinstance(data, float) and not np.isfinite(data) else data


class Drawn:
    """A law asked one question, at its own numbers and in its draws."""

    def __init__(self, law: Law, question: Question):
        self.law, self.question = law, question
        self.ways = ways_of(law)
        self.sample = law.sample(DRAWS)

    def mid(self, name: str, tokens: Any) -> Floats:
        return loss(self.law, self.ways[name], self.question, tokens)

    def drawn(self, name: str, tokens: Any) -> Floats:
        """[draws, tokens]"""
        way = self.ways[name]
        return loss(self.law, way, self.question, tokens, self.sample[way.row])

    def band(self, name: str, tokens: Any) -> tuple[Floats, Floats]:
        return ends(self.drawn(name, tokens))

    def source(self, values: Mapping[str, Any] | None = None) -> Floats:
        """The law's loss of the checkpoint as it is: the dense row at D1."""
        return loss(self.law, SOURCE, self.question, 1.0, values)

    def overtaken(self) -> Range:
        """D*: tokens from which a mixture from scratch is lower than the upcycled one, sunk cost regarded as free."""
        return range_of(
            lambda d2: self.mid("upcycled", d2) - self.mid("scratch", d2),
            lambda d2: self.drawn("upcycled", d2) - self.drawn("scratch", d2),
            least_for(self.question.tokens),
        )

    def regained(self) -> Range:
        """Tokens from which the law puts the upcycled model below its source."""
        source, drawn = self.source(), self.source(self.sample["dense"])
        return range_of(
            lambda d2: source - self.mid("upcycled", d2),
            lambda d2: drawn - self.drawn("upcycled", d2),
            least_for(self.question.tokens),
        )

    def difference(self) -> Difference | None:
        rivals = [name for name in RIVALS if name in self.ways]
        if "upcycled" not in self.ways or not rivals:
            return None
        d2 = self.question.tokens
        best = min(rivals, key=lambda name: float(self.mid(name, d2)))
        with np.errstate(invalid="ignore"):  # infinite less infinite says nothing: it counts against both ends
            apart = self.drawn("upcycled", d2) - np.minimum.reduce([self.drawn(name, d2) for name in rivals])
        low, high = ends(np.nan_to_num(apart, nan=-np.inf))[0], ends(np.nan_to_num(apart, nan=np.inf))[1]
        return Difference(best, float(self.mid("upcycled", d2) - self.mid(best, d2)), float(low), float(high))


def decide(law: Law, question: Question) -> Decision:
    """Answer a question by a law; raises RekindleError where the law has none of the options."""
    asked = Drawn(law, question)
    if not asked.ways:
        what = f"The law {law.name} has none of the rows dense, scratch, upcycled."
        why = f"its rows are {', '.join(law.rows)}"
        raise RekindleError(what, why=why, hint="these names in the column way of the fitted runs, or `rekindle laws`")
    d2, options = question.tokens, {}
    for name, way in asked.ways.items():
        low, high = (float(bound) for bound in asked.band(name, d2))
        options[name] = Option(way.title, float(asked.mid(name, d2)), low, high, flops(way, question))
    source = float(asked.source()) if "dense" in asked.ways else None
    two_curves = {"upcycled", "scratch"} <= asked.ways.keys()
    difference = asked.difference()
    crossing = asked.overtaken() if two_curves else None
    verdict, reason = _verdict(law, options, difference, source)
    far, unknowable = outside(law, question), unknown(law)
    if far and unknowable:
        verdict, reason = "undecided", unknowable
    elif _beyond(d2, options, crossing):
        verdict, reason = "undecided", BEYOND
    return Decision(
        options=options,
        source_loss=source,
        difference=difference,
        crossing=crossing,
        regain=asked.regained() if source is not None and "upcycled" in asked.ways else None,
        verdict=verdict,
        reason=reason,
        outside=far,
    )


def unknown(law: Law) -> str:
    """Why a law fitted to too few runs says nothing outside of them; empty where it may."""
    numbers = ", ".join(law.unknown)
    return f"The law's runs say nothing of {numbers}, and this lies outside of them: more runs." if numbers else ""


def _beyond(tokens: float, options: Mapping[str, Option], crossing: Range | None) -> bool:
    """Whether so many tokens lie where the curves have crossed back, or may have."""
    if crossing is None:
        return tokens > MOST
    return tokens > MOST or (crossing.mid < tokens and options["upcycled"].loss < options["scratch"].loss)


def _verdict(
    law: Law, options: Mapping[str, Option], difference: Difference | None, source: float | None
) -> tuple[Answer, str]:
    """One of three answers, and why in a sentence."""
    if dense_alone(law) and source is not None:
        ends, rival = options["dense"].loss, options["dense_scratch"].loss
        return "undecided", (
            f"The law “{law.name}” knows dense models alone: it puts this one at {source:.3f} now and at {ends:.3f} "
            f"then, {rival - ends:.3f} nats below one from scratch on as many tokens; of upcycling it says nothing."
        )
    if difference is None:
        return "undecided", f"The law {law.name} has no row for upcycled models and a rival."
    upcycled, rival = options["upcycled"].loss, options[difference.rival].title
    if source is not None and upcycled >= source:
        return "undecided", (
            f"The law puts the upcycled model at {upcycled:.3f}, above its source's {source:.3f}, where upcycling "
            "starts: so few tokens are out of its reach."
        )
    apart = f"{abs(difference.mid):.3f} nats {'below' if difference.mid < 0 else 'above'} “{rival}”"
    interval = f"({difference.low:+.3f} to {difference.high:+.3f})"
    if not np.isfinite([difference.low, difference.high]).all():
        return "undecided", f"Upcycled ends {apart}, but the interval of the difference is unbounded: fit more runs."
    if difference.low <= 0 <= difference.high:
        return "undecided", f"Upcycled ends {apart}, and the interval of the difference holds 0 {interval}."
    if not law.fit_error_known and abs(difference.mid) < UNKNOWN_FIT:
        return "undecided", (
            f"Upcycled ends {apart} {interval}: less than {UNKNOWN_FIT} nats, and the fit's error is unknown."
        )
    answer: Answer = "worth it" if difference.mid < 0 else "not worth it"
    return answer, f"Upcycled ends {apart}, the best that the same FLOPs buy otherwise {interval}."
