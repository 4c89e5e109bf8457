"""Which run next: the one that most narrows what decides a verdict (c-optimal design).

With V the covariance of a fit's coordinates and c the gradient of the deciding difference, that difference has
variance c' V c. A further run with gradient j and information w lowers it by (c' V j)^2 / (1 / w + j' V j): one line of
Sherman and Morrison for each candidate.

Elfving 1952; Atkinson, Donev and Tobias 2007, "Optimum Experimental Designs", section 10.3.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import product

import numpy as np

from rekindle.config import Count, parse
from rekindle.errors import RekindleError
from rekindle.laws.design import Floats
from rekindle.laws.fit import Fit
from rekindle.laws.intervals import covariance, information
from rekindle.laws.question import Question

BEYOND = 2.0  # candidates reach this factor beyond the table's ranges
_GRID = 7  # values of each variable
_STEP = 1e-5  # of the gradients


@dataclass(frozen=True)
class Next:
    """A run, and the standard error of the deciding difference before and after it, nats per token."""

    way: str
    params: float
    sunk: float
    tokens: float
    before: float
    after: float

    @property
    def sentence(self) -> str:
        sunk = f"D1 {self.sunk:.3g}, " if self.sunk else ""
        return (
            f"A next run: {self.way} at N {self.params:.3g}, {sunk}{self.tokens:.3g} tokens would narrow the "
            f"difference that decides from {self.before:.4f} to {self.after:.4f} nats (standard error)"
        )


def question_of(words: tuple[str, ...]) -> Question:
    """Of "params=1B", "sunk=100B", "tokens=50B"; raises RekindleError."""
    hint = "--next params=1B,sunk=100B,tokens=50B"
    pairs = {name: value for name, equals, value in (word.partition("=") for word in words) if equals}
    if pairs.keys() != {"params", "sunk", "tokens"}:
        raise RekindleError(f"next is {','.join(words)!r}: it needs params, sunk and tokens.", hint=hint)
    try:
        counts = {name: float(parse(value, Count)) for name, value in pairs.items()}
        return Question(counts["params"], counts["sunk"], counts["tokens"])
    except ValueError as error:
        raise RekindleError(f"next is {','.join(words)!r}, but {error}.", hint=hint) from None


def next_run(found: Fit, question: Question) -> Next:
    """The candidate after which the difference of upcycled and from scratch at `question` is known best.

    Where the table has no such two ways, it is the loss of the last of its ways that decides.
    """
    v = covariance(found)
    c = _deciding(found, question)
    way, params, sunk, tokens = _candidates(found)
    gains = np.zeros(len(way))
    for name in found.forms:
        here = way == name
        points = {"params": params[here], "sunk": np.maximum(sunk[here], 1.0), "tokens": tokens[here], **_same(found)}
        j_np, losses = _gradients(found, name, points)
        gains[here] = (j_np @ v @ c) ** 2 / (1 / information(found, losses) + np.einsum("np,pq,nq->n", j_np, v, j_np))
    best, variance = int(gains.argmax()), float(c @ v @ c)
    after = float(np.sqrt(max(variance - gains[best], 0.0)))
    return Next(str(way[best]), float(params[best]), float(sunk[best]), float(tokens[best]), variance**0.5, after)


def _deciding(found: Fit, q: Question) -> Floats:
    """Gradient [p] of what decides."""
    here = {"params": np.array([q.params]), "sunk": np.array([q.sunk]), "tokens": np.array([q.tokens]), **_same(found)}
    ways = [way for way in ("upcycled", "scratch") if way in found.forms]
    first = _gradients(found, ways[0] if ways else list(found.forms)[-1], here)[0][0]
    return first - _gradients(found, ways[1], here)[0][0] if len(ways) == 2 else first


def _candidates(found: Fit) -> tuple[np.ndarray, Floats, Floats, Floats]:
    """Way, N, D1 and D2 of each: a grid over the table's ranges and a factor beyond."""
    rows = []
    for way, form in found.forms.items():
        table = found.table.only(found.table.labels["way"] == way)
        axes = [_axis(table.numbers[v]) if v in form.variables else np.zeros(1) for v in ("params", "sunk", "tokens")]
        rows += [(way, *cell) for cell in product(*axes)]
    ways, params, sunk, tokens = zip(*rows, strict=True)
    return np.array(ways), np.array(params), np.array(sunk), np.array(tokens)


def _axis(column: Floats) -> Floats:
    return np.geomspace(column.min() / BEYOND, column.max() * BEYOND, _GRID)


def _same(found: Fit) -> dict[str, Floats]:
    """What the laws have beside N, D1 and D2: the table's median."""
    rest = {v for form in found.forms.values() for v in form.variables} - {"params", "sunk", "tokens"}
    return {v: np.array([np.median(found.table.numbers[v])]) for v in rest}


def _gradients(found: Fit, way: str, points: dict[str, Floats]) -> tuple[Floats, Floats]:
    """Derivatives [m, p] of the losses by the fit's coordinates, and the losses [m]."""
    steps = _STEP * np.eye(len(found.z))
    up, down = (found.predict(found.z + sign * steps, way, **points) for sign in (1, -1))
    return ((up - down) / (2 * _STEP)).T, found.predict(found.z[None], way, **points)[0]
