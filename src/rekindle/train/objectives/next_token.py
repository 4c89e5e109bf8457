"""Next token: each token of a window of text is foreseen from those before it.

b rows   T tokens of a row
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch

from rekindle.apply.probe import one_tower
from rekindle.store.folder import Folder
from rekindle.train.config import EvaluateConfig, TrainConfig
from rekindle.train.losses import inputs_and_targets
from rekindle.train.model import check_ids
from rekindle.train.objectives import Batch, Split
from rekindle.train.objectives.labelled import Labelled, seed_of
from rekindle.train.plan import check_corpus
from rekindle.train.tokens import open_corpus


@dataclass(frozen=True)
class NextToken(Labelled):
    """Of windows [b, T + 1] of a corpus, in which a token without a loss stands as ~id; `seq_len` is T."""

    seq_len: int
    seed: int = 0
    name, output = "next-token", "causal"

    @classmethod
    def open(cls, config: TrainConfig | EvaluateConfig, seq_len: int, tokenizer: Any, vocab_size: int) -> NextToken:
        masked = isinstance(config, TrainConfig) and config.mask_prompt
        corpus = open_corpus(config.data, tokenizer, config.text_column, mask_prompt=masked)
        check_ids(corpus.meta.largest_id, vocab_size)
        return cls(corpus, seq_len, seed_of(config))

    @classmethod
    def foreseen(cls, config: TrainConfig, source: Folder) -> int:
        return config.seq_len

    @property
    def length(self) -> int:
        return self.seq_len

    @property
    def rows(self) -> int:
        check_corpus(self.corpus, self.seq_len)
        return self.corpus.windows(self.seq_len)

    def batch(self, first: int, count: int) -> Batch:
        return {"windows": torch.from_numpy(self.corpus.batch(first, count, self.seq_len, self.seed))}

    def sample(self, split: Split, tokens: int) -> Batch:
        return {"windows": torch.from_numpy(self.corpus.sample(split, tokens, self.seq_len))}

    def total(self, first: int, count: int) -> int:
        if not self.corpus.losses:
            return count * self.seq_len
        return int(self.targets(self.batch(first, count)).sum())

    def labels(self, batch: Batch) -> torch.Tensor:
        return inputs_and_targets(batch["windows"])[1]

    def inputs(self, model: Any, batch: Batch) -> dict[str, Any]:
        return one_tower(inputs_and_targets(batch["windows"])[0])

    def described(self) -> dict[str, Any]:
        return {
            "train_tokens": len(self.corpus.train),
            "train_losses": self.corpus.meta.train_losses,  # of those tokens, the ones that have a loss
        }
