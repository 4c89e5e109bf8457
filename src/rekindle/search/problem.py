"""What a search is given, and what it gives back: candidates with their scores, the best first."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple

from rekindle.search.coefficients import Alpha, Sum
from rekindle.search.draw import Draw
from rekindle.search.ledger import Ledger


class Scored(NamedTuple):
    score: float
    alpha: Alpha


@dataclass
class Problem:
    """`starts` are scored within the budget; what is left of that is never below 0."""

    ledger: Ledger
    starts: Sequence[Alpha]
    budget: int
    kind: Sum = "one"
    seed: int = 0
    draw: Draw = Draw("search")
    begun: float = field(init=False)

    def __post_init__(self) -> None:
        self.begun = self.ledger.spent

    @property
    def left(self) -> int:
        """Whole evaluations that may still be made."""
        return math.floor(self.budget - (self.ledger.spent - self.begun) + 1e-9)

    def scored(self, alphas: Sequence[Alpha]) -> list[Scored]:
        """As many of these as the budget allows, with their scores on the one draw that all share."""
        alphas = alphas[: self.left]
        return [Scored(*one) for one in zip(self.ledger.scores(alphas, self.draw), alphas, strict=True)]


def ranked(found: Iterable[Scored]) -> list[Scored]:
    """The best first; of equal ones that which was found first."""
    return sorted(found, key=lambda one: one.score)
