"""Loss against tokens of the second stage for every option, with the bands of the law's draws."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from rekindle.laws.decide import Drawn
from rekindle.laws.forms import Floats
from rekindle.laws.law import Law
from rekindle.laws.question import Question

AROUND = 30.0  # the curves reach this factor below and above the tokens asked for
POINTS = 81


@dataclass(frozen=True)
class Curve:
    """An option's loss [m] and the ends of its 90 % band, nats per token."""

    name: str
    title: str
    mid: Floats
    low: Floats
    high: Floats


def curves(law: Law, question: Question) -> tuple[Floats, list[Curve]]:
    """Tokens [m] and a curve for each option that the law has."""
    asked = Drawn(law, question)
    tokens = np.geomspace(question.tokens / AROUND, question.tokens * AROUND, POINTS)
    return tokens, [
        Curve(name, way.title, asked.mid(name, tokens), *asked.band(name, tokens)) for name, way in asked.ways.items()
    ]
