"""What a run is going to do, checked before anything is loaded: steps, intervals, learning rates."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rekindle.anatomy import Settings
from rekindle.config import Count, Resolved
from rekindle.errors import RekindleError, together
from rekindle.train.budget import number_problems
from rekindle.train.config import TrainConfig
from rekindle.train.schedule import Schedule, make_schedule, saved_schedule
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


def with_whole_images(options: Resolved[TrainConfig], settings: Settings) -> Resolved[TrainConfig]:
    """Of a model that reads images, the options with rows of one image each, and steps of whole ones."""
    if not settings.num_channels:
        return options
    each, config = settings.context, options.config
    fitted = {"seq_len": each, "batch_tokens": Count(max(1, config.batch_tokens // each) * each)}
    changed: dict[str, Any] = {name: x for name, x in fitted.items() if options.origins[name] == "default"}
    origins = dict.fromkeys(changed, f"an image is {each} tokens")
    return Resolved(replace(config, **changed), {**options.origins, **origins})


def make_plan(config: TrainConfig, ranks: int, source: Path | None = None) -> Plan:
    """The plan of a run from the checkpoint in `source`; `tokens` is settled, see budget.

    Raises RekindleError with all that is wrong with the options.
    """
    problems = _problems(config, ranks)
    if problems:
        raise together(problems)
    assert config.tokens is not None
    continues = source is not None and config.schedule == "continue"
    saved = saved_schedule(source, config.optimizer_state) if continues else None
    steps = config.tokens // config.batch_tokens

    def interval(tokens: int | None) -> int:
        return max(1, round(tokens / config.batch_tokens if tokens else steps / 10))

    return Plan(
        steps=steps,
        batch=config.batch_tokens // config.seq_len,
        seq_len=config.seq_len,
        eval_interval=interval(config.eval_every),
        save_interval=interval(config.save_every),
        schedule=make_schedule(config, steps * config.batch_tokens, saved),
    )


def check_corpus(corpus: Corpus, seq_len: int) -> None:
    """Refuse a corpus without a full sequence to train on."""
    if corpus.windows(seq_len) < 1:
        answers = " with an answer in it" if corpus.losses else ""
        raise RekindleError(
            f"The training text is {len(corpus.train)} tokens, too short for one sequence of {seq_len}{answers}.",
            hint="a smaller --seq-len, or more --data",
        )


def _problems(config: TrainConfig, ranks: int) -> list[RekindleError]:
    problems = number_problems(config)
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
