"""Whether a series is of one training: no second run, no learning rate that rises again between its checkpoints."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path

from rekindle.edit import Checkpoint
from rekindle.store.manifest import read_manifest

FALLEN, RISEN = 0.5, 1.5  # of the highest so far, and of the lowest since


def restart(checkpoints: Mapping[str, Checkpoint], steps: Mapping[str, int]) -> str | None:
    """What is to be said of a series whose checkpoints were not trained in one go; None where nothing tells of it."""
    folders = {name: checkpoint.folder.path for name, checkpoint in checkpoints.items()}
    lives = {name: len(life.lineage) for name, path in folders.items() if (life := read_manifest(path))}
    if len(set(lives.values())) > 1:
        longest = max(lives, key=lambda name: lives[name])
        first = next(name for name in lives if lives[name] == lives[longest])
        return f"from {first} on the checkpoints are of a further training: a combination over both is of two runs"
    if not steps:
        return None
    last = max(steps, key=lambda name: steps[name])
    at = _risen(rates(folders[last]), min(steps.values()))
    if at is None:
        return None
    return f"the learning rate rises again at step {at}: a combination over both sides is of two runs"


def rates(folder: Path) -> dict[int, float]:
    """The learning rate at each step that a Trainer's log has."""
    try:
        log = json.loads((folder / "trainer_state.json").read_text(encoding="utf-8"))["log_history"]
        return {row["step"]: float(row["learning_rate"]) for row in log if "learning_rate" in row}
    except (OSError, ValueError, KeyError, TypeError):
        return {}


def _risen(rates: Mapping[int, float], first: int) -> int | None:
    """The first step behind `first` at which a rate that had fallen is well above what it had come down to."""
    highest, lowest = 0.0, math.inf
    for step in sorted(rates):
        rate = rates[step]
        if step > first and lowest < FALLEN * highest and rate > RISEN * lowest:
            return step
        if rate > highest:  # it is still being warmed up
            highest = lowest = rate
        lowest = min(lowest, rate)
    return None
