"""The checkpoints of a run as a search sees them: which of their tensors are combined, and where each lies in a vector.

A vector holds every tensor that is combined, one after the other, in float32. The others are those of the last
checkpoint: whole numbers, BatchNorm's statistics (no sum of running variances is one), and what never moved.

K checkpoints   P values of a vector
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from math import prod
from typing import NamedTuple

from numpy.typing import NDArray

from rekindle.edit import Checkpoint, Expr, plan
from rekindle.edit.arithmetic import is_computable
from rekindle.edit.expressions import Leaf
from rekindle.edit.opening import same_bytes
from rekindle.errors import RekindleError, counted
from rekindle.methods.merging.alike import check_alike
from rekindle.search.groups import By, groups_of, in_order
from rekindle.store.window import loops

STATISTICS = ("running_mean", "running_var", "num_batches_tracked")  # of BatchNorm


class Place(NamedTuple):
    """Where a tensor lies in a vector: its values begin `at`."""

    at: int
    shape: tuple[int, ...]

    @property
    def size(self) -> int:
        return prod(self.shape)


@dataclass(frozen=True)
class Series:
    """Checkpoints by name, oldest first, and of each its tensors by name."""

    checkpoints: Mapping[str, Checkpoint]
    tensors: Sequence[Mapping[str, Expr]]  # of each, those that can be combined and those that cannot
    group: Mapping[str, str] = field(default_factory=dict)  # that each tensor is in; none: all are one
    averages: Mapping[str, Mapping[str, Expr]] = field(default_factory=dict)  # that the run kept, likewise

    @property
    def names(self) -> tuple[str, ...]:
        return tuple(self.checkpoints)

    def __len__(self) -> int:
        return len(self.tensors)

    @property
    def last(self) -> Mapping[str, Expr]:
        return self.tensors[-1]

    @cached_property
    def moved(self) -> tuple[str, ...]:
        """The names of what is combined, group by group."""
        found = [name for name, x in self.last.items() if _is_summed(name, x) and self._moves(name)]
        return tuple(sorted(found, key=lambda name: in_order(self.group.get(name, ""))))

    @cached_property
    def parts(self) -> dict[str, slice]:
        """Of every group its part of a vector."""
        found: dict[str, slice] = {}
        for name, place in self.places.items():
            group = self.group.get(name, "")
            found[group] = slice(found[group].start if group in found else place.at, place.at + place.size)
        return found

    @property
    def shape(self) -> tuple[int, ...]:
        """Of coefficients: [K], or [G, K]."""
        return (len(self),) if len(self.parts) < 2 else (len(self.parts), len(self))

    @cached_property
    def places(self) -> dict[str, Place]:
        """Of every tensor that is combined its place in a vector."""
        found, at = {}, 0
        for name in self.moved:
            found[name] = Place(at, self.last[name].shape)
            at += found[name].size
        return found

    @property
    def size(self) -> int:
        """P."""
        return sum(place.size for place in self.places.values())

    def rounding(self) -> Callable[[NDArray], None] | None:
        """Rounds a vector, in place, to what is stored of it; None where that is float32 or more throughout."""
        narrow = {name: place for name, place in self.places.items() if self.last[name].dtype in ("BF16", "F16")}
        if not narrow:
            return None

        def rounded(theta: NDArray) -> None:
            for name, place in narrow.items():
                part, dtype = theta[place.at : place.at + place.size], self.last[name].dtype
                part[:] = loops().widen(loops().round(part, dtype), dtype)

        return rounded

    @property
    def kept(self) -> tuple[str, ...]:
        """The names of what is the last checkpoint's."""
        return tuple(name for name in self.last if name not in self.places)

    def _moves(self, name: str) -> bool:
        last = self.last[name]
        return not all(_are_same(last, tensors[name]) for tensors in self.tensors[:-1])


def series_of(
    checkpoints: Mapping[str, Checkpoint],
    averages: Mapping[str, Checkpoint] | None = None,
    *,
    fused: bool = False,
    by: By | None = None,
) -> Series:
    """A series of checkpoints, oldest first; raises RekindleError where they are not alike, or there is but one.

    `averages`: that its run kept. `fused`: by transformers' names, a layer's experts stacked; else by the names on
    disk. `by`: in groups.
    """
    if len(checkpoints) < 2:
        what = f"A combination is of several checkpoints, and there is {counted(len(checkpoints), 'checkpoint')}."
        raise RekindleError(what, hint="run/checkpoint-*, or ARCHIVE@*")
    for checkpoint in checkpoints.values():
        checkpoint.folder.need_weights()
    averages = averages or {}
    check_alike({**checkpoints, **averages})
    group = groups_of([*checkpoints.values()][-1], by, fused=fused) if by else {}
    tensors, kept = (
        {name: plan(one, fused=fused).tensors for name, one in some.items()} for some in (checkpoints, averages)
    )
    series = Series(checkpoints, [*tensors.values()], group, kept)
    if not series.places:
        what = f"All {len(series)} checkpoints are the same: there is nothing to combine."
        raise RekindleError(what, hint="checkpoints of several steps of a run")
    return series


def windows(places: Mapping[str, Place], most: int) -> Iterator[tuple[str, int, int, int]]:
    """(name, first row, row behind the last, place in a vector) of pieces of about `most` values."""
    for name, place in places.items():
        width = place.shape[-1] if len(place.shape) > 1 else 1
        step, rows = max(1, most // width), place.size // width
        for lo in range(0, rows, step):
            yield name, lo, min(lo + step, rows), place.at + lo * width


def _is_summed(name: str, x: Expr) -> bool:
    return is_computable(x) and not name.endswith(STATISTICS) and prod(x.shape) > 0


def _are_same(one: Expr, other: Expr) -> bool:
    """Whether two tensors hold the same values: read as far as the first difference."""
    return isinstance(one, Leaf) and isinstance(other, Leaf) and same_bytes(one.stored, other.stored)
