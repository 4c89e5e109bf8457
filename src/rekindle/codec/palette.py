"""Blocks of float32 values of which each is one of a few, or the reference's and one of a few added to it.

body := context u8, from u8 (0: nothing, 1: the reference), the number of values u8 and these, float32 in order, the
columns u32 (0: none), the length u32 of the coded symbols, and these: coded adaptively, a value's place among the few.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from rekindle.codec.bits import Broken, Bytes, Contexts, Words
from rekindle.codec.block import Block, Context
from rekindle.codec.kernel import Kernel

MOST = 64  # values
Floats = NDArray[np.float32]


def encode(kernel: Kernel, block: Block) -> Iterator[bytes]:
    """The block in each context, where it is what its palette says; else nothing."""
    if block.palette is None or block.values.itemsize != 4 or not 0 < len(block.palette) < MOST:
        return
    palette = np.unique(np.append(block.palette, np.float32(0)))
    for origin in (0, 1) if block.reference is not None else (0,):
        symbols = _symbols(block, palette, origin)
        if symbols is None:
            continue
        for context in Context:
            if context == Context.NONE or block.context(context) is not None:
                coded = kernel.adapt(symbols, *_contexts(block, palette, context), block.columns, _bits(palette))
                if coded is not None:
                    head = struct.pack("<BBB", context, origin, len(palette)) + palette.tobytes()
                    yield head + struct.pack("<II", block.columns, coded.size) + coded.tobytes()


def read_palette(body: memoryview) -> tuple[Floats, int]:
    """The values of a coded block [count], and what they are added to: 0 nothing, 1 the reference."""
    return np.frombuffer(bytes(body[3 : 3 + 4 * body[2]]), "<f4"), body[1]


def decode(kernel: Kernel, data: memoryview, n: int, block: Block) -> Words:
    """The block's n words; raises Broken."""
    if len(data) < 3 or block.values.itemsize != 4 or not block.real:
        raise Broken("its palette is cut off")
    context, origin, count = data[:3]
    if context > max(Context) or origin > 1 or not 0 < count <= MOST or len(data) < 11 + 4 * count:
        raise Broken("its palette is malformed")
    if (block.reference is None and (origin or context == Context.REFERENCE)) or (
        context == Context.BESIDE and block.beside is None
    ):
        raise Broken("what its palette refers to is missing")
    palette, _ = read_palette(data)
    columns, length = struct.unpack_from("<II", data, 3 + 4 * count)
    coded = np.frombuffer(data[11 + 4 * count :], np.uint8)
    if coded.size != length or not np.isfinite(palette).all() or not (palette[1:] > palette[:-1]).all():
        raise Broken("its palette is malformed")
    symbols = kernel.unadapt(coded, *_contexts(block, palette, context), columns, _bits(palette), n)
    if symbols.max(initial=0) >= count:
        raise Broken("its palette has no such value")
    return _values(block, palette, symbols, origin)


def _bits(palette: Floats) -> int:
    return max(1, (len(palette) - 1).bit_length())


def _values(block: Block, palette: Floats, symbols: Bytes, origin: int) -> Words:
    found = palette[symbols]
    if origin:
        assert block.reference is not None
        with np.errstate(invalid="ignore", over="ignore"):
            found = block.reference.view("<f4") + found
    return found.view("<u4")


def _symbols(block: Block, palette: Floats, origin: int) -> Bytes | None:
    """Each value's place in the palette; None where one is not there to the bit."""
    if not np.isfinite(block.values.view("<f4")).all():
        return None
    symbols = symbols_of(block.values, palette, block.reference if origin else None)
    return symbols if np.array_equal(_values(block, palette, symbols, origin), block.values) else None


def symbols_of(values: Words, palette: Floats, reference: Words | None) -> Bytes:
    """The place in the palette that each value [n] is nearest to, or its difference from the reference."""
    floats = values.view("<f4")
    if reference is not None:
        with np.errstate(invalid="ignore", over="ignore"):
            floats = floats - reference.view("<f4")
    return places(floats, palette).astype(np.uint8)


def places(values: Floats, palette: Floats) -> NDArray[np.int64]:
    """Which of the palette's values, in order, each is nearest to."""
    wide = palette.astype(np.float64)
    return np.searchsorted((wide[:-1] + wide[1:]) / 2, values.astype(np.float64))


def _contexts(block: Block, palette: Floats, context: int) -> tuple[Contexts | None, Contexts | None]:
    """Where the reference's value would be in the palette, and how far values have lately been from there; or the
    exponent of the value beside it."""
    if context == Context.NONE:
        return None, None
    if context == Context.BESIDE:
        assert block.beside is not None
        return (block.beside >> 23 & 255).astype(np.uint16), None
    assert block.reference is not None
    there = places(block.reference.view("<f4"), palette).astype(np.uint16)
    return there, (len(palette) - there).astype(np.uint16)
