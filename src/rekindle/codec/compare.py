"""How two steps differ, tensor by tensor."""

from __future__ import annotations

from typing import Any

import numpy as np

from rekindle.codec.archive import Step
from rekindle.store.dtypes import COMPUTED, to_float

PIECE = 1 << 20  # values compared at once


def compare(first: Step, second: Step) -> list[dict[str, Any]]:
    """Name, `what` (same, changed, reshaped, added, removed), share of values changed, largest absolute change."""
    rows = [_row(first, second, key) for key in first.by_key]
    return rows + [_told(key, "added") for key in second.by_key if key not in first.by_key]


def _row(first: Step, second: Step, key: str) -> dict[str, Any]:
    i, j = first.by_key[key], second.by_key.get(key)
    if j is None:
        return _told(key, "removed")
    a, b = first.index.tensors[i], second.index.tensors[j]
    if (a.dtype, a.shape) != (b.dtype, b.shape):
        return _told(key, "reshaped")
    changed, largest = 0, 0.0
    for at in range(0, a.n, PIECE):
        count = min(PIECE, a.n - at)
        x, y = first.words(i, at, count), second.words(j, at, count)
        changed += int(np.count_nonzero(x != y))
        if a.dtype in COMPUTED:
            u, v = (to_float(z.view(COMPUTED[a.dtype]), a.dtype) for z in (x, y))
            with np.errstate(invalid="ignore", over="ignore"):
                largest = max(largest, float(np.nan_to_num(np.abs(u - v), nan=np.inf).max()))
    numbers = a.dtype in COMPUTED
    return _told(key, "changed" if changed else "same", changed / max(a.n, 1), largest if numbers else None)


def _told(key: str, what: str, changed: float | None = None, largest: float | None = None) -> dict[str, Any]:
    return {"name": key, "what": what, "changed": changed, "largest": largest}
