"""Weights in memory as what changed in them since others that both sides have, rounded as near-lossless archives do.

message := for each tensor, in order, and each stretch of it: the number of values u32, the length u32, a coded block.

A sender goes by what the receiver made of the message before, so that errors do not add up.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import numpy as np

from rekindle.codec.bits import Broken
from rekindle.codec.block import Block
from rekindle.codec.coder import decode, encode
from rekindle.codec.kernel import kernel
from rekindle.codec.lossy import BITS, stepped
from rekindle.codec.shrunk import LEAST, Floats

STRETCH = 1 << 20  # values of a block
HEAD = struct.Struct("<II")


def change(values: Floats, known: Floats, sizes: Sequence[int]) -> tuple[bytes, Floats]:
    """The message that turns `known` into `values` [n], tensors of these sizes end to end; and what it makes of it.

    Each value's change is given some 2.5 bits. Small tensors, and those in which something is not finite, are kept to
    the bit.

    >>> old = np.zeros(1000, np.float32)
    >>> message, made = change(np.linspace(-1, 1, 1000, dtype=np.float32), old, [1000])
    >>> len(message) < 400, bool((changed(message, old) == made).all())
    (True, True)
    """
    parts, made = [], np.empty_like(values)
    for start, stop in _stretches(sizes):
        made[start:stop], palette = _near(values[start:stop], known[start:stop])
        block = Block(made[start:stop].view("<u4"), True, known[start:stop].view("<u4"), palette=palette)
        coded = encode(kernel(), block)
        parts += [HEAD.pack(stop - start, len(coded)), coded]
    return b"".join(parts), made


def changed(message: bytes | memoryview, known: Floats) -> Floats:
    """What a message makes of what is known [n]; raises Broken where it is not one of that."""
    view, made, at, start = memoryview(message), np.empty_like(known), 0, 0
    while at < len(view):
        if len(view) < at + HEAD.size:
            raise Broken("it is cut off")
        n, length = HEAD.unpack_from(view, at)
        at += HEAD.size
        if len(view) < at + length:
            raise Broken("it is cut off")
        block = Block(np.empty(0, "<u4"), True, known[start : start + n].view("<u4"))  # decode refuses another size
        made[start : start + n] = decode(kernel(), view[at : at + length], n, block).view("<f4")
        start, at = start + n, at + length
    if start != known.size:
        raise Broken("what is known has another size")
    return made


def _stretches(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for size in sizes:
        for at in range(start, start + size, STRETCH):
            yield at, min(at + STRETCH, start + size)
        start += size


def _near(values: Floats, known: Floats) -> tuple[Floats, Floats | None]:
    """What is as good, and the few values that its difference from what is known takes."""
    with np.errstate(invalid="ignore", over="ignore"):
        residual = values - known
        if values.size < LEAST or not np.isfinite(residual).all():
            return values, None
        steps, palette = stepped(residual, BITS)
        near = known + steps
    return (near, palette) if np.isfinite(near).all() else (values, None)
