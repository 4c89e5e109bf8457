"""What the coders speak of: arrays of bytes and words, and bytes that no encoder wrote."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Bytes = NDArray[np.uint8]
Words = NDArray[Any]  # uint8, uint16, uint32 or uint64
Contexts = NDArray[np.uint16]

LANES = 32  # interleaved coder states, in words of 4 bytes at the front of what they coded


class Broken(ValueError):
    """Bytes that no encoder wrote."""


def ordered(values: Words, real: bool) -> Words:
    """Bits of floats as integers that stand in the same order."""
    return values ^ (_negative(values) | _sign(values)) if real else values


def stored(values: Words, real: bool) -> Words:
    """Back from `ordered`."""
    return values ^ (~_negative(values) | _sign(values)) if real else values


def apart(values: Words, reference: Words, real: bool) -> NDArray[np.int64]:
    """What values are more than their references, as they are subtracted."""
    return ordered(values, real).astype(np.int64) - ordered(reference, real).astype(np.int64)


def _negative(values: Words) -> Words:
    """All bits set where the highest is, else none."""
    return (values.view(f"<i{values.itemsize}") >> (8 * values.itemsize - 1)).view(values.dtype)


def _sign(values: Words) -> Any:
    return values.dtype.type(1 << (8 * values.itemsize - 1))
