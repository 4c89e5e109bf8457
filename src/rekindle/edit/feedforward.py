"""A feed-forward as methods handle it: its tensors together, and its hidden units one by one."""

from __future__ import annotations

from collections.abc import Mapping

from rekindle.edit.arithmetic import Fresh, Normal, Scale, Sum, Twin
from rekindle.edit.expressions import Expr
from rekindle.edit.measure import Statistics

# The tensors of a feed-forward, where it has them.
PARTS = ("gate", "gate.bias", "up", "up.bias", "down", "down.bias")

# A hidden unit is a row of gate and up, and a column of down; the bias of down belongs to none.
UNIT_AXIS = {"gate": 0, "gate.bias": 0, "up": 0, "up.bias": 0, "down": 1}


class FeedForward(dict[str, Expr]):
    """The tensors of one feed-forward: gate, up, down and their biases."""

    @property
    def width(self) -> int:
        """Hidden units (F)."""
        return self["up"].shape[0]

    def twin(self, of: int) -> FeedForward:
        """One of `of` exact copies that share the parent's gradient between them."""
        return FeedForward({part: Twin(x, of) for part, x in self.items()})

    def fresh(self) -> FeedForward:
        """The same weights without their past: for copies that get no gradient at the start."""
        return FeedForward({part: Fresh(x) for part, x in self.items()})

    def noisy(self, share: float, seed: int, key: str) -> FeedForward:
        """Each tensor plus Gaussian noise whose standard deviation is this share of the tensor's own, measured."""
        if not share:
            return self  # the very same expressions: a plan holds each once, however many experts share it
        return FeedForward({part: _noisy(x, share, seed, f"{key}/{part}/noise") for part, x in self.items()})

    def units(self, lo: int, hi: int) -> FeedForward:
        """Hidden units lo to hi, a narrower feed-forward. The bias of down is whole."""

        def cut(part: str, x: Expr) -> Expr:
            axis = UNIT_AXIS.get(part)
            return x if axis is None else x.columns(lo, hi) if axis else x.rows(lo, hi)

        return FeedForward({part: cut(part, x) for part, x in self.items()})

    def scaled(self, by: Mapping[str, float]) -> FeedForward:
        """Some of its tensors, by part, times a number."""
        return FeedForward({p: Scale(x, by[p]) if by.get(p, 1.0) != 1.0 else x for p, x in self.items()})


def _noisy(x: Expr, share: float, seed: int, key: str) -> Expr:
    return Sum(x, Normal(x.dtype, x.shape, Statistics(x)["std"] * share, seed, key))
