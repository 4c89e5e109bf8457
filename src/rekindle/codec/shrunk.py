"""A checkpoint that was changed before it is packed, so that it takes less, and how far it is from what it was."""

from __future__ import annotations

import threading
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rekindle.codec.source import Source

Floats = NDArray[np.float32]

LOSSLESS = "lossless"
LARGE = 1e150  # beyond it squares overflow: neither these nor infinities and NaN count among the errors
LEAST = 128  # values: smaller tensors stay as they are


@dataclass
class Errors:
    """Of each tensor, largest and squared difference and the values' own squares; by piece, since pieces come twice."""

    known: Mapping[int, tuple[float, float]] = field(default_factory=dict)  # of earlier: what it had when it was packed
    pieces: dict[int, dict[int, tuple[float, float, float]]] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)

    def note(self, tensor: int, start: int, given: Floats, made: Floats) -> None:
        with np.errstate(invalid="ignore", over="ignore"):
            own = given.astype(np.float64)
            sound = np.abs(own) < LARGE
            own, apart = np.where(sound, own, 0), np.where(sound, own - made, 0)
            # not by BLAS, whose sums differ with its threads
            found = float(np.abs(apart).max(initial=0)), float(np.sum(apart * apart)), float(np.sum(own * own))
        with self.lock:
            self.pieces.setdefault(tensor, {})[start] = found

    def to_index(self) -> dict[int, tuple[float, float]]:
        """Tensor -> largest absolute error, and root mean square error as a share of the values' own."""
        found = dict(self.known)
        for tensor, pieces in sorted(self.pieces.items()):
            most, apart, own = zip(*(pieces[start] for start in sorted(pieces)), strict=True)
            found[tensor] = max(most), (sum(apart) / sum(own)) ** 0.5 if sum(own) else 0.0
        return found


@dataclass(frozen=True)
class Shrunk:
    """The source that is packed in another's place; `centres` [k] of each tensor that has only so many values.

    Tensors in `last` can only be read when all others have been. `kept` says what stays as it is, and why.
    """

    source: Source
    centres: Mapping[int, Floats] = field(default_factory=dict)
    errors: Errors = field(default_factory=Errors)
    last: Collection[int] = ()
    kept: str | None = None
