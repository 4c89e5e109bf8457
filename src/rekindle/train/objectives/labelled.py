"""What objectives share whose targets are tokens: cross entropy, in nats per token that has a loss.

b rows   T targets of a row   V vocabulary
"""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch.nn import functional as F

from rekindle.train.config import EvaluateConfig, TrainConfig
from rekindle.train.losses import IGNORED, cross_entropy
from rekindle.train.objectives import Batch
from rekindle.train.tokens import Corpus


@dataclass(frozen=True)
class Labelled:
    """Cross entropy of logits [b, T, V] with the labels of a batch; the tokens are those of a corpus."""

    corpus: Corpus
    name: ClassVar[str]
    measures = ("loss",)

    @property
    @abstractmethod
    def length(self) -> int:
        """Labels of a row that has them all, see Objective."""

    @abstractmethod
    def labels(self, batch: Batch) -> torch.Tensor:
        """The tokens to foresee [b, T], IGNORED where there is no loss."""

    def targets(self, batch: Batch) -> torch.Tensor:
        return (self.labels(batch) != IGNORED).sum(1)

    def seen(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {}

    def losses(self, out: Any, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": cross_entropy(out.logits, self.labels(batch))}

    def each(self, out: Any, batch: Batch) -> dict[str, torch.Tensor]:
        labels = self.labels(batch)
        losses = F.cross_entropy(out.logits.flatten(0, 1).float(), labels.flatten(), reduction="none")
        shorter = labels.shape[1] / self.length  # than a row can be, where a batch is as wide as its longest
        return {"loss": losses.view(labels.shape).mean(1) * shorter}

    @property
    def digest(self) -> str:
        return self.corpus.digest

    def text(self) -> dict[str, Any]:
        known = {"tokens of training text": len(self.corpus.train), "digest of all text": self.digest}
        return {"objective": self.name, **known}


def seed_of(config: TrainConfig | EvaluateConfig) -> int:
    """Of the order of rows; an evaluation has none."""
    return config.seed if isinstance(config, TrainConfig) else 0
