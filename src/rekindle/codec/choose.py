"""Which codec makes a block smallest, judged by a sample of it."""

from __future__ import annotations

import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from rekindle.codec.bits import Bytes, Words, apart
from rekindle.codec.block import Block, Codec, Context, From, narrowed, top
from rekindle.codec.grid import Grid, find_grid
from rekindle.codec.kernel import Kernel

SAMPLE = 4096  # values, in pieces
PIECES = 16
WORTH = 0.985  # a plane is coded where that takes less than this share


@dataclass(frozen=True)
class Choice:
    codec: Codec
    context: Context = Context.NONE
    origin: From = From.NOTHING
    bias: int = 0
    shift: int = 0  # lowest bits that are 0 everywhere
    grid: Grid | None = None
    coded: tuple[bool, ...] = ()  # of the planes


def choices(kernel: Kernel, block: Block) -> Iterator[tuple[float, Choice]]:
    """Bits per value of each codec, by a sample."""
    n, width = block.values.size, 8 * block.values.itemsize
    places = sample(n)
    at = places.reshape(-1)
    part = Block(
        block.values[at],
        block.real,
        None if block.reference is None else block.reference[at],
        None if block.beside is None else block.beside[at],
    )
    yield width, Choice(Codec.STORED)
    if not block.real:
        kept = block.values[: 1 << 16].tobytes()
        yield 8 * len(zlib.compress(kept, 1)) / max(len(kept), 1) * width / 8, Choice(Codec.DEFLATE)
    if width > 8:
        symbols, rest = kernel.split(part.values)
    else:
        symbols, rest = part.values, ()
    below = [entropy(kernel, plane, None) for plane in rest]
    coded = tuple(bits < 8 * WORTH for bits in below)
    for kind in (Context.NONE, Context.BESIDE):
        context = part.context(kind)
        if kind == Context.NONE or context is not None:
            bits = sum(min(8.0, bits) for bits in below) + entropy(kernel, symbols, context)
            yield bits, Choice(Codec.PLANES, kind, coded=coded)
    shift = _shift(block)
    small = narrowed(part, shift)
    for choice in _differences(block, small, places, shift):
        symbols, raw = kernel.delta(small.values, reference_of(small, choice, at), choice.bias, small.real)
        head = 0 if choice.grid is None else choice.grid.nbytes
        bits = 8 * (raw.size / max(at.size, 1) + head / max(n, 1))
        yield bits + entropy(kernel, symbols, part.context(choice.context)), choice


def _shift(block: Block) -> int:
    """Lowest bits that are 0 in all values of a block of floats and in its references: rounded ones."""
    if not block.real or block.reference is None or block.values.itemsize == 1:
        return 0
    used = int(np.bitwise_or.reduce(block.values)) | int(np.bitwise_or.reduce(block.reference))
    return (used & -used).bit_length() - 1 if used else 0


def _differences(block: Block, small: Block, places: NDArray[np.int64], shift: int) -> Iterator[Choice]:
    """Differences of the block from what may be at hand; `small` is its sample, at `places`, without low bits."""
    if block.reference is None:
        if not block.real:
            yield Choice(Codec.DELTA)
        return
    bias = _bias(small)
    for offset in sorted({0, bias}):
        yield Choice(Codec.DELTA, Context.REFERENCE, From.REFERENCE, offset, shift)
    if block.columns and block.real and block.values.itemsize in (2, 4):
        whole = narrowed(block, shift)
        assert whole.reference is not None
        if (grid := find_grid(whole.values, whole.reference, block.columns, bias, places)) is not None:
            yield Choice(Codec.DELTA, Context.REFERENCE, From.GRID, bias, shift, grid)


def reference_of(block: Block, choice: Choice, places: NDArray[np.int64] | None = None) -> Words | None:
    """What differences are from; `block` is without its low bits, and all there is or what is at `places`."""
    if choice.grid is not None and block.reference is not None:
        return choice.grid.foretell(block.reference, places)
    return block.reference if choice.origin else None


@lru_cache(maxsize=64)
def sample(n: int) -> NDArray[np.int64]:
    """Places [pieces, length] among n."""
    if n < PIECES * PIECES:
        return np.arange(n)[None]
    length = min(n, SAMPLE) // PIECES
    starts = np.linspace(0, n - length, PIECES).astype(np.int64)
    return starts[:, None] + np.arange(length)


def entropy(kernel: Kernel, symbols: Bytes, context: Words | None) -> float:
    """Entropy of a sample, bits per symbol: of all contexts, by how often each occurs."""
    tops = None if context is None else top(context)
    counts = kernel.count(np.ascontiguousarray(symbols), tops, 1 if tops is None else 256).astype(float)
    counts = counts[counts.any(axis=1)]
    shares = counts / counts.sum(axis=1, keepdims=True)
    bits = -(counts * np.log2(np.where(shares > 0, shares, 1.0))).sum()
    return float(bits / max(symbols.size, 1))


def _bias(part: Block) -> int:
    """What values are more than their references, by the median: second moments all shrink alike."""
    assert part.reference is not None
    found = np.sort(apart(part.values, part.reference, part.real))
    return int(found[found.size // 2]) if found.size else 0
