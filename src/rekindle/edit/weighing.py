"""What a merge must know of the tensors: the angles between them, and how large the entries of a task vector are."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Sequence

import numpy as np
from numpy.typing import NDArray

from rekindle.edit.expressions import Expr, Leaf, Reader, Transposed
from rekindle.edit.measure import STEP, Activations, Measurement
from rekindle.errors import RekindleError
from rekindle.store.dtypes import count_not_finite
from rekindle.store.window import loops

DIGIT = 1 << 16  # values of 16 bits: those of a float are counted from the upper ones down
DIGITS = 40  # binary ones that weights are rounded to: machines that add in another order agree on them


class Products(Measurement):
    """The inner products of K tensors with one another, or of their differences to a base, and weights out of them.

    "weights" [K]: what `weights(products_KK)` says.
    """

    __slots__ = ("differences", "given")

    def __init__(self, xs: Sequence[Expr], base: Expr | None = None, given: tuple[float, ...] = ()):
        """`given`: what else the weights depend on."""
        of = as_stored((*xs, base) if base is not None else xs)
        given = tuple(map(float, given))
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
        if not np.isfinite(total).all():
            raise _not_finite(self.of, reader)
        digits, exponent = np.frexp(self.weights(total))
        return {"weights": np.ldexp(np.round(np.ldexp(digits, DIGITS)), exponent - DIGITS)}


class Sizes(Measurement):
    """Of the task vector x - base: "lo" and "hi", the sizes of its entries of two ranks, 0 being the largest.

    Exact, whatever the tensor's size, in a pass for each 16 bits of a value.
    """

    __slots__ = ("ranks",)

    def __init__(self, x: Expr, base: Expr, lo: int, hi: int):
        of = as_stored((x, base))
        state = f"{[y.label() for y in of]} {lo} {hi}"
        name = f"sizes/{of[0].label()}/{hashlib.sha256(state.encode()).hexdigest()[:16]}"
        super().__init__(name, of)
        self.ranks = {"lo": lo, "hi": hi}

    @property
    def nbytes(self) -> int:
        return len(self._shifts) * super().nbytes

    @property
    def _shifts(self) -> tuple[int, ...]:
        return (48, 32, 16, 0) if self.of[0].dtype == "F64" else (16, 0)

    def find(self, reader: Reader, activations: Activations | None) -> dict[str, NDArray]:
        left, known = dict(self.ranks), dict.fromkeys(self.ranks, 0)  # entries to go past; the bits known so far
        wide = self.of[0].dtype == "F64"
        for shift in self._shifts:
            first = shift == self._shifts[0]
            counts = {bits: np.zeros(DIGIT, np.int64) for bits in known.values()}
            for x, base in self._blocks(reader):
                for above, count in counts.items():
                    loops().sizes(x, base, count, shift, None if first else above)
            if first and counts[0][0x7FF0 if wide else 0x7F80 :].any():  # infinities and NaN
                raise _not_finite(self.of, reader)
            for key, above in known.items():
                down = np.append(np.cumsum(counts[above][::-1])[::-1], 0)  # entries with this digit or a larger one
                digit = int(np.flatnonzero(down > left[key])[-1])
                left[key] -= int(down[digit + 1])
                known[key] = above << 16 | digit
        unsigned, dtype = (np.uint64, np.float64) if wide else (np.uint32, np.float32)
        return {key: np.asarray(bits, unsigned).view(dtype) for key, bits in known.items()}

    def _blocks(self, reader: Reader) -> Iterator[tuple[NDArray, NDArray]]:
        x, base = self.of
        step = max(1, STEP // 4 // max(1, x.row_size))  # both fit the cache
        for lo in range(0, x.num_rows, step):
            hi = min(lo + step, x.num_rows)
            yield x.values(lo, hi, reader), base.values(lo, hi, reader)


def as_stored(xs: Sequence[Expr]) -> tuple[Expr, ...]:
    """The tensors to look at: what they are turned from, where all are turned; it has the same entries."""
    turned = [x.x for x in xs if isinstance(x, Transposed)]
    return tuple(turned if len(turned) == len(xs) else xs)


class NotFinite(RekindleError):
    """A tensor to merge has NaN or infinite values; `source`: the key of whose it is."""

    def __init__(self, what: str, leaf: Leaf):
        super().__init__(what, where=leaf.label(), hint="rekindle inspect SRC --nan names them")
        self.source, self.name = leaf.source, leaf.name

    def of(self, given: str) -> RekindleError:
        """The same where the source is called `given`."""
        return RekindleError(self.what, where=f"{self.name} of {given}", hint=f"rekindle inspect {given} --nan")


def _not_finite(xs: Iterable[Expr], reader: Reader) -> NotFinite:
    leaves = [leaf for x in xs for leaf in x.leaves()]
    for leaf in leaves:
        step = max(1, STEP // max(1, leaf.row_size))
        for lo in range(0, leaf.num_rows, step):
            if count_not_finite(leaf.raw(lo, min(lo + step, leaf.num_rows), reader), leaf.dtype):
                return NotFinite("A tensor to merge has NaN or infinite values.", leaf)
    return NotFinite("The values of tensors to merge are too large to be multiplied.", leaves[0])
