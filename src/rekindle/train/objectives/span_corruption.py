"""Span corruption: spans of a text are taken out, and foreseen from what is left. T5's objective.

Raffel et al. 2020, arXiv 1910.10683, section 3.1.4: 15 % of the tokens, in spans of 3 on average. Each span leaves a
sentinel of its own behind in the inputs; the targets are each sentinel and what it stands for, in order. Both end with
the end-of-text token. A text is as long as makes the inputs exactly `seq_len` tokens; of two spans the lengths are any
with the same sum, all equally likely, and so are those of what stands between.

The sentinels are the tokenizer's <extra_id_0>, <extra_id_1>, ..., which T5 has at the top of its vocabulary in
descending order; of a tokenizer without them the ids beyond its own, from the top down, as far as the model has them.

Departures: the spans of a row are drawn by (seed, row) alone, so that a run that is resumed sees the same; and no
sentinel stands after the last span of the targets, as in T5's own code but not in the paper.

n rows   R tokens of a text   S tokens of its inputs   T of its targets
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from typing import Any, NamedTuple

import numpy as np
import torch

from rekindle.errors import RekindleError, counted
from rekindle.store.folder import Folder
from rekindle.train.config import EvaluateConfig, TrainConfig
from rekindle.train.model import check_ids, load_tokenizer, model_sizes
from rekindle.train.objectives import Batch, Split
from rekindle.train.objectives.labelled import seed_of
from rekindle.train.objectives.seq2seq import TeacherForced
from rekindle.train.order import drawn
from rekindle.train.plan import check_corpus
from rekindle.train.tokens import open_corpus

_HELD_OUT = -1  # in the place of the seed: every run is measured on the same spans


class Denoiser(NamedTuple):
    """Which spans are taken out."""

    mean_span: float = 3.0  # tokens
    density: float = 0.15  # share of the tokens

    def counts(self, raw: int) -> tuple[int, int]:
        """(tokens taken out of a text of `raw` tokens, spans)"""
        noise = min(max(round(raw * self.density), 1), raw - 1)
        return noise, max(1, min(round(noise / self.mean_span), noise, raw - noise))

    def lengths(self, raw: int) -> tuple[int, int]:
        """Tokens of inputs and targets."""
        noise, spans = self.counts(raw)
        return raw - noise + spans + 1, noise + spans + 1

    def raw(self, inputs: int) -> int:
        """The longest text whose inputs are `inputs` tokens."""
        raw = 2
        while self.lengths(raw + 1)[0] <= inputs:
            raw += 1
        return raw


@dataclass(frozen=True)
class SpanCorruption(TeacherForced):
    """`sentinels` are ids, one for each span in its order; `end` the end-of-text token; `seq_len` is S."""

    seq_len: int
    sentinels: tuple[int, ...]
    end: int
    seed: int = 0
    denoiser: Denoiser = Denoiser()
    name = "span-corruption"

    @classmethod
    def open(
        cls, config: TrainConfig | EvaluateConfig, seq_len: int, tokenizer: Any, vocab_size: int
    ) -> SpanCorruption:
        sentinels = _enough_sentinels(tokenizer, seq_len, vocab_size)
        corpus = open_corpus(config.data, tokenizer, config.text_column)
        check_ids(corpus.meta.largest_id, vocab_size)
        return cls(corpus, seq_len, sentinels, tokenizer.eos_token_id, seed_of(config))

    @classmethod
    def foreseen(cls, config: TrainConfig, source: Folder) -> int:
        if not source.bare:
            _enough_sentinels(load_tokenizer(source.path), config.seq_len, model_sizes(source.config)[0])
        return cls.denoiser.lengths(cls.denoiser.raw(config.seq_len))[1]

    @cached_property
    def raw(self) -> int:
        return self.denoiser.raw(self.seq_len)

    @property
    def length(self) -> int:
        return self.denoiser.lengths(self.raw)[1]

    @property
    def rows(self) -> int:
        check_corpus(self.corpus, self.raw)
        return self.corpus.windows(self.raw)

    def batch(self, first: int, count: int) -> Batch:
        windows = self.corpus.batch(first, count, self.raw, self.seed)
        return self._corrupted(windows, self.seed, np.arange(first, first + count))

    def sample(self, split: Split, tokens: int) -> Batch:
        windows = self.corpus.sample(split, tokens, self.raw)
        return self._corrupted(windows, _HELD_OUT, np.arange(len(windows)))

    def total(self, first: int, count: int) -> int:
        return count * self.length

    def described(self) -> dict[str, Any]:
        told = {"objective": self.name, "target_len": self.length}
        return {**told, "train_tokens": len(self.corpus.train), "train_losses": self.rows * self.length}

    def _corrupted(self, windows: np.ndarray, seed: int, rows: np.ndarray) -> Batch:
        """Of texts [n, R + 1], the last token of which belongs to the next."""
        inputs, labels = self._of_kind(windows, self.denoiser, seed, rows)
        return {"input_ids": inputs, "attention_mask": torch.ones_like(inputs), "labels": labels}

    def _of_kind(
        self, windows: np.ndarray, denoiser: Denoiser, seed: int, rows: np.ndarray
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Inputs [n, S] and targets [n, T]."""
        text = windows[:, :-1]
        kept, taken = spans_of(text.shape[1], denoiser, seed, rows)
        lengths = np.stack([kept, taken], axis=2)  # a text begins with what is kept
        noise = np.repeat(np.tile([False, True], kept.size), lengths.ravel()).reshape(text.shape)
        inputs = self._with_sentinels(text[~noise], np.cumsum(kept + 1, axis=1) - 1)
        return inputs, self._with_sentinels(text[noise], np.cumsum(taken + 1, axis=1) - (taken + 1))

    def _with_sentinels(self, tokens: np.ndarray, places: np.ndarray) -> torch.Tensor:
        """The tokens of n rows, one after the other, the sentinels at their `places` [n, spans], and the end."""
        n, spans = places.shape
        out = np.full((n, len(tokens) // n + spans + 1), self.end, dtype=np.int64)
        free = np.ones(out.shape, dtype=bool)
        free[:, -1] = False
        np.put_along_axis(free, places, False, axis=1)
        np.put_along_axis(out, places, np.array(self.sentinels[:spans])[None], axis=1)
        out[free] = tokens
        return torch.from_numpy(out)


def spans_of(raw: int, denoiser: Denoiser, seed: int, rows: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lengths of what is kept before each span, and of the spans [n, spans]: functions of seed and row alone."""
    noise, spans = denoiser.counts(raw)
    kept, taken = raw - noise, noise
    draws = drawn(seed, rows, kept + taken)
    return _parts(draws[:, : kept - 1], spans), _parts(draws[:, kept : kept + taken - 1], spans)


def _parts(draws: np.ndarray, parts: int) -> np.ndarray:
    """As many tokens as there are draws, and one, in so many parts of at least 1, each way as likely as any."""
    cuts = np.sort(np.argsort(draws, axis=1, kind="stable")[:, : parts - 1], axis=1) + 1
    return np.diff(cuts, axis=1, prepend=0, append=draws.shape[1] + 1)


def _enough_sentinels(tokenizer: Any, seq_len: int, vocab_size: int) -> tuple[int, ...]:
    """Those of a tokenizer; raises RekindleError where rows of `seq_len` cannot be made with it."""
    where = tokenizer.name_or_path or None
    if tokenizer.eos_token_id is None:
        raise RekindleError("Inputs and targets end with the end-of-text token, but there is none.", where=where)
    if seq_len < 4:
        raise RekindleError(f"Of {seq_len} tokens no span can be taken out.", hint="--seq-len 512")
    denoiser, found = SpanCorruption.denoiser, sentinels_of(tokenizer, vocab_size)
    _, spans = denoiser.counts(denoiser.raw(seq_len))
    if len(found) < spans:
        there = f"there {'is' if len(found) == 1 else 'are'} {counted(len(found), 'sentinel')}"
        fewer = ", or a smaller --seq-len" if found else ""
        raise RekindleError(
            f"Inputs of {seq_len} tokens have {counted(spans, 'span')}, but {there}.",
            where=where,
            why="a sentinel is a token <extra_id_0>, <extra_id_1>, ..., or an id that only the model has",
            hint=f"a tokenizer such as T5's{fewer}",
        )
    return found


def sentinels_of(tokenizer: Any, vocab_size: int) -> tuple[int, ...]:
    """The ids that stand for spans, the first span's first."""
    vocabulary = tokenizer.get_vocab()
    named = ((re.fullmatch(r"\u2581?<extra_id_(\d+)>", token), id_) for token, id_ in vocabulary.items())
    known = sorted((int(match[1]), id_) for match, id_ in named if match)
    if known:
        return tuple(id_ for _, id_ in known if id_ < vocab_size)
    return tuple(range(vocab_size - 1, max(vocabulary.values()), -1))
