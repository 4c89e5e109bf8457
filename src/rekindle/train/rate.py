"""The peak learning rate where none is given: the one that the parent was trained at.

A rate that was right for the last stage of a checkpoint is about right for its next: re-warming up to the peak of
pretraining adapts fastest, and a higher one forgets (Gupta et al. 2023, arXiv 2308.04014; Ibrahim et al. 2024, arXiv
2403.08763). Where nothing is known of the parent nothing is guessed: what was trained at 1e-4 may be ruined at 1e-3.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from rekindle.apply.moments import DESCRIPTION
from rekindle.config import Resolved
from rekindle.edit import Checkpoint
from rekindle.errors import RekindleError
from rekindle.store.lineage import origins, parents, stem
from rekindle.store.manifest import Record, read_manifest
from rekindle.train.config import TrainConfig
from rekindle.train.schedule import saved_schedule

UNTRAINED = 1e-3
# Peak rates of pretraining by parameters: Brown et al. 2020, arXiv 2005.14165, table 2.1.
_PEAKS = (
    (125e6, 6e-4), (350e6, 3e-4), (760e6, 2.5e-4), (1.3e9, 2e-4), (2.7e9, 1.6e-4), (6.7e9, 1.2e-4), (13e9, 1e-4),
    (175e9, 0.6e-4),
)  # fmt: skip


def with_rate(options: Resolved[TrainConfig], parent: Checkpoint) -> Resolved[TrainConfig]:
    """The options with `lr` settled, and where it came from; raises RekindleError where that cannot be known."""
    config = options.config
    if config.lr is not None or config.schedule == "continue":  # which goes on at the source run's
        return options
    lr, origin = _of_parent(parent, config.optimizer_state)
    return Resolved(replace(config, lr=lr), {**options.origins, "lr": origin})


def _of_parent(parent: Checkpoint, optimizer_state: str | None) -> tuple[float, str]:
    manifest = read_manifest(parent.folder.path)
    lineage = manifest.lineage if manifest else []
    if peaks := _peaks(lineage):
        return _agreed(peaks, parent), "parent's peak, in its rekindle.json"
    if lr := _rate((saved_schedule(parent.folder.path, optimizer_state) or {}).get("peak")):
        return lr, f"parent's peak, in its {DESCRIPTION}"
    roots = {record.verb for record, behind in zip(lineage, parents(lineage)) if not behind}
    if roots == {"init"} and not origins(lineage) and all(record.verb != "train" for record in lineage):
        return UNTRAINED, "default of an untrained model"
    low, high = suggested(parent.parameters()["active"])
    raise RekindleError(
        "The learning rate that the parent was trained at is not known, and none is given.",
        where=parent.folder.path,
        why="one far above it forgets what the parent has learned, one far below it learns nothing",
        hint=f"--lr with the parent's own peak; usual for its size is {low:.0e} to {high:.0e}",
    )


def suggested(parameters: int) -> tuple[float, float]:
    """From a tenth of the peak that models of this size are pretrained at up to all of it."""
    peak = min(_PEAKS, key=lambda row: abs(math.log(row[0] / max(parameters, 1))))[1]
    return peak / 10, peak


def _peaks(lineage: Sequence[Record]) -> list[float]:
    """The peak of the nearest training that says it, on each way back."""
    behind, seen, waiting = parents(lineage), set[int](), stem(lineage)[-1:]
    found = set[float]()
    while waiting:
        place = waiting.pop()
        if lr := _peak(lineage[place]):
            found.add(lr)
        else:
            waiting += [after for after in behind[place] if after not in seen]
            seen.update(behind[place])
    return sorted(found)


def _agreed(peaks: list[float], parent: Checkpoint) -> float:
    if len(peaks) == 1:
        return peaks[0]
    raise RekindleError(
        f"What this was made of was trained at different learning rates, {', '.join(f'{lr:g}' for lr in peaks)}.",
        where=parent.folder.path,
        why="one far above a parent's own forgets what it has learned, one far below it learns nothing",
        hint=f"--lr {peaks[0]:g}, which forgets least",
    )


def _peak(record: Record) -> float | None:
    """The peak of a training run; None for other verbs, and for one that carried on another's schedule."""
    values = {name: option.get("value") for name, option in record.options.items() if isinstance(option, dict)}
    return None if record.verb != "train" or values.get("schedule") == "continue" else _rate(values.get("lr"))


def _rate(value: Any) -> float | None:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    return float(value) if is_number and 0 < value < math.inf else None
