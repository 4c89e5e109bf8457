"""Expressions that choose units: rows or columns in another order, and some of them replaced."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rekindle.edit.expressions import Expr, Moments, Reader
from rekindle.edit.measure import Array, Found, array


class Chosen(Expr):
    """The rows (axis 0) or columns (axis 1) of a matrix or vector in the order of `index`, repetitions allowed.

    Its moments are chosen the same way: each unit keeps its own.
    """

    __slots__ = ("axis", "index", "x")
    live = 2

    def __init__(self, x: Expr, index: Array, axis: int = 0, count: int | None = None):
        """`count`: how many are chosen, where `index` is not measured yet."""
        self.x, self.index, self.axis = x, index, axis
        n = count if isinstance(index, Found) or count is not None else len(index)
        assert n is not None
        self.dtype = x.dtype
        self.shape = (n, *x.shape[1:]) if axis == 0 else (*x.shape[:-1], n)

    def children(self) -> Sequence[Expr]:
        return (self.x,)

    def raw(self, lo: int, hi: int, reader: Reader) -> NDArray:
        index = array(self.index)
        if self.axis:
            return np.take(self.x.raw(lo, hi, reader), index, axis=1)
        wanted = index[lo:hi]
        runs = np.split(wanted, np.flatnonzero(np.diff(wanted) != 1) + 1)  # neighbours are read together
        return np.concatenate([self.x.raw(int(run[0]), int(run[-1]) + 1, reader) for run in runs])

    def moment(self, order: int, of: Moments) -> Expr:
        return Chosen(self.x.moment(order, of), self.index, self.axis, self.shape[0 if self.axis == 0 else -1])


class Replaced(Expr):
    """A matrix or vector whose rows (axis 0) or columns (axis 1) `at` (ascending) are those of `y`, in order.

    The others keep their moments; the replaced ones have y's.
    """

    __slots__ = ("at", "axis", "x", "y")
    live = 2

    def __init__(self, x: Expr, y: Expr, at: NDArray[np.int64], axis: int = 0):
        assert x.dtype == y.dtype, (x.dtype, y.dtype)
        assert y.shape == ((len(at), *x.shape[1:]) if axis == 0 else (*x.shape[:-1], len(at))), (x.shape, y.shape)
        self.x, self.y, self.at, self.axis = x, y, at, axis
        self.dtype, self.shape = x.dtype, x.shape

    def children(self) -> Sequence[Expr]:
        return (self.x, self.y)

    def raw(self, lo: int, hi: int, reader: Reader) -> NDArray:
        block = np.array(self.x.raw(lo, hi, reader))
        if self.axis:
            block[:, self.at] = self.y.raw(lo, hi, reader)
            return block
        first, last = np.searchsorted(self.at, (lo, hi))
        if first < last:
            block[self.at[first:last] - lo] = self.y.raw(int(first), int(last), reader)
        return block

    def moment(self, order: int, of: Moments) -> Expr:
        return Replaced(self.x.moment(order, of), self.y.moment(order, of), self.at, self.axis)
