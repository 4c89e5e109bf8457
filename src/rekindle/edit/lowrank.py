"""A matrix with a product of two thin ones added: what LoRA makes of a weight.

Source: Hu et al. 2021, "LoRA: Low-Rank Adaptation of Large Language Models", arXiv 2106.09685, section 4.1.
"""

from __future__ import annotations

from collections.abc import Sequence

from numpy.typing import NDArray

from rekindle.edit.arithmetic import Computed, computable
from rekindle.edit.expressions import BLOCK, Expr, Reader


class LowRank(Computed):
    """base + scale * B A, in floats rounded once. base [N, M], A [R, M], B [N, R]; A is in memory whole.

    Starts with empty moments: the history that an optimizer has is that of the base, before it was adapted.
    """

    __slots__ = ("a", "b", "base", "scale")

    def __init__(self, base: Expr, a: Expr, b: Expr, scale: float):
        assert base.shape == (b.shape[0], a.shape[1]), (base.shape, a.shape, b.shape)
        assert a.shape[0] == b.shape[1], (a.shape, b.shape)
        for x in (base, a, b):
            computable(x)
        self.base, self.a, self.b, self.scale = base, a, b, scale
        self.dtype, self.shape = base.dtype, base.shape

    def children(self) -> Sequence[Expr]:
        return (self.base, self.a, self.b)

    def memory(self) -> int:
        return super().memory() + -(-self.a.num_rows * self.a.row_size // BLOCK)

    def values(self, lo: int, hi: int, reader: Reader) -> NDArray:
        added = self.b.values(lo, hi, reader) @ self.a.values(0, self.a.num_rows, reader)
        added *= added.dtype.type(self.scale)
        return self.base.values(lo, hi, reader) + added

    def transposed(self) -> Expr:
        return LowRank(self.base.transposed(), self.b.transposed(), self.a.transposed(), self.scale)
