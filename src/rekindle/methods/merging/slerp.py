"""SLERP: from one tensor to another along the arc between their directions, t of the way.

    w = sin((1 - t) a) / sin a * w_1 + sin(t a) / sin a * w_2,    cos a = <w_1, w_2> / (|w_1| |w_2|)

Where the two point the same way, or to opposite ones, the arc is a line or none, and the line is taken. At t = 0 and
t = 1 it is that source, byte for byte; equal tensors come back bit for bit.

Departures: the angle is that of the whole tensor; other tools differ in the angle below which they take the line.

Source: Shoemake 1985, "Animating rotation with quaternion curves", SIGGRAPH, section 3.3.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rekindle.edit import Expr
from rekindle.edit.combine import Linear
from rekindle.edit.weighing import Products

STRAIGHT = 1e-4  # radians: below, arc and line differ by less than a float32 can say


class Arc(Products):
    __slots__ = ()

    def weights(self, products_KK: NDArray[np.float64]) -> NDArray[np.float64]:
        return arc(products_KK, *self.given)


def arc(products_22: NDArray[np.float64], t: float) -> NDArray[np.float64]:
    """The weights of the two tensors, from their inner products."""
    norms = np.sqrt(np.diag(products_22))
    cosine = products_22[0, 1] / norms.prod() if norms.all() else 1.0
    angle = float(np.arccos(np.clip(cosine, -1, 1)))
    if min(angle, np.pi - angle) < STRAIGHT:
        return np.array([1 - t, t])
    return np.array([np.sin((1 - t) * angle), np.sin(t * angle)]) / np.sin(angle)


def slerp(xs: Sequence[Expr], t: float) -> Expr:
    return xs[int(t)] if t in (0, 1) else Linear(xs, Arc(xs, given=(t,))["weights"])
