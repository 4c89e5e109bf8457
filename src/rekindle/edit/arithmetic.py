"""Expressions that calculate, in floats rounded once; and copies, which only calculate their moments."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from rekindle.edit.expressions import Expr, Moments, Reader, Span
from rekindle.edit.measure import Number, number
from rekindle.edit.noise import normal_block
from rekindle.errors import RekindleError
from rekindle.store.dtypes import COMPUTED, from_float


class Alike(Expr):
    """The very bytes of another tensor; what differs is the history its optimizer state has."""

    __slots__ = ("x",)
    live = 0

    def __init__(self, x: Expr):
        self.x, self.dtype, self.shape = x, x.dtype, x.shape

    def children(self) -> Sequence[Expr]:
        return (self.x,)

    def spans(self) -> list[Span] | None:
        return self.x.spans()

    def raw(self, lo: int, hi: int, reader: Reader) -> NDArray:
        return self.x.raw(lo, hi, reader)

    def gather(self, rows: NDArray, reader: Reader) -> NDArray:
        return self.x.gather(rows, reader)

    def label(self) -> str:
        return self.x.label()  # the same values: measured once


class Twin(Alike):
    """One of m exact copies whose outputs are averaged: each sees 1/m of the gradient, so m/m and v/m^2."""

    __slots__ = ("of",)

    def __init__(self, x: Expr, of: int):
        super().__init__(x)
        self.of = of

    def moment(self, order: int, of: Moments) -> Expr:
        return Scale(self.x.moment(order, of), 1.0 / self.of**order)

    def transposed(self) -> Expr:
        return Twin(self.x.transposed(), self.of)


class Fresh(Alike):
    """A copy whose output does not count yet: no gradient reaches it, so it starts with empty moments."""

    __slots__ = ()

    def moment(self, order: int, of: Moments) -> Expr:
        return Fill("F32", self.shape, 0.0)

    def transposed(self) -> Expr:
        return Fresh(self.x.transposed())


class Rounded(Alike):
    """What lies on disk between two steps of a recipe, did they go through it: calculations start from it rounded."""

    __slots__ = ()

    def moment(self, order: int, of: Moments) -> Expr:
        return self.x.moment(order, of)

    def transposed(self) -> Expr:
        return Rounded(self.x.transposed())


class Computed(Expr):
    """Calculated in floats and rounded once. Starts with empty moments, as a new tensor does, unless it says more."""

    __slots__ = ()
    live = 3

    def moment(self, order: int, of: Moments) -> Expr:
        return Fill("F32", self.shape, 0.0)

    def raw(self, lo: int, hi: int, reader: Reader) -> NDArray:
        return from_float(self.values(lo, hi, reader), self.dtype)


class Fill(Computed):
    """One value everywhere: zeros, ones; it may be measured."""

    __slots__ = ("value",)

    def __init__(self, dtype: str, shape: tuple[int, ...], value: Number):
        self.dtype, self.shape, self.value = dtype, shape, value

    def values(self, lo: int, hi: int, reader: Reader) -> NDArray:
        return np.full((hi - lo, self.row_size), number(self.value), np.float32)

    def raw(self, lo: int, hi: int, reader: Reader) -> NDArray:
        once = from_float(np.full(1, number(self.value), np.float32), self.dtype)  # rounded once for all
        return np.full((hi - lo, self.row_size), once[0])

    def transposed(self) -> Expr:
        return Fill(self.dtype, self.shape[::-1], self.value)


class Normal(Computed):
    """Gaussian values, a function of (seed, key, position) alone; mean and std may be measured."""

    __slots__ = ("key", "mean", "seed", "std")
    live = 8

    def __init__(self, dtype: str, shape: tuple[int, ...], std: Number, seed: int, key: str, mean: Number = 0.0):
        self.dtype, self.shape, self.std, self.mean, self.seed, self.key = dtype, shape, std, mean, seed, key

    def values(self, lo: int, hi: int, reader: Reader) -> NDArray:
        width = self.row_size
        block = normal_block(self.seed, self.key, lo * width, hi * width)
        block *= number(self.std)
        if mean := number(self.mean):
            block += mean
        return block.reshape(hi - lo, width)


class Sum(Computed):
    """Two tensors added, in float32. Starts with empty moments: its gradients are not its parent's any more."""

    __slots__ = ("x", "y")

    def __init__(self, x: Expr, y: Expr):
        assert x.shape == y.shape, (x.shape, y.shape)
        computable(x)
        self.x, self.y, self.dtype, self.shape = x, y, x.dtype, x.shape

    def children(self) -> Sequence[Expr]:
        return (self.x, self.y)

    def values(self, lo: int, hi: int, reader: Reader) -> NDArray:
        return self.x.values(lo, hi, reader) + self.y.values(lo, hi, reader)

    def transposed(self) -> Expr:
        return Sum(self.x.transposed(), self.y.transposed())


class Scale(Computed):
    """A tensor times a number."""

    __slots__ = ("by", "x")

    def __init__(self, x: Expr, by: float):
        computable(x)
        self.x, self.by, self.dtype, self.shape = x, by, x.dtype, x.shape

    def children(self) -> Sequence[Expr]:
        return (self.x,)

    def values(self, lo: int, hi: int, reader: Reader) -> NDArray:
        return self.x.values(lo, hi, reader) * np.float32(self.by)

    def moment(self, order: int, of: Moments) -> Expr:
        return Scale(self.x.moment(order, of), self.by**-order)

    def transposed(self) -> Expr:
        return Scale(self.x.transposed(), self.by)


class Cast(Computed):
    """The same values in another dtype, rounded once."""

    __slots__ = ("x",)

    def __init__(self, x: Expr, dtype: str):
        computable(x)
        self.x, self.dtype, self.shape = x, dtype, x.shape

    def children(self) -> Sequence[Expr]:
        return (self.x,)

    def values(self, lo: int, hi: int, reader: Reader) -> NDArray:
        return self.x.values(lo, hi, reader)

    def moment(self, order: int, of: Moments) -> Expr:
        return self.x.moment(order, of)

    def transposed(self) -> Expr:
        return Cast(self.x.transposed(), self.dtype)


def is_computable(x: Expr) -> bool:
    """Whether it holds floats to calculate with, not codes or whole numbers."""
    return x.dtype in COMPUTED


def computable(x: Expr) -> None:
    """Refuse arithmetic on codes (fp8, integers): they are copied or not touched."""
    if not is_computable(x):
        name = next((leaf.name for leaf in x.leaves()), None)
        raise RekindleError(
            f"{x.dtype} tensors cannot be calculated with, only copied.", where=name, hint="a bf16 source"
        )
