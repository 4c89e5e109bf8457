"""Weights in memory as what changed in them since others that both sides have, rounded as near-lossless archives do.

message := for each tensor, in order, and each stretch of it: the number of values u32, the length u32, a stretch.
stretch := kind u8.   0: nothing changed.   1: the values, float32.   2: 15 changes float32, and coded symbols: which of
them each value's change becomes.

A sender goes by what the receiver made of the message before, so that errors do not add up. Symbols are coded by one
table, since a step waits for them: an archive's adaptive coder takes nine times as long.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator, Sequence

import numpy as np

from rekindle.codec.bits import Broken
from rekindle.codec.coder import decode_symbols, encode_symbols
from rekindle.codec.kernel import kernel
from rekindle.codec.lossy import BITS, CENTRES, in_steps, step_width
from rekindle.codec.shrunk import LEAST, Floats

STRETCH = 1 << 18  # values, which caches hold
HEAD = struct.Struct("<II")
SAME, VALUES, STEPS = range(3)


def change(values: Floats, known: Floats, sizes: Sequence[int]) -> tuple[bytes, Floats]:
    """The message that turns `known` into `values` [n], tensors of these sizes end to end; and what it makes of it.

    Each value's change is given some 2.5 bits. Small tensors, and those in which something is not finite, are kept to
    the bit.

    >>> old = np.zeros(1000, np.float32)
    >>> message, made = change(np.linspace(-1, 1, 1000, dtype=np.float32), old, [1000])
    >>> len(message) < 600, bool((changed(message, old) == made).all())
    (True, True)
    """
    parts, made = [], np.empty_like(values)
    for start, stop in _stretches(sizes):
        coded, made[start:stop] = _coded(values[start:stop], known[start:stop])
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
        if len(view) < at + length or not length:
            raise Broken("it is cut off")
        if n > known.size - start:
            break
        made[start : start + n] = _decoded(view[at : at + length], known[start : start + n])
        start, at = start + n, at + length
    if start != known.size or at != len(view):
        raise Broken("what is known has another size")
    return made


def _stretches(sizes: Sequence[int]) -> Iterator[tuple[int, int]]:
    start = 0
    for size in sizes:
        for at in range(start, start + size, STRETCH):
            yield at, min(at + STRETCH, start + size)
        start += size


def _coded(values: Floats, known: Floats) -> tuple[bytes, Floats]:
    """A stretch, and what becomes of it."""
    if np.array_equal(values.view("<u4"), known.view("<u4")):
        return bytes([SAME]), values
    with np.errstate(invalid="ignore", over="ignore"):
        residual = values - known
        if values.size >= LEAST and np.isfinite(residual).all() and (step := step_width(residual, BITS)):
            cells, means = in_steps(residual, step)
            made = known + means[cells]
            if np.isfinite(made).all():
                return bytes([STEPS]) + means.tobytes() + encode_symbols(kernel(), cells, None), made
    return bytes([VALUES]) + values.tobytes(), values


def _decoded(data: memoryview, known: Floats) -> Floats:
    kind, body = data[0], data[1:]
    if kind == SAME and not len(body):
        return known
    if kind == VALUES and len(body) == known.nbytes:
        return np.frombuffer(body, np.float32)
    if kind == STEPS and len(body) >= 4 * CENTRES:
        means = np.frombuffer(body[: 4 * CENTRES], np.float32)
        cells, rest = decode_symbols(kernel(), body[4 * CENTRES :], known.size, None)
        if not len(rest) and cells.max(initial=0) < CENTRES and np.isfinite(means).all():
            with np.errstate(over="ignore"):
                return known + means[cells]
    raise Broken("a stretch is malformed")
