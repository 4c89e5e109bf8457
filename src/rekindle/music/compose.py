"""Tunes out of a model that was trained on texts and tunes: drawn token by token, free or by the grammar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from rekindle.anatomy import family_of
from rekindle.apply.load import load_model, quietly
from rekindle.edit import checkpoint_at
from rekindle.errors import RekindleError
from rekindle.music.config import ComposeConfig
from rekindle.music.grammar import Grammar
from rekindle.music.recipe import SOURCE
from rekindle.music.request import Request, check_opening, grammar_of
from rekindle.music.vocabulary import is_of_tunes
from rekindle.progress import Progress
from rekindle.train.device import make_accelerator
from rekindle.train.encoder import Encoder
from rekindle.train.model import tokenizers_of
from rekindle.train.objectives.seq2seq import cut_to, filled

AT_ONCE = 32  # tunes that are drawn together


@dataclass(frozen=True)
class Composed:
    """`text`: a plain tune. `cost`: -log of the probability that the grammar left, nats of all tokens; None without it.

    `ended`: whether it came to its end within the longest.
    """

    text: str
    tokens: int
    ended: bool
    cost: float | None


@dataclass(frozen=True)
class Composer:
    """A model that was trained on texts and tunes, with its tokenizers."""

    model: Any
    reads: Any
    writes: Any
    context: int

    @classmethod
    def load(cls, folder: Path) -> Composer:
        """Raises RekindleError for a model that writes no tunes."""
        source = checkpoint_at(folder).folder
        reads, writes = tokenizers_of(source)
        if not is_of_tunes(writes):
            what = "This model was not trained on tunes: its vocabulary is not that of ABC."
            raise RekindleError(what, where=folder, hint="rekindle music train OUT --data DATA")
        if family_of(source.config).settings(source.config).output != "seq2seq":
            what = "This model writes tunes, but reads no text: it is a decoder alone."
            raise RekindleError(what, where=folder, hint=f"rekindle music train OUT --decoder {folder}")
        model = load_model(source, output="seq2seq").to(make_accelerator("fp32").device)
        return cls(model.eval(), reads, writes, writes.model_max_length)

    def compose(self, wanted: Sequence[Request], config: ComposeConfig) -> list[Composed]:
        """One tune for each request, the same for the same seed; `config.count` has no part in it."""
        _check(config)
        longest = min(config.longest, self.context - 1)
        if config.strict:
            for one in {id(one): one for one in wanted}.values():
                check_opening(one, longest)
        found: list[Composed] = []
        with torch.random.fork_rng(), Progress("compose", len(wanted), "tunes") as bar:
            torch.manual_seed(config.seed)
            for at in range(0, len(wanted), AT_ONCE):
                found += self._drawn(wanted[at : at + AT_ONCE], config, longest)
                bar.update(len(wanted[at : at + AT_ONCE]))
        return found

    @torch.no_grad()
    def _drawn(self, wanted: Sequence[Request], config: ComposeConfig, longest: int) -> list[Composed]:
        device, end = self.model.device, self.writes.eos_token_id
        texts = [cut_to(ids, SOURCE) for ids in Encoder(self.reads, pairs=True).whole([one.text for one in wanted])]
        ids, mask = filled(texts, self.reads.pad_token_id or 0), filled([np.ones_like(text) for text in texts], 0)
        shown = {"input_ids": ids.to(device), "attention_mask": mask.to(device)}
        strict = Strict(self.writes, [grammar_of(one, longest) for one in wanted]) if config.strict else None
        draw: list[Any] = [Opened(self.writes, [one.opening for one in wanted]), *([strict] if strict else [])]
        if config.temperature != 1:
            draw.append(TemperatureLogitsWarper(config.temperature))
        draw.append(TopPLogitsWarper(config.top_p))
        how = {"do_sample": True, "top_k": 0, "num_beams": 1, "max_new_tokens": longest}
        with quietly():
            ids = self.model.generate(**shown, **how, logits_processor=LogitsProcessorList(draw))
        tunes = []
        for at, row in enumerate(ids[:, 1:].tolist()):
            written = row[: row.index(end)] if end in row else row
            text = self.writes.decode(written, skip_special_tokens=True)
            tunes.append(Composed(text, len(written), end in row, strict.costs[at] if strict else None))
        return tunes


def _check(config: ComposeConfig) -> None:
    if config.count < 1:
        raise RekindleError(f"count is {config.count}, but it must be at least 1.", where="option count")
    if not config.temperature > 0 or not math.isfinite(config.temperature):
        raise RekindleError(
            f"temperature is {config.temperature:g}, but it must be above 0.", where="option temperature"
        )
    if not 0 < config.top_p <= 1:
        raise RekindleError(f"top_p is {config.top_p:g}, but it is a share: above 0, at most 1.", where="option top-p")
    if config.longest < 100:
        raise RekindleError(f"longest is {config.longest}, but a tune needs 100 tokens.", where="option longest")


class Opened(LogitsProcessor):
    """The tokens that each tune begins with; where they are None, or over, the model's own."""

    def __init__(self, tokenizer: Any, openings: Sequence[Sequence[str | None]]):
        ids = tokenizer.convert_tokens_to_ids
        self.openings = [[None if token is None else ids(token) for token in opening] for opening in openings]

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        at = input_ids.shape[1] - 1  # behind the token that it starts from
        for row, opening in enumerate(self.openings):
            if at < len(opening) and opening[at] is not None:
                scores[row] = -torch.inf
                scores[row, opening[at]] = 0
        return scores


class Strict(LogitsProcessor):
    """Only what the grammar allows. `costs`: of each row, -log of the probability that this leaves, summed."""

    def __init__(self, tokenizer: Any, grammars: Sequence[Grammar]):
        self.ids = tokenizer.get_vocab()
        self.tokens = {number: token for token, number in self.ids.items()}
        self.grammars = list(grammars)
        self.costs = [0.0] * len(self.grammars)

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        forbidden = torch.ones_like(scores, dtype=torch.bool)
        logs = scores.float().log_softmax(-1)
        for row, grammar in enumerate(self.grammars):
            if input_ids.shape[1] > 1 and not grammar.over:
                grammar = self.grammars[row] = grammar.take(self.tokens[int(input_ids[row, -1])])
            allowed = [self.ids[token] for token in grammar.allowed()]
            forbidden[row, allowed] = False
            if not grammar.over:
                self.costs[row] -= float(logs[row, allowed].logsumexp(0).clamp(max=0))
        scores.masked_fill_(forbidden, -torch.inf)
        return scores
