"""Post-hoc: the power-function average of any width, out of those of two widths that a run kept.

Average i, of exponent g_i after step t_i, weighs theta(s) by p_i(s) = (g_i + 1) s^g_i / t_i^(g_i + 1). The x_i make
sum_i x_i p_i as near as can be to the profile p that is asked for, in least squares:

    A x = b     A_ij = <p_i, p_j>     b_i = <p_i, p>
    <p_i, p_j> = (g_i + 1)(g_j + 1) / (g_i + g_j + 1)  t_i^g_j / t_j^(g_j + 1)      for t_i <= t_j

Some of them may be negative; they are divided by their sum, which is near 1. A width between those that were kept is
met closely, one far from them is not: see `misfit`.

Source: Karras et al. 2023, arXiv 2312.02696, section 3.2 and appendix C.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from rekindle.config import option

SIGMAS = (0.05, 0.10)  # relative widths that are kept
KEPT = "average.json"  # in a checkpoint that is one: its width, and after which step
RIDGE = 1e-10  # of the largest of A: profiles of neighbouring steps are nearly one


@dataclass(frozen=True, kw_only=True)
class AverageConfig:
    """Which average."""

    sigma: float = option(help="relative width: standard deviation of how far back it looks, as a share of the run")
    step: int | None = option(None, help="after which step of the run (default: its last that was saved)")


class Profile(NamedTuple):
    """Which average: its relative width, and after which step."""

    sigma: float
    step: float


@cache
def exponent(sigma: float) -> float:
    """g of a power function whose standard deviation is `sigma` of the run: sigma^2 = (g + 1) / ((g + 2)^2 (g + 3))."""
    roots = np.roots([1, 7, 16 - sigma**-2, 12 - sigma**-2])
    return float(np.max(roots.real[np.abs(roots.imag) < 1e-9]))


def product(one: Profile, other: Profile) -> float:
    """<p_i, p_j>: the integral of both profiles' product."""
    (g, s), (h, t) = ((exponent(p.sigma), p.step) for p in sorted((one, other), key=lambda p: p.step))
    return float((g + 1) * (h + 1) / (g + h + 1) * (s / t) ** h / t)


def post_hoc(kept: Sequence[Profile], wanted: Profile) -> NDArray[np.float64]:
    """Coefficients [K] of what was kept, that sum to 1."""
    inner = np.array([[product(one, other) for other in kept] for one in kept])
    along = np.array([product(one, wanted) for one in kept])
    scale = np.sqrt(np.diag(inner))  # profiles of late steps are wide and low
    ridge = RIDGE * np.eye(len(kept))
    x = np.linalg.solve(inner / np.outer(scale, scale) + ridge, along / scale) / scale
    return x / x.sum()


def misfit(kept: Sequence[Profile], x: NDArray[np.float64], wanted: Profile) -> float:
    """|sum_i x_i p_i - p| / |p|: how far the profile that is made is from the one that is asked for."""
    inner = np.array([[product(one, other) for other in kept] for one in kept])
    along = np.array([product(one, wanted) for one in kept])
    square = float(x @ inner @ x - 2 * x @ along + product(wanted, wanted))
    return float(np.sqrt(max(square, 0.0) / product(wanted, wanted)))
