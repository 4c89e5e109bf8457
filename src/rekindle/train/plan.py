"""What a run is going to do, checked before anything is loaded: steps, intervals, learning rates."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from rekindle.errors import RekindleError, together
from rekindle.train.config import TrainConfig
from rekindle.train.model import check_ids
from rekindle.train.schedule import Schedule, make_schedule
from rekindle.train.tokens import Corpus


@dataclass(frozen=True)
class Plan:
    """`batch` sequences of `seq_len` tokens a step; intervals in steps."""

    steps: int
    batch: int
    seq_len: int
    eval_interval: int
    save_interval: int
    schedule: Schedule

    @property
    def batch_tokens(self) -> int:
        return self.batch * self.seq_len

    @property
    def tokens(self) -> int:
        return self.steps * self.batch_tokens

    def learning_rate(self, step: int) -> float:
        """The schedule's value at the middle of the step's tokens."""
        return self.schedule((step + 0.5) * self.batch_tokens)


def make_plan(config: TrainConfig, ranks: int, saved_schedule: Mapping[str, Any] | None = None) -> Plan:
    """Raises RekindleError with all that is wrong with the options; `tokens` is settled, see budget."""
    problems = _problems(config, ranks)
    if problems:
        raise together(problems)
    assert config.tokens is not None
    steps = config.tokens // config.batch_tokens

    def interval(tokens: int | None) -> int:
        return max(1, round(tokens / config.batch_tokens if tokens else steps / 10))

    return Plan(
        steps=steps,
        batch=config.batch_tokens // config.seq_len,
        seq_len=config.seq_len,
        eval_interval=interval(config.eval_every),
        save_interval=interval(config.save_every),
        schedule=make_schedule(config, steps * config.batch_tokens, saved_schedule),
    )


def check_corpus(corpus: Corpus, seq_len: int, vocab_size: int) -> None:
    """Refuse a corpus without a full sequence, or with a token the model has no embedding for."""
    if corpus.windows(seq_len) < 1:
        raise RekindleError(
            f"The training text is {len(corpus.train)} tokens, too short for one sequence of {seq_len}.",
            hint="a smaller --seq-len, or more --data",
        )
    check_ids(corpus.meta.largest_id, vocab_size)


def _problems(config: TrainConfig, ranks: int) -> list[RekindleError]:
    problems = []
    positive = ("tokens", "batch_tokens", "seq_len", "lr", "eval_tokens", "eval_every", "save_every", "micro_batch")
    not_negative = ("weight_decay", "clip", "aux_loss", "z_loss", "seed", "skip")
    for name in positive + not_negative:
        value = getattr(config, name)
        if value is not None and not (value > 0 or (value == 0 and name in not_negative)):
            what = "positive" if name in positive else "at least 0"
            problems.append(RekindleError(f"{name} is {value}, but it must be {what}.", where=f"option {name}"))
    if not 0 <= config.beta2 < 1:
        problems.append(RekindleError(f"beta2 is {config.beta2}, but it must be in [0, 1).", where="option beta2"))
    if problems:
        return problems
    sequences, rest = divmod(config.batch_tokens, config.seq_len)
    if rest or sequences % ranks:
        unit = config.seq_len * ranks
        below, above = config.batch_tokens // unit * unit, -(-config.batch_tokens // unit) * unit
        devices = f" on {ranks} devices" if ranks > 1 else ""
        problems.append(
            RekindleError(
                f"batch_tokens is {config.batch_tokens}, not a multiple of the {unit} tokens of a sequence{devices}.",
                hint=f"--batch-tokens {below or above}" + (f" or {above}" if below else ""),
            )
        )
    if config.tokens is not None and config.tokens < config.batch_tokens:
        problems.append(
            RekindleError(
                f"tokens is {config.tokens}, less than one batch of {config.batch_tokens}.",
                hint=f"--tokens {config.batch_tokens} or more, or a smaller --batch-tokens",
            )
        )
    return problems
