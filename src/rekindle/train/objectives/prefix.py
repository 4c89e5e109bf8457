"""Sequence to sequence for a model of one tower: it reads the source as the beginning of what it writes.

Source and target stand one behind the other, each ended as for `seq2seq`, and the target alone has a loss. This is how
a GPT is a sequence-to-sequence model without an encoder: Rothe, Narayan and Severyn 2020, arXiv 1907.12461, section 3.

n rows   S longest source   T longest target
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rekindle.apply.probe import one_tower
from rekindle.store.folder import Folder
from rekindle.train.config import TrainConfig
from rekindle.train.losses import IGNORED
from rekindle.train.objectives import Batch
from rekindle.train.objectives.seq2seq import Seq2Seq, filled


@dataclass(frozen=True)
class Prefix(Seq2Seq):
    """Batches of input_ids, attention_mask and labels [n, S + T - 1], each label that of the token behind."""

    output = "causal"

    @classmethod
    def foreseen(cls, config: TrainConfig, source: Folder) -> int:
        return config.seq_len + super().foreseen(config, source)

    @property
    def length(self) -> int:
        return self.source_len + self.target_len

    def inputs(self, model: Any, batch: Batch) -> dict[str, Any]:
        return one_tower(batch["input_ids"], batch["attention_mask"])

    def seen(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"": batch["attention_mask"].bool()}

    def prompts(self, batch: Batch) -> Batch:
        """Each source up to where its target begins, the shorter ones padded before their first token."""
        ends = (batch["labels"] != IGNORED).int().argmax(1) + 1
        longest = int(ends.max())
        places = torch.arange(longest, device=ends.device) - (longest - ends)[:, None]
        ids = batch["input_ids"].gather(1, places.clamp(min=0))
        return {"input_ids": ids.where(places >= 0, self.pad), "attention_mask": (places >= 0).long()}

    def _padded(self, rows: list[tuple[np.ndarray, np.ndarray]]) -> Batch:
        whole = [np.concatenate(row)[:-1] for row in rows]
        labels = [np.concatenate([np.full(len(source) - 1, IGNORED), target]) for source, target in rows]
        mask = filled([np.ones(len(ids), np.int64) for ids in whole], 0)
        return {"input_ids": filled(whole, self.pad), "attention_mask": mask, "labels": filled(labels, IGNORED)}
