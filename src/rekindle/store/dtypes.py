"""Dtypes by their safetensors names, and bfloat16 for numpy, which has none."""

from __future__ import annotations

from math import prod

import numpy as np
from numpy.typing import NDArray

from rekindle.store.window import loops

BITS = {
    "BOOL": 8, "U8": 8, "I8": 8, "F8_E5M2": 8, "F8_E4M3": 8, "F8_E8M0": 8, "F8_E4M3FNUZ": 8, "F8_E5M2FNUZ": 8,
    "U16": 16, "I16": 16, "F16": 16, "BF16": 16,
    "U32": 32, "I32": 32, "F32": 32,
    "U64": 64, "I64": 64, "F64": 64, "C64": 64,
    "F4": 4, "F6_E2M3": 6, "F6_E3M2": 6,
}  # fmt: skip

# What is calculated with; every other dtype can be copied, sliced along its first axis and no more.
COMPUTED = {"F64": np.float64, "F32": np.float32, "F16": np.float16, "BF16": np.uint16}

# numpy dtypes of stored bytes; bits where numpy has no such type
RAW: dict[str, type[np.generic]] = {
    **COMPUTED,
    "BOOL": np.uint8, "U8": np.uint8, "I8": np.int8, "F8_E4M3": np.uint8, "F8_E5M2": np.uint8, "F8_E8M0": np.uint8,
    "U16": np.uint16, "I16": np.int16, "U32": np.uint32, "I32": np.int32, "U64": np.uint64, "I64": np.int64,
}  # fmt: skip

TORCH = {
    "F64": "float64", "F32": "float32", "F16": "float16", "BF16": "bfloat16", "BOOL": "bool",
    "U8": "uint8", "I8": "int8", "I16": "int16", "I32": "int32", "I64": "int64",
    "F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2",
}  # fmt: skip
FROM_TORCH = {torch: ours for ours, torch in TORCH.items()}


def nbytes(dtype: str, shape: tuple[int, ...]) -> int:
    """Bytes of a tensor on disk; raises ValueError where a sub-byte dtype does not fill whole bytes."""
    bits = BITS[dtype] * prod(shape)
    if bits % 8:
        raise ValueError("its bits do not fill whole bytes")
    return bits // 8


def to_float(stored: NDArray, dtype: str) -> NDArray:
    """Stored values as float32 (float64 stays float64), exactly."""
    return loops().widen(stored, dtype)


def from_float(values: NDArray, dtype: str) -> NDArray:
    """Floats as `dtype`, rounded to nearest, ties to even (float64 to bfloat16 by way of float32); NaN stays NaN."""
    return loops().round(values, dtype)


def count_not_finite(block: NDArray, dtype: str) -> int:
    """NaN and infinite values in a block of stored values."""
    return loops().not_finite(block, dtype) if dtype in COMPUTED else 0
