"""Tunes out of a model that was trained on texts and tunes: drawn token by token, free or by the grammar."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LogitsProcessor, LogitsProcessorList, TemperatureLogitsWarper, TopPLogitsWarper

from rekindle.anatomy import family_of
from rekindle.apply.load import load_model, quietly
from rekindle.edit import checkpoint_at
from rekindle.errors import RekindleError
from rekindle.music.abc.header import Written, tunes_of
from rekindle.music.abc.keys import Key, parse_key
from rekindle.music.abc.metre import parse_metre
from rekindle.music.abc.plain import UNITS, NotPlain, Plain, plain
from rekindle.music.abc.reader import read_tune
from rekindle.music.books import decoded
from rekindle.music.config import ComposeConfig
from rekindle.music.grammar import Grammar, follow
from rekindle.music.vocabulary import is_of_tunes, pieces
from rekindle.music.words import Facts, asked, facts, metres_of, sentences
from rekindle.progress import Progress
from rekindle.train.device import make_accelerator
from rekindle.train.model import tokenizers_of

AT_ONCE = 16  # tunes that are drawn together
LONGEST_TEXT = 2000  # characters that are asked for
_LIKE_BARS = 2


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
class Request:
    """What is asked for: a text, what it names, and how each tune begins: None is a field that the model draws."""

    text: str
    wanted: Facts
    opening: tuple[str | None, ...] = ()


def request(text: str, config: ComposeConfig) -> Request:
    """Raises RekindleError for a text, a beginning or a file that says nothing or cannot be."""
    like = _like(Path(config.like).expanduser()) if config.like else None
    if not text.strip() and like is None:
        raise RekindleError("The text is empty.", hint='rekindle compose CKPT "a lively reel in D major"')
    if len(text) > LONGEST_TEXT:
        what = f"The text has {len(text):,} characters, but a tune is asked for in {LONGEST_TEXT:,} at most."
        raise RekindleError(what, hint="a sentence: its kind, its key, its metre")
    if config.begin and like:
        raise RekindleError("Both say how the tunes begin.", where="options begin and like", hint="one of them")
    if like:
        text = text if text.strip() else sentences(like[1])[0]
        wanted = asked(text)
        return Request(text, wanted, _opening_like(like[0], wanted))
    wanted = asked(text)
    return Request(text, wanted, _opening(config.begin, wanted) if config.begin else ())


def _like(path: Path) -> tuple[Plain, Facts]:
    try:
        text = decoded(path.read_bytes())
    except OSError as error:
        raise RekindleError(f"The tune cannot be read: {error.strerror}.", where=path) from None
    try:
        written = next(iter(tunes_of(text)))
        return plain(written), facts(read_tune(written))
    except NotPlain as error:
        raise RekindleError(f"No tune can be made like it: it {error}.", where=path) from None


def _opening_like(tune: Plain, wanted: Facts) -> tuple[str | None, ...]:
    """Its fields and its first bars, in the key of the text where that names another of the same mode."""
    if wanted.key and wanted.key.mode == tune.key.mode and wanted.key != tune.key:
        try:
            tune = tune.transposed(wanted.key.tonic)
        except NotPlain as error:
            raise RekindleError(f"No tune can be made like it: it {error}.", where="option like") from None
    tokens = pieces(tune.text)
    if tokens is None:
        raise RekindleError("Its spelling is beyond what models are taught.", where="option like")
    bars = [at for at, token in enumerate(tokens) if at > 3 and token == "|"]
    return tuple(tokens[: bars[min(_LIKE_BARS, len(bars) - 1)] + 1] if bars else tokens[:3])


def _opening(begin: str, wanted: Facts) -> tuple[str | None, ...]:
    """The fields that are known, by the beginning itself or by the text, and the bars in their plain spelling."""
    lines = begin.replace("\\n", "\n").strip().split("\n")
    fields = {line[0]: line[2:].strip() for line in lines if line[1:2] == ":" and line[0] in "MLK"}
    body = "\n".join(line for line in lines if not (line[1:2] == ":" and line[0].isalpha()))
    metre = parse_metre(fields["M"]) if "M" in fields else wanted.metre
    if not metre:
        hint = r"--begin 'M:6/8\nL:1/8\nK:D\n|:dBA FAd|', or a text with the metre"
        raise RekindleError("Nothing says which metre the bars have.", where="option begin", hint=hint)
    key = parse_key(fields["K"]) if "K" in fields else wanted.key
    unit = fields.get("L", "1/8")
    source = Written({"M": (metre,), "L": (unit,), "K": (key.spelt if key else "C",)}, body)
    try:
        tokens = pieces(plain(source).text)
    except NotPlain as error:
        raise RekindleError(f"No tune can begin so: it {error}.", where="option begin") from None
    if tokens is None or unit not in UNITS:
        raise RekindleError("Its spelling is beyond what models are taught.", where="option begin")
    bars = tokens[3:] if body.rstrip().endswith(("|", "|]", "]", ":")) else tokens[3:-1]
    if bars and bars[-1] == "|]" and body.rstrip().endswith("|") and not body.rstrip().endswith("||"):
        bars[-1] = "|"
    return (f"M:{metre}\n", f"L:{unit}\n", f"K:{key.spelt}\n" if key else None, *bars)


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

    def compose(self, wanted: Request, config: ComposeConfig) -> list[Composed]:
        """So many tunes, the same for the same seed."""
        _check(config)
        longest = min(config.longest, self.context - 1)
        opening = [None if token is None else self.writes.convert_tokens_to_ids(token) for token in wanted.opening]
        if config.strict:
            _check_opening(wanted, longest)
        found: list[Composed] = []
        with torch.random.fork_rng(), Progress("compose", config.count, "tunes") as bar:
            torch.manual_seed(config.seed)
            while len(found) < config.count:
                number = min(AT_ONCE, config.count - len(found))
                found += self._drawn(wanted, config, number, longest, opening)
                bar.update(number)
        return found

    @torch.no_grad()
    def _drawn(
        self, wanted: Request, config: ComposeConfig, number: int, longest: int, opening: list[int | None]
    ) -> list[Composed]:
        shown = self.reads([wanted.text], return_tensors="pt", truncation=True)
        device = self.model.device
        shown = {name: shown[name].to(device).repeat(number, 1) for name in ("input_ids", "attention_mask")}
        opened = Opened(opening)
        strict = Strict(self.writes, _grammar(wanted, longest), number) if config.strict else None
        draw: list[Any] = [opened, *([strict] if strict else [])]
        if config.temperature != 1:
            draw.append(TemperatureLogitsWarper(config.temperature))
        draw.append(TopPLogitsWarper(config.top_p))
        how = {"do_sample": True, "top_k": 0, "num_beams": 1, "max_new_tokens": longest}
        with quietly():
            ids = self.model.generate(**shown, **how, logits_processor=LogitsProcessorList(draw))
        end = self.writes.eos_token_id
        rows = [row[1:].tolist() for row in ids]
        tunes = []
        for at, row in enumerate(rows):
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


def _grammar(wanted: Request, longest: int) -> Grammar:
    keys = (wanted.wanted.key,) if wanted.wanted.key else ()
    return Grammar(metres=metres_of(wanted.wanted), keys=keys, longest=longest)


def _check_opening(wanted: Request, longest: int) -> None:
    """Raises RekindleError where what the tunes begin with cannot be the beginning of a whole tune."""
    any_key = f"K:{(wanted.wanted.key or Key('C', 'major')).spelt}\n"
    tokens = [token or any_key for token in wanted.opening]
    grammar = _grammar(wanted, longest)
    for at, token in enumerate(tokens):
        try:
            grammar = follow(grammar, [token])
        except ValueError:
            begun = "".join(tokens[: at + 1])[-40:]
            what = f"With --strict no tune can begin so: {begun!r} breaks its metre, its key or its form."
            raise RekindleError(what, where="the beginning", hint="other bars, or without --strict") from None


class Opened(LogitsProcessor):
    """The tokens that each tune begins with; None: the model's own."""

    def __init__(self, opening: Sequence[int | None]):
        self.opening = opening

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        at = input_ids.shape[1] - 1  # behind the token that it starts from
        token = self.opening[at] if at < len(self.opening) else None
        if token is None:
            return scores
        forced = torch.full_like(scores, -torch.inf)
        forced[:, token] = 0
        return forced  # type: ignore[return-value]


class Strict(LogitsProcessor):
    """Only what the grammar allows. `costs`: of each row, -log of the probability that this leaves, summed."""

    def __init__(self, tokenizer: Any, grammar: Grammar, rows: int):
        vocabulary = tokenizer.get_vocab()
        self.ids = vocabulary
        self.tokens = {number: token for token, number in vocabulary.items()}
        self.grammars = [grammar] * rows
        self.costs = [0.0] * rows

    def __call__(self, input_ids: torch.LongTensor, scores: torch.FloatTensor) -> torch.FloatTensor:
        mask = torch.full_like(scores, -torch.inf)
        logs = scores.float().log_softmax(-1)
        for row, grammar in enumerate(self.grammars):
            if input_ids.shape[1] > 1 and not grammar.over:
                grammar = self.grammars[row] = grammar.take(self.tokens[int(input_ids[row, -1])])
            allowed = [self.ids[token] for token in grammar.allowed()]
            mask[row, allowed] = 0
            if not grammar.over:
                self.costs[row] -= float(logs[row, allowed].logsumexp(0).clamp(max=0))
        return scores + mask  # type: ignore[return-value]
