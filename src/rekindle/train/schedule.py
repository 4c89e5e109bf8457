"""Learning rate as a function of tokens.

Counting in tokens, not steps, lets a run continue another's schedule at a different batch size. A step's rate is
the schedule's value at the middle of its tokens, so neither the first step nor the last is spent at zero.

    lr(t) = peak * ramp(t) * shape(t)        ramp(t) = min(1, t / warmup)

    constant       1
    wsd            1, then linear to 0 over the last `decay` tokens     (Hu et al. 2024, arXiv 2404.06395)
    cosine         half a cosine from 1 at the end of warm-up to 0.1    (Hoffmann et al. 2022, arXiv 2203.15556)
    inverse-sqrt   sqrt(warmup / t) after the warm-up                   (Raffel et al. 2020, arXiv 1910.10683)
    continue       the source run's schedule from the token it stopped at, re-warmed by this run's ramp
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rekindle.apply.moments import DESCRIPTION, FOLDER, read_info
from rekindle.errors import RekindleError
from rekindle.train.config import TrainConfig

COSINE_FLOOR = 0.1


@dataclass(frozen=True, kw_only=True)
class Schedule:
    """`peak` learning rate, and lengths in tokens; `start` is the token of the schedule this run began at."""

    name: str
    peak: float
    total: int
    warmup: int
    decay: int = 0
    start: int = 0
    rewarm: int = 0  # a continued schedule's second warm-up

    def __call__(self, tokens: float) -> float:
        """The learning rate after `tokens` tokens of this run."""
        t = self.start + tokens
        again = _ramp(tokens, self.rewarm)
        return self.peak * _ramp(t, self.warmup) * self._shape(t) * again

    def _shape(self, t: float) -> float:
        if self.name == "wsd":
            return min(1.0, max(0.0, self.total - t) / self.decay) if self.decay else 1.0
        if self.name == "cosine":
            progress = (t - self.warmup) / max(1, self.total - self.warmup)
            wave = (1 + math.cos(math.pi * min(1.0, max(0.0, progress)))) / 2
            return COSINE_FLOOR + (1 - COSINE_FLOOR) * wave
        if self.name == "inverse-sqrt":
            return math.sqrt(max(1, self.warmup) / max(t, self.warmup, 1))
        return 1.0

    def at(self, tokens: int) -> dict[str, Any]:
        """What `continue` needs to carry on from here, for optimizer.json."""
        return {**asdict(self), "start": self.start + tokens, "rewarm": 0}


def make_schedule(config: TrainConfig, tokens: int, saved: Mapping[str, Any] | None = None) -> Schedule:
    """The schedule of a run of `tokens` tokens; `saved` is the source run's, for `continue`.

    Raises RekindleError for fractions outside [0, 1], for want of a peak, and for a source that has no schedule or
    whose schedule has come to its end.
    """
    for name in ("warmup", "decay"):
        if not 0 <= getattr(config, name) <= 1:
            raise RekindleError(
                f"{name} is {getattr(config, name)}, but it is a fraction of the tokens, from 0 to 1.",
                where=f"option {name}",
            )
    warmup = round(config.warmup * tokens)
    if config.schedule != "continue":
        if config.lr is None:
            raise RekindleError("lr is not given.", hint="--lr 1e-4")
        decay = round(config.decay * tokens) if config.schedule == "wsd" else 0
        return Schedule(name=config.schedule, peak=config.lr, total=tokens, warmup=warmup, decay=decay)
    try:
        schedule = Schedule(**{**(saved or {}), "rewarm": warmup})  # type: ignore[arg-type]
    except TypeError:
        raise RekindleError(
            "The source has no schedule to continue: no optimizer/optimizer.json says where its run stopped.",
            hint="--schedule wsd, or --optimizer-state DIR with the optimizer folder of the run to continue",
        ) from None
    if schedule(warmup) <= 0:
        raise RekindleError(
            f"The source's {schedule.name} schedule ended at a learning rate of 0: nothing is left to continue.",
            hint="--schedule wsd --lr ..., or a source trained with --decay 0",
        )
    return schedule


def saved_schedule(source: Path, optimizer_state: str | None) -> dict[str, Any] | None:
    """The schedule of the run that made the checkpoint in `source`, or the moments at hand; None where none is said."""
    folder = Path(optimizer_state).expanduser() if optimizer_state else source / FOLDER
    found = read_info(folder).get("schedule") if (folder / DESCRIPTION).is_file() else None
    return found if isinstance(found, dict) else None


def _ramp(t: float, warmup: int) -> float:
    return min(1.0, t / warmup) if warmup else 1.0
