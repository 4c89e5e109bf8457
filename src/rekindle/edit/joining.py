"""Tensors put together: one below the other, or side by side. What was taken apart and is put together again
unchanged is a plain copy.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rekindle.edit.arithmetic import Cast
from rekindle.edit.expressions import Columns, Expr, Moments, Reader, Rows, Span
from rekindle.store.dtypes import RAW


class Joined(Expr):
    """Tensors one below the other: a concatenation or a stack along the leading axes."""

    __slots__ = ("parts",)
    live = 1

    def __init__(self, parts: Sequence[Expr], shape: tuple[int, ...]):
        assert len({(part.dtype, part.row_size) for part in parts}) == 1, [p.shape for p in parts]
        assert sum(part.num_rows for part in parts) * parts[0].row_size == math.prod(shape), shape
        self.parts = tuple(parts)
        self.dtype, self.shape = parts[0].dtype, shape

    def children(self) -> Sequence[Expr]:
        return self.parts

    def spans(self) -> list[Span] | None:
        spans: list[Span] = []
        for part in self.parts:
            own = part.spans()
            if own is None:
                return None
            spans += own
        return spans

    def raw(self, lo: int, hi: int, reader: Reader) -> NDArray:
        wide = self.row_size // self.parts[0].row_size  # rows of a part in one of this: vectors make a matrix
        first, last, blocks, start = lo * wide, hi * wide, [], 0
        for part in self.parts:
            stop = start + part.num_rows
            if start < last and stop > first:
                blocks.append(part.raw(max(first, start) - start, min(last, stop) - start, reader))
            start = stop
        return (np.concatenate(blocks) if len(blocks) != 1 else blocks[0]).reshape(hi - lo, self.row_size)

    def gather(self, rows: NDArray, reader: Reader) -> NDArray:
        if self.row_size != self.parts[0].row_size:
            return super().gather(rows, reader)
        out, start = np.empty((len(rows), self.row_size), RAW[self.dtype]), 0
        for part in self.parts:
            stop = start + part.num_rows
            here = np.flatnonzero((rows >= start) & (rows < stop))
            if len(here):
                out[here] = part.gather(rows[here] - start, reader)
            start = stop
        return out

    def moment(self, order: int, of: Moments) -> Expr:
        return joined(_of_one_dtype([part.moment(order, of) for part in self.parts]), self.shape)

    def rows(self, lo: int, hi: int, shape: tuple[int, ...] | None = None) -> Expr:
        if self.row_size != self.parts[0].row_size or len(self.shape) != len(self.parts[0].shape):
            return super().rows(lo, hi, shape)
        found, start = [], 0
        for part in self.parts:
            stop = start + part.num_rows
            if start < hi and stop > lo:
                found.append(part.rows(max(lo, start) - start, min(hi, stop) - start))
            start = stop
        return joined(found, shape)

    def transposed(self) -> Expr:
        if len(self.shape) != 2 or any(len(part.shape) != 2 for part in self.parts):
            return super().transposed()
        return beside([part.transposed() for part in self.parts])


class Beside(Expr):
    """Matrices side by side: a concatenation along the last axis."""

    __slots__ = ("parts",)
    live = 1

    def __init__(self, parts: Sequence[Expr]):
        assert len({(part.dtype, part.shape[:-1]) for part in parts}) == 1, [p.shape for p in parts]
        self.parts = tuple(parts)
        self.dtype, self.shape = parts[0].dtype, (*parts[0].shape[:-1], sum(part.row_size for part in parts))

    def children(self) -> Sequence[Expr]:
        return self.parts

    def raw(self, lo: int, hi: int, reader: Reader) -> NDArray:
        return np.concatenate([part.raw(lo, hi, reader) for part in self.parts], axis=1)

    def moment(self, order: int, of: Moments) -> Expr:
        return beside(_of_one_dtype([part.moment(order, of) for part in self.parts]))

    def transposed(self) -> Expr:
        return joined([part.transposed() for part in self.parts])


def joined(parts: Sequence[Expr], shape: tuple[int, ...] | None = None) -> Expr:
    """Tensors one below the other, in `shape` or as a matrix (or vector).

    Neighbouring rows of one tensor are one run again, and all of its rows the tensor itself: what was taken apart
    and put together unchanged is a plain copy.
    """
    runs: list[Expr] = []
    for piece in (inner for part in parts for inner in _flat(part)):
        last = runs[-1] if runs else None
        if isinstance(last, Rows) and isinstance(piece, Rows) and last.meets(piece):
            runs[-1] = last.x.rows(last.lo, piece.hi)
        else:
            runs.append(piece)
    if shape is None:
        count = sum(run.num_rows for run in runs)
        shape = (count, runs[0].row_size) if len(runs[0].shape) > 1 else (count,)
    return runs[0].rows(0, runs[0].num_rows, shape) if len(runs) == 1 else Joined(runs, shape)


def beside(parts: Sequence[Expr]) -> Expr:
    """Matrices side by side; neighbouring columns of one tensor are one run again."""
    runs: list[Expr] = []
    for part in parts:
        last = runs[-1] if runs else None
        if isinstance(last, Columns) and isinstance(part, Columns) and last.x is part.x and last.hi == part.lo:
            runs[-1] = last.x.columns(last.lo, part.hi)
        else:
            runs.append(part)
    return runs[0] if len(runs) == 1 else Beside(runs)


def _flat(x: Expr) -> Sequence[Expr]:
    return x.parts if isinstance(x, Joined) and x.row_size == x.parts[0].row_size else (x,)


def _of_one_dtype(moments: Sequence[Expr]) -> Sequence[Expr]:
    """Empty moments are float32 whatever the stored ones beside them are: then all are widened to it."""
    alike = len({x.dtype for x in moments}) == 1
    return moments if alike else [x if x.dtype == "F32" else Cast(x, "F32") for x in moments]
