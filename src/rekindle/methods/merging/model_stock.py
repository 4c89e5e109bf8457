"""Model stock: between the base and the mean of k fine-tunes, as far as their angle says.

    w = t * mean_i w_i + (1 - t) w_0,    t = k cos a / (1 + (k - 1) cos a)

a being the angle between two fine-tunes as seen from the base, tensor by tensor; of more than two the mean of all
pairs' cosines. Fine-tunes that left the base in one direction are taken whole (t = 1), those that have nothing in
common are noise around it (t = 0).

Departures: a mean cosine below 0 counts as 0 (the formula would step back behind the base), and so does that of a
tensor which one of the fine-tunes has left as it was.

Source: Jang et al. 2024, "Model Stock", arXiv 2403.19522: the ratio for two models, and its extension to k.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rekindle.edit import Expr
from rekindle.edit.combine import Linear
from rekindle.edit.weighing import Products


class Stock(Products):
    __slots__ = ()

    def weights(self, products_KK: NDArray[np.float64]) -> NDArray[np.float64]:
        k, t = len(products_KK), ratio(products_KK)
        return np.array([1 - t, *[t / k] * k])


def ratio(products_KK: NDArray[np.float64]) -> float:
    """t, from the inner products of the task vectors."""
    k, norms = len(products_KK), np.sqrt(np.diag(products_KK))
    if not norms.all():
        return 0.0
    cosines_KK = products_KK / np.outer(norms, norms)
    cosine = float(np.clip(cosines_KK[np.triu_indices(k, 1)].mean(), 0, 1))
    return k * cosine / (1 + (k - 1) * cosine)


def model_stock(xs: Sequence[Expr], base: Expr) -> Expr:
    return Linear([base, *xs], Stock(xs, base)["weights"])
