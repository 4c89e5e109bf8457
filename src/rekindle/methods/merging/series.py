"""Weights over a run's saved checkpoints, oldest first: averages of the way, not of strangers.

mean   the plain average: LAWA, of the last checkpoints of a run (Kaddour 2022, arXiv 2209.14981; Sanyal et al. 2023,
       arXiv 2306.03241)
ema    e_1 = w_1, e_k = decay e_{k-1} + (1 - decay) w_k, from checkpoint to checkpoint
wsm    the weights that a decaying learning rate would have given to the updates between the checkpoints (Tian et al.
       2025, "WSM", arXiv 2507.17634: c_0 = 1 - r_1, c_j = r_j - r_{j+1}, c_k = r_k). With w_k = w_0 + g_1 + ... + g_k,
       sum_j c_j w_j gives update g_i the share r_i = sum_{j >= i} c_j. So for shares that fall from 1 to 0 by a shape,
       r_i = shape(i / N) for i = 1 .. N - 1 of N checkpoints, c_j = r_j - r_{j+1}. Linear decay is the plain average.
"""

from __future__ import annotations

import math
from collections.abc import Callable

SHAPES: dict[str, Callable[[float], float]] = {
    "linear": lambda x: 1 - x,
    "cosine": lambda x: (1 + math.cos(math.pi * x)) / 2,
    "1-sqrt": lambda x: 1 - math.sqrt(x),
}


def mean(count: int) -> list[float]:
    return [1 / count] * count


def ema(count: int, decay: float) -> list[float]:
    """Of the last average: the first checkpoint has what is left."""
    weights = [(1 - decay) * decay ** (count - 1 - k) for k in range(count)]
    return [decay ** (count - 1), *weights[1:]]


def wsm(count: int, shape: str) -> list[float]:
    shares = [1.0, *(SHAPES[shape](i / count) for i in range(1, count)), 0.0]
    return [now - then for now, then in zip(shares, shares[1:])]
