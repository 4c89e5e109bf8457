"""One block: up to a few MB of values, decoded on its own, and the ways there are to code it.

stored     the bytes as they are
deflate    zlib's stream: text, and what repeats
same       nothing: the bytes are the reference's
planes     the top byte of each value, sign turned to the bottom, as a symbol; the bytes below it as planes
delta      the difference from the reference, or from nothing, as a class and raw bits
adaptive   the same, the classes by a coder that learns as it goes: smaller, and slower
palette    one of a few values, or the reference's and one of a few: what near-lossless checkpoints are made of
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from enum import IntEnum
from typing import Literal

import numpy as np

from rekindle.codec.bits import Bytes, Words

Tier = Literal["fast", "max"]


class Codec(IntEnum):
    STORED, DEFLATE, SAME, PLANES, DELTA, ADAPTIVE, PALETTE = range(7)


class Context(IntEnum):
    """What a symbol's table goes by: nothing, the reference's value at its place, or the value beside it."""

    NONE, REFERENCE, BESIDE = range(3)


class From(IntEnum):
    """What a difference is from; grid: the reference and what its row and column foretell."""

    NOTHING, REFERENCE, GRID = range(3)


@dataclass(frozen=True)
class Block:
    """What a block is of. `values` are bits as unsigned words [n]; reference and beside [n] are at the same places."""

    values: Words
    real: bool  # floats, whose bits are put in order before they are subtracted
    reference: Words | None = None
    beside: Words | None = None
    palette: np.ndarray | None = None  # float32: the few values there are, or are added to the reference
    columns: int = 0  # values in a row, of which there are whole ones; 0: no matter

    def context(self, kind: Context) -> Words | None:
        return {Context.NONE: None, Context.REFERENCE: self.reference, Context.BESIDE: self.beside}[kind]


def words(data: bytes | memoryview, dtype_bits: int) -> Words:
    """The bytes of values as unsigned words; bytes where they do not fill words of 2, 4 or 8."""
    width = dtype_bits if dtype_bits in (16, 32, 64) else 8
    return np.frombuffer(data, f"<u{width // 8}")


def top(values: Words) -> Bytes:
    """The top byte below the sign: the exponent of a float32 or bfloat16."""
    width = 8 * values.itemsize
    return values if width == 8 else (values >> (width - 9)).astype(np.uint8)


def narrowed(block: Block, shift: int) -> Block:
    """The block without the `shift` lowest bits of its values and references, which are 0; the sign stays on top."""
    if not shift:
        return block
    reference = None if block.reference is None else _narrow(block.reference, shift)
    return replace(block, values=_narrow(block.values, shift), reference=reference)


def _narrow(values: Words, shift: int) -> Words:
    sign = values.dtype.type(1 << (8 * values.itemsize - 1))
    return (values & ~sign) >> values.dtype.type(shift) | values & sign


def widened(values: Words, shift: int) -> Words:
    sign = values.dtype.type(1 << (8 * values.itemsize - 1))
    return (values & ~sign) << values.dtype.type(shift) | values & sign if shift else values
