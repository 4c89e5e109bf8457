"""What a value's row and column foretell of its difference: second moments shrink or grow with those beside them.

A gradient is an outer product, so that its square is large where its row and its column are; what changes a row or a
column changes all of it alike (Shazeer and Stern 2018, "Adafactor", arXiv 1804.04235, section 3).

grid := columns u32, scale u8, a byte i8 for each row, one for each column.   Foretold of the value in row r and column
c: (row[r] + column[c]) * 2^scale, in the order of floats.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from rekindle.codec.bits import Broken, Words, apart, ordered, stored

LEAST = 16  # rows, and columns
REACH = 4  # differences count up to so many times the median one
TELLS = 2.0  # rows differ by so many times what chance would make them, in variance


@dataclass(frozen=True)
class Grid:
    """`rows` [r] and `columns` [c], from -127 to 127, times 2^scale."""

    scale: int
    rows: NDArray[np.int8]
    columns: NDArray[np.int8]

    @property
    def nbytes(self) -> int:
        return 5 + len(self.rows) + len(self.columns)

    def foretell(self, reference: Words, places: NDArray[np.int64] | None = None) -> Words:
        """The floats that are expected where the reference's are: everywhere [r * c], or at some places."""
        rows, columns = (x.astype(np.int64) << self.scale for x in (self.rows, self.columns))
        if places is None:
            moved = (rows[:, None] + columns).reshape(-1)
        else:
            moved = rows[places // len(columns)] + columns[places % len(columns)]
        moved = moved.astype(reference.dtype)
        return stored(ordered(reference, True) + moved, True)

    def to_bytes(self) -> bytes:
        head = struct.pack("<IB", len(self.columns), self.scale)
        return head + self.rows.tobytes() + self.columns.tobytes()


def read_grid(data: memoryview, n: int, like: np.dtype) -> tuple[Grid, memoryview]:
    """The grid of n values, and what follows it; raises Broken."""
    if len(data) < 5:
        raise Broken("its rows and columns are cut off")
    columns, scale = struct.unpack_from("<IB", data)
    if not columns or n % columns or scale > 8 * like.itemsize - 9:
        raise Broken("its rows and columns do not fit")
    end = 5 + n // columns + columns
    if len(data) < end:
        raise Broken("its rows and columns are cut off")
    found = np.frombuffer(data[5:end], np.int8)
    return Grid(scale, found[: n // columns], found[n // columns :]), data[end:]


def columns_of(shape: tuple[int, ...], n: int) -> int:
    """Words in a row of a tensor of n; 0 where it is too small, or no matrix. A convolution's row is a filter."""
    if len(shape) < 2 or not n or math.prod(shape) != n:
        return 0
    columns = shape[-1] if shape[-1] >= LEAST else n // shape[0]
    return columns if columns >= LEAST and n // columns >= LEAST else 0


def find_grid(values: Words, reference: Words, columns: int, bias: int, picked: NDArray[np.int64]) -> Grid | None:
    """The grid of floats' differences less `bias`; None where a sample's rows are hardly more alike than chance has it.

    `picked` [pieces, length] are the places of the sample, each piece a stretch of a row, or of a few.
    """
    sampled = apart(values[picked], reference[picked], True) - bias
    most = REACH * max(int(np.median(np.abs(sampled))), 1)
    sampled = np.clip(sampled, -most, most)
    chance = sampled.var(axis=1).mean() / picked.shape[1]
    if values.size % columns or sampled.mean(axis=1).var() <= TELLS * chance:
        return None
    clipped = np.clip(apart(values, reference, True) - bias, -most, most).reshape(-1, columns)
    scale = (most // 127).bit_length()
    if scale > 8 * values.itemsize - 9:
        return None
    rows = _small(clipped.sum(axis=1) // columns, scale)
    left = clipped.sum(axis=0) - (rows.astype(np.int64).sum() << scale)
    return Grid(scale, rows, _small(left // len(clipped), scale))


def _small(means: NDArray[np.int64], scale: int) -> NDArray[np.int8]:
    return np.clip((means + (1 << scale >> 1)) >> scale, -127, 127).astype(np.int8)
