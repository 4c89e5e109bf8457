"""Where labels go when the lines they name end close together."""

from __future__ import annotations

from collections.abc import Sequence


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
