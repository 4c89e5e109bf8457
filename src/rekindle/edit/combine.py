"""Expressions over the same tensor of several checkpoints: sums with weights, and what task vectors keep of it.

Where weights sum to 1 a sum is w_1 - sum_{i>1} |a_i| d_i, where d_i is w_1 - w_i, or w_i - w_1 of a negative weight. So
equal tensors give themselves back, bit for bit: d_i is +0, and taking +0 away leaves -0 as it is, which adding it would
not. What is kept of a task vector w_i - w_0 is said as weights too: w_i where an entry is kept, w_0 where it is not.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rekindle.edit.arithmetic import Computed, Fill, computable
from rekindle.edit.expressions import Expr, Moments, Reader
from rekindle.edit.measure import Found, Number, array, number
from rekindle.edit.noise import uniform_block
from rekindle.store.window import loops

ONE = 1e-6  # weights that are given and whose sum is no farther from 1 sum to 1
CALCULATED = 1e-9  # the same of weights that are measured

Weights = tuple[float, ...] | Found  # of K tensors: numbers, or an array [K] that is measured


class Linear(Computed):
    """sum_i a_i w_i, in floats rounded once.

    Adam's moments: sum a_i m_i and sum a_i v_i where the a_i are positive and sum to 1. That is what the moments of an
    average would be if the gradients of all had been the same; else they start empty.
    """

    __slots__ = ("by", "xs")
    live = 2

    def __init__(self, xs: Sequence[Expr], by: Weights):
        alike(xs)
        assert isinstance(by, Found) or len(by) == len(xs), (len(xs), by)
        self.xs, self.by, self.dtype, self.shape = tuple(xs), by, xs[0].dtype, xs[0].shape

    def children(self) -> Sequence[Expr]:
        return self.xs

    def values(self, lo: int, hi: int, reader: Reader) -> NDArray:
        by, near = (array(self.by).tolist(), CALCULATED) if isinstance(self.by, Found) else (self.by, ONE)
        first = self.xs[0].values(lo, hi, reader)
        affine = abs(sum(by) - 1) <= near
        total = first.copy() if affine else first * first.dtype.type(by[0])
        for x, a in zip(self.xs[1:], by[1:], strict=True):
            block, dtype = stored_or_floats(x, lo, hi, reader)
            loops().add(total, block, dtype, a, first if affine else None)
        return total

    def moment(self, order: int, of: Moments) -> Expr:
        if isinstance(self.by, Found) or min(self.by) < 0 or abs(sum(self.by) - 1) > ONE:
            return super().moment(order, of)
        moments = [x.moment(order, of) for x in self.xs]
        return Linear(moments, self.by) if len({x.dtype for x in moments}) == 1 else super().moment(order, of)

    def transposed(self) -> Expr:
        return Linear([x.transposed() for x in self.xs], self.by)


def linear(xs: Sequence[Expr], by: Sequence[float]) -> Expr:
    """sum_i a_i w_i without the tensors whose weight is 0; one with the weight 1 is that tensor itself.

    The largest weight comes first: from there the others are small steps, and Adam's second moments stay positive.
    """
    counted = sorted(((x, a) for x, a in zip(xs, by, strict=True) if a), key=lambda one: -one[1])
    if len(counted) == 1 and counted[0][1] == 1:
        return counted[0][0]
    if not counted:
        return Fill(xs[0].dtype, xs[0].shape, 0.0)
    return Linear([x for x, _ in counted], tuple(a for _, a in counted))


class Kept(Computed):
    """x where lo <= |x - base| <= hi, base elsewhere: entries of a task vector chosen by their size."""

    __slots__ = ("base", "hi", "lo", "x")

    def __init__(self, x: Expr, base: Expr, lo: Number, hi: Number = np.inf):
        alike((x, base))
        self.x, self.base, self.lo, self.hi, self.dtype, self.shape = x, base, lo, hi, x.dtype, x.shape

    def children(self) -> Sequence[Expr]:
        return (self.x, self.base)

    def values(self, lo: int, hi: int, reader: Reader) -> NDArray:
        x, base = self.x.values(lo, hi, reader), self.base.values(lo, hi, reader)
        return loops().kept(x, base, number(self.lo), number(self.hi))

    def transposed(self) -> Expr:
        return Kept(self.x.transposed(), self.base.transposed(), self.lo, self.hi)


class Dropped(Computed):
    """base + (x - base) / density where a draw is below `density`, base elsewhere; a function of (seed, key) alone.

    What is not finite is never dropped: whether a broken source is found does not depend on the seed.
    """

    __slots__ = ("base", "density", "key", "seed", "x")

    def __init__(self, x: Expr, base: Expr, density: float, seed: int, key: str):
        alike((x, base))
        self.x, self.base, self.density, self.seed, self.key = x, base, density, seed, key
        self.dtype, self.shape = x.dtype, x.shape

    def children(self) -> Sequence[Expr]:
        return (self.x, self.base)

    def values(self, lo: int, hi: int, reader: Reader) -> NDArray:
        x, base, width = self.x.values(lo, hi, reader), self.base.values(lo, hi, reader), self.row_size
        draws = uniform_block(self.seed, self.key, lo * width, hi * width).reshape(x.shape)
        return loops().dropped(draws, x, base, self.density)


class Elected(Computed):
    """The mean, weighted, of those w_i whose entry lies to the same side of base as most of the mass does.

    Base where the mass of both sides is the same; w_1 where that is base, but for the sign of a zero. Weights are
    positive.
    """

    __slots__ = ("base", "by", "xs")

    def __init__(self, xs: Sequence[Expr], base: Expr, by: tuple[float, ...]):
        alike((*xs, base))
        assert len(by) == len(xs), (len(xs), by)
        assert min(by) > 0, by
        self.xs, self.base, self.by, self.dtype, self.shape = tuple(xs), base, by, base.dtype, base.shape

    def children(self) -> Sequence[Expr]:
        return (*self.xs, self.base)

    def memory(self) -> int:
        return 3 + sum(x.memory() + 1 for x in self.children())

    def values(self, lo: int, hi: int, reader: Reader) -> NDArray:
        base = self.base.values(lo, hi, reader)
        most = max(self.by)  # the most is 1: its smallest entry has mass
        by = [base.dtype.type(a / most) for a in self.by]
        return loops().elected([x.values(lo, hi, reader) for x in self.xs], by, base)

    def transposed(self) -> Expr:
        return Elected([x.transposed() for x in self.xs], self.base.transposed(), self.by)


def alike(xs: Sequence[Expr]) -> None:
    """Tensors that can be combined."""
    for x in xs:
        computable(x)
    assert len({(x.dtype, x.shape) for x in xs}) == 1, [(x.dtype, x.shape) for x in xs]


def stored_or_floats(x: Expr, lo: int, hi: int, reader: Reader) -> tuple[NDArray, str]:
    """Rows of a tensor to calculate with and their dtype: as they are stored, or floats that were not rounded."""
    if isinstance(x, Computed):
        floats = x.values(lo, hi, reader)
        return floats, "F64" if floats.dtype == np.float64 else "F32"
    return x.raw(lo, hi, reader), x.dtype
