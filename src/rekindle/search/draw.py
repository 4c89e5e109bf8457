"""Which data, and which noise, a score is of: no candidate is judged twice by what it was chosen by."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from typing import Literal

Split = Literal["search", "rerank", "report"]


@dataclass(frozen=True)
class Draw:
    """A draw of the data that is searched on, of other data for the best few, or of what is reported.

    Two candidates that are scored on one draw see the same data and the same noise. `share`: of its samples, the first
    so many are enough.
    """

    split: Split
    number: int = 0
    share: float = 1.0
    key: int = 0  # the seed of the whole search

    @property
    def seed(self) -> int:
        """For a generator of noise: another for each split and number, the same for any share."""
        text = f"{self.key}/{self.split}/{self.number}"
        return int.from_bytes(hashlib.blake2b(text.encode(), digest_size=6).digest(), "big")
