"""How many tokens a run trains on: a number, or a fraction of what the parent was trained on."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from dataclasses import replace

from rekindle.config import Count
from rekindle.errors import RekindleError, some, together
from rekindle.store.folder import Folder
from rekindle.store.lineage import before, origins, sunk
from rekindle.store.manifest import NAME, Record, read_manifest
from rekindle.train.config import TrainConfig

log = logging.getLogger(__name__)


def check_numbers(config: TrainConfig) -> None:
    """Raise RekindleError with all that is wrong with the options, whatever checkpoint and text are."""
    if problems := _problems(config) + number_problems(config):
        raise together(problems)


def with_tokens(config: TrainConfig, source: Folder) -> TrainConfig:
    """The options with `tokens` settled; raises RekindleError where they say too little, or too much."""
    fraction = config.fraction_of_parent
    if problems := _problems(config):
        raise together(problems)
    if fraction is None:
        return config
    parent = config.parent_tokens or _parent_tokens(source)
    log.info("%s tokens are %.3g of the %s that the parent was trained on", round(fraction * parent), fraction, parent)
    return replace(config, tokens=Count(round(fraction * parent)))


def number_problems(config: TrainConfig) -> list[RekindleError]:
    """Options that are no number of what they count, whatever the checkpoint is."""
    problems = []
    positive = ("tokens", "batch_tokens", "seq_len", "target_len", "lr", "eval_tokens", "eval_every", "save_every")
    positive += ("micro_batch",)
    not_negative = ("weight_decay", "clip", "aux_loss", "z_loss", "seed", "skip")
    for name in positive + not_negative:
        value = getattr(config, name)
        if value is not None and not (value > 0 or (value == 0 and name in not_negative)):
            what = "positive" if name in positive else "at least 0"
            problems.append(RekindleError(f"{name} is {value}, but it must be {what}.", where=f"option {name}"))
    if not 0 <= config.beta2 < 1:
        problems.append(RekindleError(f"beta2 is {config.beta2}, but it must be in [0, 1).", where="option beta2"))
    if not 0 <= config.label_smoothing < 1:
        what = f"label_smoothing is {config.label_smoothing}, but it must be in [0, 1)."
        problems.append(RekindleError(what, where="option label_smoothing"))
    return problems


def tokens_before(lineage: Sequence[Record]) -> int:
    """Tokens that went into what the last method was applied to; into all of it where there was none."""
    methods = [i for i, record in enumerate(lineage) if record.verb not in ("init", "train")]
    return sunk(before(lineage, methods[-1]) if methods else lineage).tokens


def _problems(config: TrainConfig) -> list[RekindleError]:
    fraction, problems = config.fraction_of_parent, []
    if config.tokens is None and fraction is None:
        problems.append(RekindleError("tokens is not given.", hint="--tokens 50M, or --fraction-of-parent 0.05"))
    if config.tokens is not None and fraction is not None:
        what = f"tokens is {config.tokens} and fraction_of_parent {fraction:g}: one of them says how long to train."
        problems.append(RekindleError(what, hint="leave --tokens or --fraction-of-parent out"))
    if fraction is not None and not 0 < fraction < math.inf:
        problems.append(RekindleError(f"fraction_of_parent is {fraction:g}.", hint="--fraction-of-parent 0.05"))
    if config.parent_tokens is not None and fraction is None:
        what = "parent_tokens says what to take a fraction of, but no fraction is given."
        problems.append(RekindleError(what, hint="--fraction-of-parent 0.05"))
    if config.parent_tokens is not None and config.parent_tokens < 1:
        problems.append(RekindleError(f"parent_tokens is {config.parent_tokens}.", hint="--parent-tokens 15T"))
    return problems


def _parent_tokens(source: Folder) -> int:
    manifest = read_manifest(source.path)
    lineage = manifest.lineage if manifest else []
    tokens = tokens_before(lineage)
    if not tokens:
        raise RekindleError(
            "How many tokens the parent was trained on is not known.",
            where=source.path / NAME if manifest else source.path,
            why="no step of its lineage is a training run" if manifest else "Rekindle did not make this checkpoint",
            hint="--parent-tokens 15T, or --tokens",
        )
    if unrecorded := origins(lineage):
        what = "what was spent on %s is not recorded: --parent-tokens says more than the %s tokens that are"
        log.warning(what, some(unrecorded, 3), tokens)
    return tokens
