"""Expressions that choose units: rows or columns in another order, some left out, some again."""

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
        return self.x.gather(index[lo:hi], reader)

    def gather(self, rows: NDArray, reader: Reader) -> NDArray:
        return super().gather(rows, reader) if self.axis else self.x.gather(array(self.index)[rows], reader)

    def moment(self, order: int, of: Moments) -> Expr:
        return Chosen(self.x.moment(order, of), self.index, self.axis, self.shape[0 if self.axis == 0 else -1])
