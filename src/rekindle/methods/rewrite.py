"""Rewrite: the same checkpoint in other shards, another dtype or another layout. The neutral method.

Preserves the function exactly unless the dtype is narrowed.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rekindle.config import option
from rekindle.edit import Checkpoint, exact, lossy
from rekindle.edit.arithmetic import Cast, is_computable

DTYPES = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}
EXACT_CASTS = {("BF16", "F32"), ("F16", "F32")}


@dataclass(frozen=True, kw_only=True)
class Config:
    dtype: Literal["keep", "float32", "bfloat16", "float16"] = option("keep", help="dtype to store the weights in")


def rewrite(parent: Checkpoint, config: Config) -> Checkpoint:
    spelling = parent.family.config(parent.settings, parent.config, parent.family)
    if config.dtype == "keep":
        return parent.derive(config=spelling).promising(exact())
    dtype = DTYPES[config.dtype]
    kept = {role for role, (_, _, row) in parent.rows.items() if row.buffer}  # libraries hold these in float32
    kept |= {role for role in parent.opaque if not is_computable(parent.tensors[role])}  # whole numbers and masks
    tensors = {role: x if x.dtype == dtype or role in kept else Cast(x, dtype) for role, x in parent.tensors.items()}
    key = "dtype" if "dtype" in spelling else "torch_dtype"
    child = parent.derive(tensors=tensors, config=spelling | {key: config.dtype})
    changed = {(x.dtype, dtype) for role, x in parent.tensors.items() if role not in kept} - {(dtype, dtype)}
    return child.promising(exact() if changed <= EXACT_CASTS else lossy(f"weights rounded to {config.dtype}"))
