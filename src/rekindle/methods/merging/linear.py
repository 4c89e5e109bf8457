"""Linear: the sum of the tensors, each times its weight.

With weights that sum to 1 it is a point between the models (a "soup"); equal tensors come back bit for bit, and a
source of weight 1 is copied. A language-model loss along the line between two fine-tunes of one parent is often as
low as at its ends, and that between strangers is not: nothing is promised.

Source: Wortsman et al. 2022, "Model soups", arXiv 2203.05482.
"""

from __future__ import annotations

from collections.abc import Sequence

from rekindle.edit import Expr
from rekindle.edit.combine import linear as combination


def linear(xs: Sequence[Expr], weights: Sequence[float]) -> Expr:
    return combination(xs, weights)
