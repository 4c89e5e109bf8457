"""Drop-Upcycling: each expert is the feed-forward with some of its hidden units drawn anew, others in each expert.

An expert takes the F units in an order of its own; then rF of them are drawn from a normal distribution with the mean
and standard deviation of the tensor they belong to. The kept units are the parent's bits.

Preserves the parent's function exactly for r = 0 (the order of hidden units does not matter); any other r is lossy.

Departures from the paper's code, with reasons:
- one set of units for gate, up and down, as the text of the paper has it; its code draws a set for each, which at
  r = 1/2 leaves one unit in eight whole instead of one in two: `independent` does that;
- mean and standard deviation of the whole tensor, not of the units that go: they differ by about one part in a
  thousand (a random half of millions of values), and each tensor is measured once instead of once per expert.

Source: Nakamura et al. 2025, "Drop-Upcycling: Training Sparse Mixture of Experts with Partial Re-initialization",
arXiv 2502.19261.

F hidden units   r share of them drawn anew
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rekindle.edit import Expr, Normal
from rekindle.edit.arithmetic import computable
from rekindle.edit.choose import Chosen
from rekindle.edit.expressions import beside, joined
from rekindle.edit.feedforward import UNIT_AXIS, FeedForward
from rekindle.edit.measure import Statistics
from rekindle.edit.noise import choice, permutation


def partly_new(ffn: FeedForward, ratio: float, indices: str, seed: int, key: str) -> FeedForward:
    """One expert. `indices`: "shared" by gate, up and down, or "independent"."""
    order = permutation(seed, f"{key}/order", ffn.width)
    expert, new = FeedForward(ffn), round(ratio * ffn.width)
    for part in ffn.keys() & UNIT_AXIS.keys():
        own = f"{key}/{part}"
        at = choice(seed, f"{key if indices == 'shared' else own}/dropped", ffn.width, new)
        expert[part] = _redrawn(ffn[part], order, at, UNIT_AXIS[part], seed, own)
    return expert


def _redrawn(x: Expr, order: NDArray, at: NDArray, axis: int, seed: int, key: str) -> Expr:
    """The units of x in this order, those that come to stand `at` these places drawn anew."""
    computable(x)
    if not len(at):
        return Chosen(x, order, axis)
    statistics, cut = Statistics(x), list(x.shape)
    cut[axis] = len(at)
    drawn = Normal(x.dtype, tuple(cut), statistics["std"], seed, f"{key}/new", mean=statistics["mean"])
    source = np.array(order)
    source[at] = len(order) + np.arange(len(at))
    return Chosen(beside([x, drawn]) if axis else joined([x, drawn]), source, axis)
