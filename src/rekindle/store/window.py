"""Loops over a window of a tensor's values: in C where they were built, else in numpy, with the same bits from both.

"Floats" are float32, and float64 where values are stored so. What is stored as bfloat16 is its bits, uint16.
Results are NaN in the same places; in bfloat16 that is one NaN, else any.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rekindle.store.native import native

VERSION = 3
LANES = 16  # sums that an inner product is taken in
BLOCK = 1 << 14  # values of a row that are taken at once where rows are many
SUMS = 64  # that an inner product of such a row is taken in
CHUNK = 1 << 16  # values rounded together: fits the cache
CODES = {"F32": 0, "BF16": 1, "F16": 2}  # dtypes that the C loops know

Floats = NDArray[np.floating]


class Numpy:
    """The loops in numpy: what each computes, in the order in which it is rounded."""

    name = "numpy"

    def widen(self, stored: NDArray, dtype: str) -> Floats:
        """Stored values as float32 (float64 stays float64), exactly."""
        if dtype == "BF16":
            return (stored.astype(np.uint32) << 16).view(np.float32)
        return stored if dtype == "F64" else stored.astype(np.float32, copy=False)

    def round(self, values: Floats, dtype: str) -> NDArray:
        """Floats as `dtype`, rounded to nearest, ties to even."""
        with np.errstate(over="ignore", invalid="ignore"):  # infinities and NaN are counted, not warned of
            if dtype != "BF16":
                return values.astype({"F64": np.float64, "F32": np.float32, "F16": np.float16}[dtype], copy=False)
            wide = np.ascontiguousarray(values, dtype=np.float32).reshape(-1)
        out = np.empty(wide.size, np.uint16)
        for lo in range(0, wide.size, CHUNK):
            part, rounded = wide[lo : lo + CHUNK], out[lo : lo + CHUNK]
            bits = part.view(np.uint32)
            above = bits >> 16
            above &= 1
            above += 0x7FFF
            above += bits
            above >>= 16
            rounded[...] = above
            if (nan := np.isnan(part)).any():
                rounded[nan] = 0x7FC0
        return out.reshape(values.shape)

    def not_finite(self, stored: NDArray, dtype: str) -> int:
        """How many stored values are NaN or infinite."""
        if dtype == "BF16":
            return int(np.count_nonzero((stored & 0x7F80) == 0x7F80))
        return int(stored.size - np.count_nonzero(np.isfinite(stored)))

    def add(self, total: Floats, x: NDArray, dtype: str, by: float, first: Floats | None = None) -> None:
        """total -= (first - x) * by, of a stored block, or total += x * by. (What is 0 has the sign of `total`.)"""
        part = self.widen(x, dtype)
        with np.errstate(over="ignore", invalid="ignore"):
            if first is None:
                total += part * part.dtype.type(by)
            else:
                total -= (first - part if by >= 0 else part - first) * part.dtype.type(abs(by))

    def mix(self, total: Floats, rows: Sequence[NDArray], dtype: str, by: Sequence[float]) -> None:
        """total += sum_k rows[k] * by[k], of stored rows, one after the other."""
        with np.errstate(over="ignore", invalid="ignore"):
            for lo in range(0, total.size, BLOCK):
                block = total[lo : lo + BLOCK]
                for row, a in zip(rows, by, strict=True):
                    block += self.widen(row[lo : lo + BLOCK], dtype) * np.float32(a)

    def dots(self, rows: Sequence[NDArray], dtype: str, g: Floats) -> NDArray[np.float64]:
        """Inner products [K] of stored rows with g: float32 within a block, float64 from block to block."""
        out = np.zeros(len(rows))
        with np.errstate(over="ignore", invalid="ignore"):
            for lo in range(0, g.size, BLOCK):
                for k, row in enumerate(rows):
                    terms = self.widen(row[lo : lo + BLOCK], dtype) * g[lo : lo + BLOCK]
                    lanes = np.append(terms, np.zeros(-terms.size % SUMS, np.float32)).reshape(-1, SUMS)
                    sums = np.add.reduce(lanes, axis=0, initial=np.float32(0))
                    out[k] += np.add.accumulate(sums, dtype=np.float64)[-1]
        return out

    def products(self, xs: Sequence[Floats], base: Floats | None = None) -> NDArray[np.float64]:
        """Inner products [K, K] of blocks, or of what they are more than a base, in float64."""
        wide = [x.reshape(-1).astype(np.float64) for x in xs]
        with np.errstate(over="ignore", invalid="ignore"):
            wide = wide if base is None else [x - base.reshape(-1) for x in wide]
            wide = [np.append(x, np.zeros(-x.size % LANES)).reshape(-1, LANES) for x in wide]
            out = np.empty((len(xs), len(xs)))
            for p, x in enumerate(wide):
                for q, y in enumerate(wide[: p + 1]):
                    sums = np.add.reduce(x * y, axis=0, initial=0.0)
                    out[p, q] = out[q, p] = np.add.accumulate(sums)[-1]
        return out

    def sizes(self, x: Floats, base: Floats, counts: NDArray[np.int64], shift: int, above: int | None = None) -> None:
        """Add to `counts` [65536] how often the bits of |x - base| have each 16 of them, from bit `shift` up.

        `above`: of those alone whose bits above these are such.
        """
        with np.errstate(over="ignore", invalid="ignore"):
            size = np.abs(x - base).reshape(-1)
        bits = size.view(np.uint64 if size.itemsize == 8 else np.uint32)
        digits = bits >> bits.dtype.type(shift)
        if above is not None:
            digits = digits[digits >> 16 == above] & 0xFFFF
        counts += np.bincount(digits.astype(np.int64), minlength=counts.size)

    def kept(self, x: Floats, base: Floats, lo: float, hi: float) -> Floats:
        """x where lo <= |x - base| <= hi, base elsewhere."""
        with np.errstate(over="ignore", invalid="ignore"):
            size = np.abs(x - base)
            return np.where((size >= lo) & (size <= hi), x, base)

    def dropped(self, draws: Floats, x: Floats, base: Floats, density: float) -> Floats:
        """base + (x - base) / density where a draw is below `density`, or x not finite; base elsewhere."""
        with np.errstate(over="ignore", invalid="ignore"):
            return np.where((draws < density) | ~np.isfinite(x), base + (x - base) / x.dtype.type(density), base)

    def elected(self, xs: Sequence[Floats], by: Sequence[float], base: Floats) -> Floats:
        """The mean, weighted, of those on the side of base on which most of the mass is; base where there is none.

        The weights are positive. What equals base has the sign of the first, and NaN is kept.
        """
        weights = [base.dtype.type(a) for a in by]
        with np.errstate(over="ignore", invalid="ignore", divide="ignore"):
            side = np.sign(sum((x - base) * a for x, a in zip(xs, weights, strict=True)))
            mean, weight = np.where(xs[0] == base, xs[0], base), np.zeros_like(base)
            mean[np.isnan(side)] = np.nan
            for x, a in zip(xs, weights, strict=True):  # the mean so far moves a / weight of the way to the next
                chosen = (np.sign(x - base) == side) & (side != 0)
                weight = np.where(chosen, weight + a, weight)
                share = a / weight
                mean = np.where(chosen, np.where(share == 1, x, mean - (mean - x) * share), mean)
        return mean


class Native(Numpy):
    """window.c through ctypes, which lets other threads run meanwhile; float64 is left to numpy."""

    name = "C"

    def __init__(self, library: Path):
        self._c = ctypes.CDLL(str(library))
        if self._c.rk_window_version() != VERSION:
            raise OSError(f"{library} is of another version")
        pointer, size, number, real = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int, ctypes.c_float
        for name, result, arguments in (
            ("widen", None, (number, pointer, size, pointer)),
            ("round", None, (number, pointer, size, pointer)),
            ("not_finite", size, (number, pointer, size)),
            ("add", None, (number, pointer, pointer, real, size, pointer)),
            ("mix", None, (number, pointer, pointer, size, size, pointer)),
            ("dots", None, (number, pointer, size, pointer, size, pointer)),
            ("products", None, (pointer, size, pointer, size, pointer)),
            ("sizes", None, (pointer, pointer, size, number, number, pointer)),
            ("kept", None, (pointer, pointer, real, real, size, pointer)),
            ("dropped", None, (pointer, pointer, pointer, real, size, pointer)),
            ("elected", None, (pointer, pointer, size, pointer, size, pointer)),
        ):
            function = getattr(self._c, f"rk_{name}")
            function.restype, function.argtypes = result, arguments

    def widen(self, stored: NDArray, dtype: str) -> Floats:
        if dtype not in ("BF16", "F16") or not _plain(stored):
            return super().widen(stored, dtype)
        out = np.empty(stored.shape, np.float32)
        self._c.rk_widen(CODES[dtype], _at(stored), stored.size, _at(out))
        return out

    def round(self, values: Floats, dtype: str) -> NDArray:
        if dtype not in ("BF16", "F16") or values.dtype != np.float32 or not _plain(values):
            return super().round(values, dtype)
        out = np.empty(values.shape, np.uint16 if dtype == "BF16" else np.float16)
        self._c.rk_round(CODES[dtype], _at(values), values.size, _at(out))
        return out

    def not_finite(self, stored: NDArray, dtype: str) -> int:
        if dtype not in CODES or not _plain(stored):
            return super().not_finite(stored, dtype)
        return self._c.rk_not_finite(CODES[dtype], _at(stored), stored.size)

    def add(self, total: Floats, x: NDArray, dtype: str, by: float, first: Floats | None = None) -> None:
        if dtype not in CODES or not _plain(x) or not _floats(total, *([] if first is None else [first])):
            return super().add(total, x, dtype, by, first)
        start, by = (None, by) if first is None else (_at(first), by + 0.0)  # -0 is 0
        return self._c.rk_add(CODES[dtype], _at(x), start, by, x.size, _at(total))

    def mix(self, total: Floats, rows: Sequence[NDArray], dtype: str, by: Sequence[float]) -> None:
        if dtype not in CODES or not all(map(_plain, rows)) or not _floats(total):
            return super().mix(total, rows, dtype, by)
        weights = np.array(by, np.float32)
        return self._c.rk_mix(CODES[dtype], _table(rows), _at(weights), len(rows), total.size, _at(total))

    def dots(self, rows: Sequence[NDArray], dtype: str, g: Floats) -> NDArray[np.float64]:
        if dtype not in CODES or not all(map(_plain, rows)) or not _floats(g):
            return super().dots(rows, dtype, g)
        out = np.zeros(len(rows))
        self._c.rk_dots(CODES[dtype], _table(rows), len(rows), _at(g), g.size, _at(out))
        return out

    def products(self, xs: Sequence[Floats], base: Floats | None = None) -> NDArray[np.float64]:
        if not _floats(*xs, *([] if base is None else [base])):
            return super().products(xs, base)
        out = np.empty((len(xs), len(xs)))
        self._c.rk_products(_table(xs), len(xs), None if base is None else _at(base), xs[0].size, _at(out))
        return out

    def sizes(self, x: Floats, base: Floats, counts: NDArray[np.int64], shift: int, above: int | None = None) -> None:
        if not _floats(x, base):
            return super().sizes(x, base, counts, shift, above)
        return self._c.rk_sizes(_at(x), _at(base), x.size, shift, -1 if above is None else above, _at(counts))

    def kept(self, x: Floats, base: Floats, lo: float, hi: float) -> Floats:
        if not _floats(x, base):
            return super().kept(x, base, lo, hi)
        out = np.empty(x.shape, np.float32)
        self._c.rk_kept(_at(x), _at(base), lo, hi, x.size, _at(out))
        return out

    def dropped(self, draws: Floats, x: Floats, base: Floats, density: float) -> Floats:
        if not _floats(draws, x, base):
            return super().dropped(draws, x, base, density)
        out = np.empty(x.shape, np.float32)
        self._c.rk_dropped(_at(draws), _at(x), _at(base), density, x.size, _at(out))
        return out

    def elected(self, xs: Sequence[Floats], by: Sequence[float], base: Floats) -> Floats:
        if not _floats(*xs, base):
            return super().elected(xs, by, base)
        out, weights = np.empty(base.shape, np.float32), np.array(by, np.float32)
        self._c.rk_elected(_table(xs), _at(weights), len(xs), _at(base), base.size, _at(out))
        return out


def _plain(block: NDArray) -> bool:
    return block.flags.c_contiguous and block.dtype.isnative


def _floats(*blocks: NDArray) -> bool:
    return all(block.dtype == np.float32 and _plain(block) for block in blocks)


def _at(block: NDArray) -> int:
    return block.ctypes.data


def _table(blocks: Sequence[NDArray]) -> ctypes.Array[ctypes.c_void_p]:
    return (ctypes.c_void_p * len(blocks))(*map(_at, blocks))


@cache
def loops() -> Numpy:
    """The C loops where they were built, else numpy's; REKINDLE_WINDOW=numpy asks for these."""
    return native(Native, Path(__file__).parent / "_window", "REKINDLE_WINDOW") or Numpy()
