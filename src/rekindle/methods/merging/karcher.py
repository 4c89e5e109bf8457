"""Karcher mean: the middle of several tensors on the sphere of directions, at the mean of their lengths.

The point whose weighted squared angles to all directions are least: the mean of the tangents at it is zero. It lies in
the span of the tensors, so all of the iteration is over their inner products, K numbers at a time, and the result is
one sum with weights. Equal tensors come back bit for bit; two of one length are SLERP halfway.

Departures: lengths are averaged apart. Where two directions are opposite, or a tensor is all zeros, there is no such
point, and the line is taken.

Source: Karcher 1977, "Riemannian center of mass and mollifier smoothing", CPAM 30; on the sphere Buss and Fillmore
2001, ACM Trans. Graphics 20(2), algorithm A1.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rekindle.edit import Expr
from rekindle.edit.combine import Linear
from rekindle.edit.weighing import Products

STEPS, CLOSE = 200, 1e-12
OPPOSITE = 1e-6  # radians: as near to opposite, a direction has no one way to it


class Middle(Products):
    __slots__ = ()

    def weights(self, products_KK: NDArray[np.float64]) -> NDArray[np.float64]:
        return middle(products_KK, np.array(self.given))


def middle(products_KK: NDArray[np.float64], by_K: NDArray[np.float64]) -> NDArray[np.float64]:
    """Weights of the tensors whose sum is the mean direction times the mean length."""
    norms = np.sqrt(np.diag(products_KK))
    if not norms.all():
        return by_K
    cosines_KK = products_KK / np.outer(norms, norms)  # of unit vectors u_i; a point p is a sum c_i u_i
    if np.allclose(cosines_KK, 1, rtol=0, atol=1e-9):
        return by_K  # one direction
    squared = by_K @ cosines_KK @ by_K
    if squared < OPPOSITE**2:
        return by_K
    c_K = by_K / np.sqrt(squared)
    for _ in range(STEPS):
        cosine_K = np.clip(cosines_KK @ c_K, -1, 1)
        angle_K = np.arccos(cosine_K)
        if angle_K.max() > np.pi - OPPOSITE:
            return by_K
        stretch_K = angle_K / np.where(angle_K > 0, np.sin(angle_K), 1.0) + (angle_K == 0)
        tangent_K = by_K * stretch_K - (by_K * stretch_K) @ cosine_K * c_K  # sum_i a_i log_p(u_i)
        length = float(np.sqrt(max(0.0, tangent_K @ cosines_KK @ tangent_K)))
        if length < CLOSE:
            break
        c_K = np.cos(length) * c_K + np.sin(length) / length * tangent_K
        c_K /= np.sqrt(c_K @ cosines_KK @ c_K)
    return c_K / norms * (by_K @ norms)


def karcher(xs: Sequence[Expr], weights: Sequence[float]) -> Expr:
    counted = [(x, a) for x, a in zip(xs, weights, strict=True) if a]
    if len(counted) == 1:
        return counted[0][0]
    xs = [x for x, _ in counted]
    return Linear(xs, Middle(xs, given=tuple(a for _, a in counted))["weights"])
