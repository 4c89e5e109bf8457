"""Image classification: the label of each image, by cross entropy; an image counts as the tokens a model makes of it.

b rows, each an image   C channels   H, W pixels   L labels
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from rekindle.anatomy import family_of
from rekindle.errors import RekindleError, counted
from rekindle.store.folder import Folder
from rekindle.train.config import EvaluateConfig, TrainConfig
from rekindle.train.image_source import open_images
from rekindle.train.images import Images
from rekindle.train.objectives import Batch, Split
from rekindle.train.objectives.labelled import seed_of
from rekindle.train.order import sample_windows
from rekindle.train.pixels import Processing


@dataclass(frozen=True)
class ImageClassification:
    """Batches of pixel_values [b, C, H, W] and label [b]; `seq_len` is the tokens of an image."""

    images: Images
    processing: Processing
    seq_len: int
    seed: int = 0
    name, output, length = "image-classification", "labels", 1
    measures = ("loss", "accuracy")

    @classmethod
    def of_images(cls, config: TrainConfig | EvaluateConfig, source: Folder) -> ImageClassification:
        """Raises RekindleError for images that are none, and for labels that the model has not."""
        settings = family_of(source.config).settings(source.config)
        label2id = source.config.get("label2id") or {}
        images = open_images(config.data).named_by(label2id)
        if (most := int(images.labels.max())) >= settings.num_labels:
            number = len(images.classes) or most + 1
            what = f"There are {number} classes of images, and the model knows {counted(settings.num_labels, 'label')}."
            hint = f"a model with a head of {number}: docs/images.md says how to give it one"
            raise RekindleError(what, where=images.where, hint=hint)
        processing = Processing(source.path, settings.num_channels, settings.image_size)
        return cls(images, processing, settings.context, seed_of(config))

    @classmethod
    def foreseen(cls, config: TrainConfig, source: Folder) -> int:
        return 1

    @property
    def rows(self) -> int:
        return len(self.images.sides["train"])

    def batch(self, first: int, count: int) -> Batch:
        return self._rows(self.images.sides["train"][sample_windows(first, count, self.rows, self.seed)])

    def sample(self, split: Split, tokens: int) -> Batch:
        """As many images as have about so many tokens, spread evenly over those that are there."""
        sides = self.images.sides
        there = np.sort(np.concatenate(list(sides.values()))) if split == "all" else sides[split]
        return self._rows(self.images.spread(there, max(1, tokens // self.seq_len)))

    def total(self, first: int, count: int) -> int:
        return count

    def targets(self, batch: Batch) -> torch.Tensor:
        return torch.ones(len(batch["label"]), dtype=torch.int64)

    def seen(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {}

    def inputs(self, model: Any, batch: Batch) -> dict[str, Any]:
        return {"pixel_values": batch["pixel_values"]}

    def losses(self, out: Any, batch: Batch) -> dict[str, torch.Tensor]:
        return {"loss": F.cross_entropy(out.logits.float(), batch["label"])}

    def each(self, out: Any, batch: Batch) -> dict[str, torch.Tensor]:
        loss = F.cross_entropy(out.logits.float(), batch["label"], reduction="none")
        return {"loss": loss, "accuracy": (out.logits.argmax(-1) == batch["label"]).float()}

    @property
    def digest(self) -> str:
        return self.images.digest

    def text(self) -> dict[str, Any]:
        return {"objective": self.name, "training images": self.rows, "digest of all images": self.digest}

    def described(self) -> dict[str, Any]:
        told = {"objective": self.name, "train_tokens": self.rows * self.seq_len, "train_losses": self.rows}
        return {**told, "train_images": self.rows, "labels": int(self.images.labels.max()) + 1}

    def _rows(self, numbers: np.ndarray) -> Batch:
        pixels = self.processing(self.images.read(numbers))
        return {"pixel_values": pixels, "label": torch.from_numpy(self.images.labels[numbers].astype(np.int64))}
