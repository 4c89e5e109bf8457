"""What a search is given, and what it gives back: candidates with their scores, the best first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from rekindle.search.coefficients import Alpha, Sum
from rekindle.search.draw import Draw
from rekindle.search.ledger import Ledger

IDLE = 20  # rounds
SHARE = 0.25  # of a draw, that a race begins with


class Scored(NamedTuple):
    score: float
    alpha: Alpha


@dataclass
class Problem:
    """What is searched, from which `starts`, which are scored beforehand; the budget is for what comes after them."""

    ledger: Ledger
    starts: Sequence[Alpha]
    budget: int
    kind: Sum = "one"
    seed: int = 0
    draw: Draw = Draw("search")
    races: bool = True  # whether candidates are first scored on a share of the draw, where the objective knows draws
    idle: int = field(default=0, init=False)  # rounds that asked for nothing new

    def __post_init__(self) -> None:
        self.ledger.scores(self.starts, self.draw)
        self.begun = self.ledger.spent

    @property
    def shape(self) -> tuple[int, ...]:
        """Of coefficients that are searched; the starts are [K], the same in every group."""
        return self.ledger.store.shape

    @property
    def left(self) -> int:
        """Whole evaluations that may still be made; 0 once a search asks for nothing new."""
        return 0 if self.idle >= IDLE else math.floor(self._left + 1e-9)

    @property
    def _left(self) -> float:
        return self.budget - (self.ledger.spent - self.begun)

    @property
    def started(self) -> list[Scored]:
        """The starts, the best first."""
        return ranked(self._scored(self.starts))

    def scored(self, alphas: Sequence[Alpha]) -> list[Scored]:
        """As many of these as the budget allows, with their scores on the one draw that all share."""
        before = self.ledger.spent
        found = self._scored(alphas[: self.left])
        self.idle = 0 if self.ledger.spent > before else self.idle + 1
        return found

    def raced(self, alphas: Sequence[Alpha]) -> tuple[list[Scored], list[int]]:
        """Those that were scored in full, and the places of all in their order: these first, then by what they were
        scored with before, on a share of the draw's samples: only the best quarter goes on.
        """
        best = max(1, len(alphas) // 4)
        if not (self.races and self.ledger.objective.draws) or SHARE * len(alphas) + best > self._left:
            found = self.scored(alphas)
            return found, sorted(range(len(found)), key=lambda i: found[i].score)
        short = self.ledger.scores(alphas, replace(self.draw, share=SHARE))
        order = sorted(range(len(alphas)), key=lambda i: short[i])
        found = self.scored([alphas[i] for i in order[:best]])
        return found, [order[i] for i in sorted(range(best), key=lambda i: found[i].score)] + order[best:]

    def _scored(self, alphas: Sequence[Alpha]) -> list[Scored]:
        return [Scored(*one) for one in zip(self.ledger.scores(alphas, self.draw), alphas, strict=True)]


def ranked(found: Iterable[Scored]) -> list[Scored]:
    """The best first; of equal ones that which was found first."""
    return sorted(found, key=lambda one: one.score)
