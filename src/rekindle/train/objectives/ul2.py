"""UL2: span corruption of several kinds, from few short spans to the whole end of a text, row by row.

Tay et al. 2022, arXiv 2205.05131, section 3.1, in the mixture of T5Gemma 2 (arXiv 2512.14856): spans of 3 tokens on
average, 15 % of a text; of 12, 50 %; of 32, 15 % and 50 %; and the last 75 %, as often as these together. Which kind a
row is, is drawn by (seed, row) alone.

Departures: no token says which kind a row is; texts are as long as makes the inputs of the first kind `seq_len` tokens.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from rekindle.store.folder import Folder
from rekindle.train.config import TrainConfig
from rekindle.train.losses import IGNORED
from rekindle.train.objectives import Batch
from rekindle.train.objectives.seq2seq import filled
from rekindle.train.objectives.span_corruption import Denoiser, SpanCorruption
from rekindle.train.order import drawn

END = Denoiser(math.inf, 0.75)  # one span, which is the last that stands in a text
MIXTURE = (Denoiser(3, 0.15), Denoiser(12, 0.5), Denoiser(32, 0.15), Denoiser(32, 0.5), END, END, END, END)


@dataclass(frozen=True)
class UL2(SpanCorruption):
    """Batches as wide as their longest rows."""

    name = "ul2"

    @classmethod
    def foreseen(cls, config: TrainConfig, source: Folder) -> int:
        super().foreseen(config, source)
        return _longest(cls.denoiser.raw(config.seq_len))

    @property
    def length(self) -> int:
        return _longest(self.raw)

    def total(self, first: int, count: int) -> int:
        written = np.array([denoiser.lengths(self.raw)[1] for denoiser in MIXTURE])
        return int(written[_kinds(self.seed, np.arange(first, first + count))].sum())

    def described(self) -> dict[str, Any]:
        return super().described() | {"train_losses": self.total(0, self.rows)}

    def _corrupted(self, windows: np.ndarray, seed: int, rows: np.ndarray) -> Batch:
        kinds, found = _kinds(seed, rows), []
        for kind in dict.fromkeys(MIXTURE):
            chosen = np.array([MIXTURE[number] == kind for number in kinds])
            if chosen.any():
                sides = (side.numpy() for side in self._of_kind(windows[chosen], kind, seed, rows[chosen]))
                found += zip(*sides, strict=True)
        inputs, labels = zip(*found, strict=True)
        mask = filled([np.ones(len(ids), np.int64) for ids in inputs], 0)
        return {"input_ids": filled(inputs, self.end), "attention_mask": mask, "labels": filled(labels, IGNORED)}


def _kinds(seed: int, rows: np.ndarray) -> np.ndarray:
    """Which of MIXTURE each row is [n]."""
    return (drawn(seed, rows, 1)[:, 0] % np.uint64(len(MIXTURE))).astype(np.int64)


def _longest(raw: int) -> int:
    return max(denoiser.lengths(raw)[1] for denoiser in MIXTURE)
