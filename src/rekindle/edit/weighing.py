"""What a merge must know of the tensors: the angles between them, and how large the entries of a task vector are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rekindle.edit.expressions import Expr, Reader
from rekindle.edit.measure import STEP, Activations, Measurement
from rekindle.errors import RekindleError
from rekindle.store.window import loops

HALF = 1 << 16  # of a size's 32 bits, whose order is that of the sizes, the upper and the lower 16 are counted apart


class Products(Measurement):
    """The inner products of K tensors with one another, or of their differences to a base, and weights out of them.

    "weights" [K]: what `weights(products_KK)` says.
    """

    __slots__ = ("differences", "given")

    def __init__(self, xs: Sequence[Expr], base: Expr | None = None, given: tuple[float, ...] = ()):
        """`given`: what else the weights depend on."""
        of = (*xs, base) if base is not None else tuple(xs)
        state = f"{[x.label() for x in of]} {base is not None} {given}"
        name = f"{type(self).__name__.lower()}/{of[0].label()}/{hashlib.sha256(state.encode()).hexdigest()[:16]}"
        super().__init__(name, of)
        self.given = given
        self.differences = base is not None

    def weights(self, products_KK: NDArray[np.float64]) -> NDArray[np.float64]:
        raise AssertionError(f"{type(self).__name__} has no weights")

    def find(self, reader: Reader, activations: Activations | None) -> dict[str, NDArray]:
        xs, rows, width = self.of, self.of[0].num_rows, max(1, self.of[0].row_size)
        count = len(xs) - self.differences
        total, step = np.zeros((count, count)), max(1, STEP // 2 // (width * len(xs)))
        for lo in range(0, rows, step):
            hi = min(lo + step, rows)
            blocks = [x.values(lo, hi, reader) for x in xs]
            total += loops().products(blocks[:count], blocks[-1] if self.differences else None)
        _check_finite(total, self.of[0])
        return {"weights": self.weights(total)}


class Sizes(Measurement):
    """Of the task vector x - base: "lo" and "hi", the sizes of its entries of two ranks, 0 being the largest.

    Exact for tensors of 32 bits or fewer; in two passes, whatever the tensor's size.
    """

    __slots__ = ("ranks",)

    def __init__(self, x: Expr, base: Expr, lo: int, hi: int):
        of = (x, base)
        state = f"{[y.label() for y in of]} {lo} {hi}"
        name = f"sizes/{x.label()}/{hashlib.sha256(state.encode()).hexdigest()[:16]}"
        super().__init__(name, of)
        self.ranks = {"lo": lo, "hi": hi}

    @property
    def nbytes(self) -> int:
        return 2 * super().nbytes

    def find(self, reader: Reader, activations: Activations | None) -> dict[str, NDArray]:
        upper = np.zeros(HALF, np.int64)
        for x, base in self._blocks(reader):
            loops().sizes(x, base, upper)
        above = np.cumsum(upper[::-1])[::-1]  # entries whose upper half is this or more
        bins = {key: int(np.flatnonzero(above > rank)[-1]) for key, rank in self.ranks.items()}
        if above[0] and upper[0x7F80:].any():
            raise _not_finite(self.of[0])
        lower = {key: np.zeros(HALF, np.int64) for key in bins}
        for x, base in self._blocks(reader):
            for key, which in bins.items():
                loops().sizes(x, base, lower[key], which)
        found = {}
        for key, rank in self.ranks.items():
            left = rank - (int(above[bins[key] + 1]) if bins[key] + 1 < HALF else 0)
            within = np.cumsum(lower[key][::-1])[::-1]
            exact = (bins[key] << 16) | int(np.flatnonzero(within > left)[-1])
            found[key] = np.asarray(exact, np.uint32).view(np.float32)
        return found

    def _blocks(self, reader: Reader) -> Iterator[tuple[NDArray, NDArray]]:
        x, base = self.of
        step = max(1, STEP // 4 // max(1, x.row_size))  # both fit the cache
        for lo in range(0, x.num_rows, step):
            hi = min(lo + step, x.num_rows)
            yield x.values(lo, hi, reader), base.values(lo, hi, reader)


def _check_finite(total: NDArray, x: Expr) -> None:
    if not np.isfinite(total).all():
        raise _not_finite(x)


def _not_finite(x: Expr) -> RekindleError:
    return RekindleError(
        "A tensor to merge has NaN or infinite values, or differs from its base by such.",
        where=x.label(),
        hint="rekindle inspect SRC --nan names them",
    )
