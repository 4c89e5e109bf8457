"""Sequence to sequence: each token of a target, foreseen from the source and from those before it (teacher forcing).

Rows of data hold a source and a target text. Both end as the tokenizer ends a text; what is longer than its length is
cut before that end, and what is shorter is padded, which no tower looks at and no loss counts.

n rows   S longest source   T longest target
"""

from __future__ import annotations

import logging
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch

from rekindle.apply.probe import two_towers
from rekindle.store.folder import Folder
from rekindle.train.config import EvaluateConfig, TrainConfig
from rekindle.train.losses import IGNORED, cross_entropy
from rekindle.train.model import check_ids
from rekindle.train.objectives import Batch, Split
from rekindle.train.objectives.labelled import Labelled, seed_of
from rekindle.train.order import sample_windows
from rekindle.train.text import PairReading
from rekindle.train.tokens import Side, open_corpus

log = logging.getLogger(__name__)


class TeacherForced(Labelled):
    """Batches of input_ids, attention_mask and labels; the decoder reads the labels by the model's own shift."""

    output = "seq2seq"

    def labels(self, batch: Batch) -> torch.Tensor:
        return batch["labels"]

    def inputs(self, model: Any, batch: Batch) -> dict[str, Any]:
        return two_towers(model, batch["input_ids"], batch["attention_mask"], batch["labels"])

    def seen(self, batch: Batch) -> dict[str, torch.Tensor]:
        return {"encoder": batch["attention_mask"].bool(), "decoder": batch["labels"] != IGNORED}


@dataclass(frozen=True)
class Seq2Seq(TeacherForced):
    """Of a corpus in which each target, alone with a loss, follows its source; of at most so many tokens."""

    source_len: int
    target_len: int
    pad: int = 0
    seed: int = 0
    smoothing: float = 0.0
    name = "seq2seq"

    @classmethod
    def open(
        cls, config: TrainConfig | EvaluateConfig, seq_len: int, tokenizer: Any, vocab_size: int, writer: Any = None
    ) -> Seq2Seq:
        """`writer`: the tokenizer of targets, where that is another one."""
        reading = PairReading(config.source_column, target=config.target_column)
        corpus = open_corpus(config.data, tokenizer, pairs=reading, writer=writer)
        check_ids(corpus.meta.largest_id, vocab_size)
        target_len, pad = config.target_len or seq_len, tokenizer.pad_token_id or 0
        smoothing = config.label_smoothing if isinstance(config, TrainConfig) else 0.0
        made = cls(corpus, seq_len, target_len, pad, seed_of(config), smoothing)
        made._say_what_is_cut()
        return made

    @classmethod
    def foreseen(cls, config: TrainConfig, source: Folder) -> int:
        return config.target_len or config.seq_len

    def losses(self, out: Any, batch: Batch) -> dict[str, torch.Tensor]:
        """With `smoothing`, what the smoothed loss is more (Vaswani et al. 2017, arXiv 1706.03762, section 5.4)."""
        found = super().losses(out, batch)
        if self.smoothing:
            smoothed = cross_entropy(out.logits, self.labels(batch), self.smoothing)
            found["smoothing"] = smoothed - found["loss"]
        return found

    def prompts(self, batch: Batch) -> Batch:
        """What a text is written for."""
        return {name: batch[name] for name in ("input_ids", "attention_mask")}

    @property
    def length(self) -> int:
        return self.target_len

    @property
    def rows(self) -> int:
        return len(self._places["train"])

    def batch(self, first: int, count: int) -> Batch:
        """Shorter rows first, so that parts of a batch are padded less: its order weighs nothing."""
        rows = self._cut("train", sample_windows(first, count, self.rows, self.seed))
        return self._padded(sorted(rows, key=lambda row: len(row[0]) + len(row[1])))

    def sample(self, split: Split, tokens: int) -> Batch:
        sides: list[Side] = ["train", "validation"] if split == "all" else [split]
        share = min(1.0, tokens / sum(self._lengths(side).sum() for side in sides))
        chosen = []
        for side in sides:
            there = len(self._places[side])
            wanted = max(1, int(share * there))
            chosen += self._cut(side, np.arange(wanted, dtype=np.int64) * there // wanted)
        return self._padded(chosen)

    def total(self, first: int, count: int) -> int:
        numbers = sample_windows(first, count, self.rows, self.seed)
        return int(self._lengths("train", numbers)[:, 1].sum())

    def text(self) -> dict[str, Any]:
        smoothed = {"label smoothing": self.smoothing} if self.smoothing else {}
        return {"objective": self.name, "target length": self.target_len, **smoothed} | super().text()

    def described(self) -> dict[str, Any]:
        sources, targets = self._lengths("train").sum(0).tolist()
        told = {"objective": self.name, "target_len": self.target_len}
        return {**told, "train_tokens": sources + targets, "train_losses": targets}

    @cached_property
    def _places(self) -> dict[Side, np.ndarray]:
        """Where each row's source begins, its target begins, and that ends [n, 3]."""
        return {side: _places(self.corpus.losses[side]) for side in ("train", "validation")}

    def _lengths(self, side: Side, numbers: Any = slice(None)) -> np.ndarray:
        """Tokens of the source and the target of all rows, or of some, as they are cut [n, 2]."""
        return np.minimum(np.diff(self._places[side][numbers], axis=1), (self.source_len, self.target_len))

    def _cut(self, side: Side, numbers: np.ndarray) -> list[tuple[np.ndarray, np.ndarray]]:
        stream = self.corpus.train if side == "train" else self.corpus.validation
        places = self._places[side][numbers]
        return [(cut_to(stream[a:b], self.source_len), cut_to(stream[b:c], self.target_len)) for a, b, c in places]

    def _padded(self, rows: list[tuple[np.ndarray, np.ndarray]]) -> Batch:
        """As wide as the longest of these rows."""
        sources, targets = zip(*rows, strict=True)
        mask = filled([np.ones(len(ids), np.int64) for ids in sources], 0)
        return {"input_ids": filled(sources, self.pad), "attention_mask": mask, "labels": filled(targets, IGNORED)}

    def _say_what_is_cut(self) -> None:
        lengths = np.diff(self._places["train"], axis=1)
        for what, longer, most in zip(
            ("sources", "targets"), lengths.T, (self.source_len, self.target_len), strict=True
        ):
            if cut := int((longer > most).sum()):
                log.warning("%s of %s %s are longer than %s tokens, and are cut", cut, len(lengths), what, most)


def _places(losses: np.ndarray) -> np.ndarray:
    turns = np.flatnonzero(losses[1:] != losses[:-1]) + 1  # to a target, to the next source, ...
    edges = np.concatenate([[0], turns, [len(losses)]]) if len(losses) else np.zeros(1, np.int64)
    return np.stack([edges[:-1:2], edges[1::2], edges[2::2]], axis=1).astype(np.int64)


def cut_to(ids: np.ndarray, length: int) -> np.ndarray:
    """At most `length` of the ids, the last of them being that of all: the end of the text."""
    return ids if len(ids) <= length else np.append(ids[: length - 1], ids[-1:])


def filled(rows: Any, value: int) -> torch.Tensor:
    """[n, longest], int64."""
    out = np.full((len(rows), max(map(len, rows))), value, dtype=np.int64)
    for row, ids in zip(out, rows, strict=True):
        row[: len(ids)] = ids
    return torch.from_numpy(out)
