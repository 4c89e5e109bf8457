"""What objectives share whose targets are tokens: cross entropy, in nats per token that has a loss.

b rows   T targets of a row   V vocabulary
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

import torch
from torch.nn import functional as F

from rekindle.train.losses import IGNORED, cross_entropy
from rekindle.train.objectives import Batch


class Labelled:
    """Cross entropy of logits [b, T, V] with the labels of a batch."""

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
