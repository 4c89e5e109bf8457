"""The inner loops, in C where it was built and in numpy where not: the same numbers, and the same bytes, from both.

values     unsigned words of 1, 2, 4 or 8 bytes: the bits of whatever they are
symbols    a byte for each value, coded with few bits where they can be foreseen
rest, raw  what a symbol leaves open, kept as it is
contexts   a byte for each value: which table its symbol is coded with
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rekindle.codec import fallback
from rekindle.codec.bits import LANES, Broken, Bytes, Contexts, Words
from rekindle.store.native import native

VERSION = 3


class Kernel(Protocol):
    name: str

    def split(self, values: Words) -> tuple[Bytes, Bytes]:
        """Symbols [n]: sign turned to the bottom, the top byte; and planes [width / 8 - 1, n] below, lowest first."""
        ...

    def join(self, symbols: Bytes, rest: Bytes, like: np.dtype) -> Words:
        """Values from symbols [n] and planes [width / 8 - 1, n]."""
        ...

    def delta(self, values: Words, reference: Words | None, bias: int, real: bool) -> tuple[Bytes, Bytes]:
        """Classes [n] of values - reference - bias, and their raw bits, packed; floats (`real`) in order first."""
        ...

    def undelta(
        self, symbols: Bytes, raw: Bytes, reference: Words | None, bias: int, real: bool, like: np.dtype
    ) -> Words:
        """Values again; raises Broken where there are not just so many raw bits."""
        ...

    def count(self, symbols: Bytes, contexts: Bytes | None, tables: int) -> NDArray[np.uint32]:
        """How often each symbol occurs under each context [tables, 256]."""
        ...

    def encode(self, symbols: Bytes, contexts: Bytes | None, freqs: NDArray[np.uint16]) -> Bytes:
        """Range asymmetric numeral systems by tables [tables, 256] of frequencies that sum to 4096, none of them 0."""
        ...

    def decode(self, data: Bytes, contexts: Bytes | None, freqs: NDArray[np.uint16], n: int) -> Bytes:
        """Symbols [n]; raises Broken where the data are not theirs to the last byte."""
        ...

    def adapt(
        self, symbols: Bytes, contexts: Contexts | None, offsets: Contexts | None, columns: int, bits: int
    ) -> Bytes | None:
        """Symbols below 2^bits by what their contexts have learnt so far; None where that is longer than they are.

        With offsets, symbol + offset is expected where it was to the left and, of rows of `columns` (0: none), above.
        """
        ...

    def unadapt(
        self, data: Bytes, contexts: Contexts | None, offsets: Contexts | None, columns: int, bits: int, n: int
    ) -> Bytes:
        """Symbols [n]; raises Broken where the data are not theirs to the last byte."""
        ...


class Native:
    """inner.c through ctypes, which lets other threads run meanwhile."""

    name = "C"

    def __init__(self, library: Path):
        self._c = ctypes.CDLL(str(library))
        if self._c.rk_version() != VERSION:
            raise OSError(f"{library} is of another version")
        pointer, size, number = ctypes.c_void_p, ctypes.c_int64, ctypes.c_int
        for name, result, arguments in (
            ("split", None, (number, pointer, size, pointer, pointer)),
            ("join", None, (number, pointer, pointer, size, pointer)),
            ("delta", size, (number, number, pointer, pointer, ctypes.c_uint64, size, pointer, pointer)),
            ("undelta", number, (number, number, pointer, pointer, size, pointer, ctypes.c_uint64, size, pointer)),
            ("adapt_encode", size, (pointer, pointer, pointer, size, size, number, number, pointer, size)),
            ("adapt_decode", number, (pointer, size, pointer, pointer, size, size, number, number, pointer)),
            ("count", None, (pointer, pointer, size, pointer)),
            ("rans_encode", size, (pointer, pointer, size, pointer, number, pointer)),
            ("rans_decode", number, (pointer, size, pointer, size, pointer, number, pointer)),
        ):
            function = getattr(self._c, f"rk_{name}")
            function.restype, function.argtypes = result, arguments

    def split(self, values: Words) -> tuple[Bytes, Bytes]:
        symbols = np.empty(values.size, np.uint8)
        rest = np.empty((values.itemsize - 1, values.size), np.uint8)
        self._c.rk_split(8 * values.itemsize, _at(values), values.size, _at(symbols), _at(rest))
        return symbols, rest

    def join(self, symbols: Bytes, rest: Bytes, like: np.dtype) -> Words:
        out = np.empty(symbols.size, like)
        self._c.rk_join(8 * out.itemsize, _at(symbols), _at(rest), out.size, _at(out))
        return out

    def delta(self, values: Words, reference: Words | None, bias: int, real: bool) -> tuple[Bytes, Bytes]:
        symbols, raw = np.empty(values.size, np.uint8), np.empty(values.nbytes + 8, np.uint8)
        bits = self._c.rk_delta(8 * values.itemsize, real, _at(values), _at(reference), bias % 2**64, values.size,
                                _at(symbols), _at(raw))  # fmt: skip
        return symbols, raw[: (bits + 7) // 8]

    def undelta(
        self, symbols: Bytes, raw: Bytes, reference: Words | None, bias: int, real: bool, like: np.dtype
    ) -> Words:
        out = np.empty(symbols.size, like)
        if self._c.rk_undelta(8 * out.itemsize, real, _at(symbols), _at(raw), raw.size, _at(reference), bias % 2**64,
                              out.size, _at(out)):  # fmt: skip
            raise Broken("its raw bits are not those of its classes")
        return out

    def count(self, symbols: Bytes, contexts: Bytes | None, tables: int) -> NDArray[np.uint32]:
        counts = np.zeros((tables, 256), np.uint32)
        self._c.rk_count(_at(symbols), _at(contexts), symbols.size, _at(counts))
        return counts

    def encode(self, symbols: Bytes, contexts: Bytes | None, freqs: NDArray[np.uint16]) -> Bytes:
        room = np.empty(2 * symbols.size + 4 * LANES, np.uint8)
        end = room.ctypes.data + room.size
        nbytes = self._c.rk_rans_encode(_at(symbols), _at(contexts), symbols.size, _at(freqs), len(freqs), end)
        if nbytes < 0:
            raise MemoryError
        return room[room.size - nbytes :]

    def decode(self, data: Bytes, contexts: Bytes | None, freqs: NDArray[np.uint16], n: int) -> Bytes:
        symbols = np.empty(n, np.uint8)
        code = self._c.rk_rans_decode(_at(data), data.size, _at(contexts), n, _at(freqs), len(freqs), _at(symbols))
        if code == -2:
            raise MemoryError
        if code:
            raise Broken("its symbols do not end where its words do")
        return symbols

    def adapt(
        self, symbols: Bytes, contexts: Contexts | None, offsets: Contexts | None, columns: int, bits: int
    ) -> Bytes | None:
        room = np.empty(symbols.size + 64, np.uint8)
        nbytes = self._c.rk_adapt_encode(_at(symbols), _at(contexts), _at(offsets), columns, symbols.size,
                                         _tables(contexts), bits, _at(room), room.size)  # fmt: skip
        if nbytes == -2:
            raise MemoryError
        return None if nbytes < 0 else room[:nbytes]

    def unadapt(
        self, data: Bytes, contexts: Contexts | None, offsets: Contexts | None, columns: int, bits: int, n: int
    ) -> Bytes:
        symbols = np.empty(n, np.uint8)
        code = self._c.rk_adapt_decode(_at(data), data.size, _at(contexts), _at(offsets), columns, n,
                                       _tables(contexts), bits, _at(symbols))  # fmt: skip
        if code == -2:
            raise MemoryError
        if code:
            raise Broken("its symbols do not end where its bytes do")
        return symbols


def _tables(contexts: Contexts | None) -> int:
    return 1 if contexts is None else int(contexts.max(initial=0)) + 1


def _at(array: NDArray[Any] | None) -> int | None:
    return None if array is None else array.ctypes.data


@cache
def kernel() -> Kernel:
    """The C loops where they were built, else numpy's; REKINDLE_CODEC=numpy asks for these."""
    return native(Native, Path(__file__).parent / "_inner", "REKINDLE_CODEC") or fallback.Numpy()
