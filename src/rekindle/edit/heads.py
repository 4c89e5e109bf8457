"""Expressions over attention heads: rows (of q, k, v) or columns (of o) in blocks of head_dim."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rekindle.edit.arithmetic import Computed, computable
from rekindle.edit.expressions import BLOCK, Expr, Moments, Reader
from rekindle.edit.joining import joined
from rekindle.edit.measure import Array, Found, array


class Heads(Computed):
    """New heads, each the mean of n old ones, each of those turned by its matrix: scale_J * mean_n(turn_h x_h).

    x is [heads * head_dim, ...] (axis 0) or [..., heads * head_dim] (axis 1: each block of columns times turn_h').
    pick_JN: the n old heads of each of the J new ones. turn_HAA: one matrix for each old head; None: the identity.
    scale_J: None: ones. Starts with empty moments: a mixed head's gradients are not its parents'.
    """

    __slots__ = ("axis", "head_dim", "pick", "scale", "turn", "x")
    live = 5

    def __init__(
        self,
        x: Expr,
        head_dim: int,
        pick_JN: Array,
        *,
        count: int | None = None,
        turn_HAA: Array | None = None,
        scale_J: Array | None = None,
        axis: int = 0,
    ):
        """`count`: J, where `pick_JN` is not measured yet."""
        computable(x)
        self.x, self.head_dim, self.pick = x, head_dim, pick_JN
        self.turn, self.scale, self.axis = turn_HAA, scale_J, axis
        if count is None:
            assert not isinstance(pick_JN, Found), "how many heads there will be must be known before the measurement"
            count = len(pick_JN)
        self.dtype = x.dtype
        self.shape = (count * head_dim, *x.shape[1:]) if axis == 0 else (*x.shape[:-1], count * head_dim)

    def children(self) -> Sequence[Expr]:
        return (self.x,)

    def streams(self) -> bool:
        return False  # rows of a head take all of that head

    def values(self, lo: int, hi: int, reader: Reader) -> NDArray:
        pick_JN = array(self.pick)
        turn = None if self.turn is None else array(self.turn).astype(np.float32)
        scale = np.ones(len(pick_JN)) if self.scale is None else array(self.scale)
        factor = (scale / pick_JN.shape[1]).astype(np.float32)
        if self.axis:
            return self._columns(self.x.values(lo, hi, reader), pick_JN, turn, factor)
        return np.concatenate(
            [self._rows(a, b, pick_JN[j], turn, factor[j], reader) for j, a, b in self._touched(lo, hi)]
        )

    def _touched(self, lo: int, hi: int) -> Iterator[tuple[int, int, int]]:
        """(new head, its first and last row among them) of each that rows lo to hi touch."""
        size = self.head_dim
        for j in range(lo // size, -(-hi // size)):
            yield j, max(lo - j * size, 0), min(hi - j * size, size)

    def _rows(
        self, a: int, b: int, heads: NDArray, turn: NDArray | None, factor: np.float32, reader: Reader
    ) -> NDArray:
        """Rows a to b of one new head; all rows of an old head are needed where it is turned."""
        total: NDArray | None = None
        for h in map(int, heads):
            at = h * self.head_dim
            if turn is None:
                part = self.x.values(at + a, at + b, reader)
            else:
                part = turn[h, a:b] @ self.x.values(at, at + self.head_dim, reader)
            total = part if total is None else total + part
        assert total is not None
        return total if factor == 1 else total * factor

    def _columns(self, x: NDArray, pick_JN: NDArray, turn: NDArray | None, factor: NDArray) -> NDArray:
        size = self.head_dim
        out = np.zeros((len(x), len(pick_JN) * size), np.float32)
        for j, heads in enumerate(pick_JN):
            block = out[:, j * size : (j + 1) * size]
            for h in map(int, heads):
                old = x[:, h * size : (h + 1) * size]
                block += old if turn is None else old @ turn[h].T
            block *= factor[j]
        return out


class Folded(Computed):
    """b + W v: a constant input v folded into the bias b of the next layer. W [D, H], v [H], b [D].

    Keeps b's moments: the function is the same, and so is its gradient with respect to a bias.
    """

    __slots__ = ("b", "v", "w")
    live = 2

    def __init__(self, b: Expr, w: Expr, v: Expr):
        assert b.shape == w.shape[:1], (b.shape, w.shape)
        assert v.shape == w.shape[1:], (v.shape, w.shape)
        for x in (b, w, v):
            computable(x)
        self.b, self.w, self.v, self.dtype, self.shape = b, w, v, b.dtype, b.shape

    def children(self) -> Sequence[Expr]:
        return (self.b, self.w, self.v)

    def streams(self) -> bool:
        return False  # v is read for each block

    def values(self, lo: int, hi: int, reader: Reader) -> NDArray:
        v = self.v.values(0, self.v.num_rows, reader).astype(np.float64)
        step = max(1, BLOCK // self.w.row_size)  # the rows of a bias are few bytes, those of W many
        added = [self.w.values(at, min(at + step, hi), reader) @ v for at in range(lo, hi, step)]
        return (self.b.values(lo, hi, reader) + np.concatenate(added)).astype(np.float32)

    def moment(self, order: int, of: Moments) -> Expr:
        return self.b.moment(order, of)


def picked(x: Expr, head_dim: int, heads: Sequence[int]) -> Expr:
    """Whole heads of x [heads * head_dim, ...], in this order, repetitions allowed: plain copies."""
    return joined([x.rows(h * head_dim, (h + 1) * head_dim) for h in heads])
