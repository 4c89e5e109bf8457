"""Model breadcrumbs: task vectors without their smallest entries and without their very largest.

Of each task vector the largest `gamma` of entries are taken for outliers, the `density` after those are kept, and the
rest is taken for noise; what is kept is added to the base as in task arithmetic.

Departures: of entries of one size as large as the last outlier, or as the last one kept, all are kept.

Source: Davari and Belilovsky 2023, "Model Breadcrumbs", arXiv 2312.06795: masks made layer by layer.
"""

from __future__ import annotations

from collections.abc import Sequence

from rekindle.edit import Expr
from rekindle.methods.merging.task_arithmetic import task_arithmetic
from rekindle.methods.merging.ties import trimmed


def breadcrumbs(
    xs: Sequence[Expr], weights: Sequence[float], base: Expr, density: float, gamma: float, lambda_: float
) -> Expr:
    return task_arithmetic([trimmed(x, base, density, gamma) for x in xs], weights, base, lambda_)
