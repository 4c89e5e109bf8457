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
from rekindle.edit.feedforward import UNIT_AXIS, FeedForward
from rekindle.edit.joining import beside, joined
from rekindle.edit.measure import Statistics
from rekindle.edit.noise import choice, permutation


def partly_new(ffn: FeedForward, ratio: float, indices: str, seed: int, key: str) -> FeedForward:
    """One expert. `indices`: "shared" by gate, up and down, or "independent"."""
    order = permutation(seed, f"{key}/order", ffn.width)
    names = {part: key if indices == "shared" else f"{key}/{part}" for part in ffn.keys() & UNIT_AXIS.keys()}
    sources = {name: _sources(order, ratio, seed, name) for name in set(names.values())}
    new = {
        part: _redrawn(ffn[part], sources[name], UNIT_AXIS[part], seed, f"{key}/{part}") for part, name in names.items()
    }
    return FeedForward(ffn | new)


def _sources(order_F: NDArray, ratio: float, seed: int, key: str) -> NDArray:
    """Where each unit comes from [F]: an old one below F, or new ones, F and above, in the places of rF of them."""
    width = len(order_F)
    new = round(ratio * width)
    sources_F = np.array(order_F)
    sources_F[choice(seed, f"{key}/dropped", width, new)] = width + np.arange(new)
    return sources_F


def _redrawn(x: Expr, sources_F: NDArray, axis: int, seed: int, key: str) -> Expr:
    """The units of x where they come from, the new ones with its mean and standard deviation."""
    computable(x)
    shape = list(x.shape)
    shape[axis] = int((sources_F >= shape[axis]).sum())
    if not shape[axis]:
        return Chosen(x, sources_F, axis)
    statistics = Statistics(x)
    new = Normal(x.dtype, tuple(shape), statistics["std"], seed, f"{key}/new", mean=statistics["mean"])
    return Chosen(beside([x, new]) if axis else joined([x, new]), sources_F, axis)
