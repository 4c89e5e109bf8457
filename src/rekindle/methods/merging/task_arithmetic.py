"""Task arithmetic: what fine-tunes have learnt, added to the base they share.

    w = w_0 + lambda * sum_i a_i (w_i - w_0)

Negative weights take a task away.

Source: Ilharco et al. 2023, "Editing Models with Task Arithmetic", arXiv 2212.04089.
"""

from __future__ import annotations

from collections.abc import Sequence

from rekindle.edit import Expr
from rekindle.edit.combine import linear


def task_arithmetic(xs: Sequence[Expr], weights: Sequence[float], base: Expr, lambda_: float) -> Expr:
    by = [lambda_ * a for a in weights]
    return linear([base, *xs], [1 - sum(by), *by])
