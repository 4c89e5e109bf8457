"""Prefix language modelling: the encoder reads the beginning of a text, and the decoder goes on from there.

Raffel et al. 2020, arXiv 1910.10683, section 3.2.3; it is what decoders that become encoder-decoders are first trained
by (Zhang et al. 2025, arXiv 2504.06225). A text is `seq_len` and `target_len` tokens long, and cut between them.

n rows   S tokens that are read   T tokens that are written
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from rekindle.store.folder import Folder
from rekindle.train.config import EvaluateConfig, TrainConfig
from rekindle.train.model import check_ids
from rekindle.train.objectives import Batch, Split
from rekindle.train.objectives.labelled import seed_of
from rekindle.train.objectives.seq2seq import TeacherForced
from rekindle.train.plan import check_corpus
from rekindle.train.tokens import open_corpus


@dataclass(frozen=True)
class PrefixLM(TeacherForced):
    """Of windows [n, S + T] of a corpus."""

    seq_len: int
    target_len: int
    seed: int = 0
    name = "prefix-lm"

    @classmethod
    def open(cls, config: TrainConfig | EvaluateConfig, seq_len: int, tokenizer: Any, vocab_size: int) -> PrefixLM:
        corpus = open_corpus(config.data, tokenizer, config.text_column)
        check_ids(corpus.meta.largest_id, vocab_size)
        return cls(corpus, seq_len, config.target_len or seq_len, seed_of(config))

    @classmethod
    def foreseen(cls, config: TrainConfig, source: Folder) -> int:
        return config.target_len or config.seq_len

    @property
    def raw(self) -> int:
        return self.seq_len + self.target_len

    @property
    def length(self) -> int:
        return self.target_len

    @property
    def rows(self) -> int:
        check_corpus(self.corpus, self.raw)
        return self.corpus.windows(self.raw)

    def batch(self, first: int, count: int) -> Batch:
        return self._cut(self.corpus.batch(first, count, self.raw, self.seed))

    def sample(self, split: Split, tokens: int) -> Batch:
        return self._cut(self.corpus.sample(split, tokens, self.raw))

    def total(self, first: int, count: int) -> int:
        return count * self.target_len

    def text(self) -> dict[str, Any]:
        return {"target length": self.target_len} | super().text()

    def described(self) -> dict[str, Any]:
        told = {"objective": self.name, "target_len": self.target_len}
        return {**told, "train_tokens": len(self.corpus.train), "train_losses": self.rows * self.target_len}

    def _cut(self, windows: np.ndarray) -> Batch:
        """Of texts [n, S + T + 1], the last token of which belongs to the next."""
        text = torch.from_numpy(windows[:, :-1])
        read, written = (part.contiguous() for part in text.tensor_split([self.seq_len], dim=1))
        return {"input_ids": read, "attention_mask": torch.ones_like(read), "labels": written}
