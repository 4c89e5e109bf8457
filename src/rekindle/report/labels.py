"""Where labels go when the lines they name end close together, and ticks of a logarithmic axis of counts."""

from __future__ import annotations

import math
from collections.abc import Sequence

from rekindle.report.words import count


def spread(targets: Sequence[float], height: float, low: float, high: float) -> list[float] | None:
    """Centres for labels of one `height`, as near `targets` as can be, none overlapping, all in [low, high].

    The sum of squared displacements is least (isotonic regression by pooling neighbours). Returns None where
    the labels do not fit. All four numbers share a unit, e.g. pixels; the order of `targets` is kept.
    """
    n = len(targets)
    if n * height > high - low:
        return None
    order = sorted(range(n), key=lambda i: targets[i])
    pools: list[list[float]] = []  # [sum, size] of the targets, each less the room its predecessors need
    for rank, i in enumerate(order):
        pools.append([targets[i] - rank * height, 1])
        while len(pools) > 1 and pools[-2][0] / pools[-2][1] >= pools[-1][0] / pools[-1][1]:
            total, size = pools.pop()
            pools[-1][0] += total
            pools[-1][1] += size
    bottom, top = low + height / 2, high - height / 2 - (n - 1) * height
    shifted = [min(max(total / size, bottom), top) for total, size in pools for _ in range(int(size))]
    centres = [0.0] * n
    for rank, i in enumerate(order):
        centres[i] = shifted[rank] + rank * height
    return centres


def count_ticks(low: float, high: float) -> tuple[list[float], list[str]]:
    """Powers of ten in [low, high], or 1, 2 and 5 times those where there are few; and what to write: 10B, 500M."""
    decades = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    times = (1,) if math.log10(high / low) > 2.5 else (1, 2, 5)
    ticks = [m * 10.0**p for p in decades for m in times if low <= m * 10.0**p <= high]
    return ticks, [count(tick).replace(".00", "").replace(".0", "") for tick in ticks]
