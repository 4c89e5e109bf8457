"""Read `metrics.jsonl`, the diary a training run leaves: one JSON object a line.

A run that was killed and resumed may hold a step twice (the later line counts) and end in half a line
(tolerated). Anything else that is not JSON is an error that names the line. FLOPs that an earlier version counted
otherwise are counted anew, from the folder's config.
"""

from __future__ import annotations

import json
import math
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from rekindle.anatomy import family_of
from rekindle.anatomy.flops import training_flops
from rekindle.errors import RekindleError
from rekindle.store.index import read_json

NAME = "metrics.jsonl"
FAR = 1e30  # nothing that is measured here is larger: what claims to be is infinite


@dataclass(frozen=True)
class Step:
    """A logged training step, or the mean of some; losses in nats per token, NaN where the log has none."""

    step: float
    tokens: float
    flops: float
    loss: float
    lr: float
    grad_norm: float
    tokens_per_s: float


@dataclass(frozen=True)
class Evaluation:
    """One validation; `tokens` and `flops` count this stage only."""

    step: int
    tokens: float
    flops: float
    loss: float  # nats per token
    stderr: float
    load: tuple[tuple[float, ...], ...] | None = None  # fraction of the assignments, per MoE layer and expert
    entropy: tuple[float, ...] | None = None  # of the load, 1 = even, per MoE layer
    dead: tuple[int, ...] | None = None  # experts without tokens, per MoE layer
    losses: tuple[float, ...] | None = None  # of each validation window, where the run logged them


@dataclass(frozen=True)
class Recovery:
    """A stage of a pipeline that was lost after `step` updates, and what it was made of."""

    step: int
    stage: int
    policy: str
    seconds: float
    distance: float | None = None  # between the stages that it was made of, of the mean of their norms


@dataclass
class Metrics:
    header: dict[str, Any] = field(default_factory=dict)
    steps: list[Step] = field(default_factory=list)
    evaluations: list[Evaluation] = field(default_factory=list)
    recoveries: list[Recovery] = field(default_factory=list)
    torn: bool = False  # the last line was cut off


def read_metrics(folder: Path) -> Metrics:
    """The run's diary; raises RekindleError where it is missing, broken or holds no evaluation."""
    path = folder / NAME
    if path.exists() and not path.is_file():
        raise RekindleError(f"{NAME} is no file to read.", where=path, hint="the file that `rekindle train` wrote")
    try:
        lines = path.read_text(encoding="utf-8", errors="replace").splitlines()
    except FileNotFoundError:
        raise RekindleError(
            f"{folder} has no {NAME}, so there is no run to report.",
            hint="a folder that `rekindle train` wrote; `rekindle inspect` describes any checkpoint",
        ) from None
    except OSError as error:
        raise RekindleError(f"The file cannot be read: {error.strerror}.", where=path) from None
    metrics = Metrics()
    steps: dict[int, Step] = {}
    evaluations: dict[int, Evaluation] = {}
    for number, line in enumerate(lines, 1):
        if not line.strip():
            continue
        row = _row(line, f"{path}, line {number}", last=number == len(lines))
        if row is None:
            metrics.torn = True
        elif row.kind == "run":
            metrics.header.update(row.data)
        elif row.kind == "step":
            steps[row.position("step")] = _step(row)
        elif row.kind == "eval":
            evaluations[row.position("step")] = _evaluation(row)
        elif row.kind == "recovery":
            what = row.position("step"), row.position("stage"), str(row.data.get("policy")), row.number("seconds")
            apart = row.number("distance") if "distance" in row.data else None
            metrics.recoveries.append(Recovery(*what, apart))
    metrics.steps = [steps[step] for step in sorted(steps)]
    metrics.evaluations = [evaluations[step] for step in sorted(evaluations)]
    if not metrics.evaluations:
        raise RekindleError(
            f"{path} holds no evaluation, so there is no validation loss to report.",
            hint="train on until the first evaluation, or `rekindle evaluate`",
        )
    each = None if "flops_per_token" in metrics.header else _recounted(folder, metrics.header.get("seq_len"))
    if each is not None:
        metrics.steps = [replace(step, flops=each * step.tokens) for step in metrics.steps]
        metrics.evaluations = [replace(found, flops=each * found.tokens) for found in metrics.evaluations]
    return metrics


def _recounted(folder: Path, length: Any) -> float | None:
    """FLOPs of a token of a run that an earlier version wrote down, embedding in and attention out.

    Runs are compared at equal FLOPs, and so all must be counted alike. None where the folder does not say its model.
    """
    if type(length) is not int or length < 1:
        return None
    try:
        config = read_json(folder / "config.json", missing="")
        family = family_of(config)
        return training_flops(family, family.settings(config), 1, length)
    except RekindleError:
        return None


@dataclass(frozen=True)
class _Row:
    """A line of the diary and where it stands, for the error messages."""

    data: dict[str, Any]
    where: str

    @property
    def kind(self) -> Any:
        return self.data.get("kind")

    def position(self, key: str) -> int:
        """A count that must be there: step, tokens or FLOPs."""
        value = self.number(key)
        if not math.isfinite(value) or value < 0:
            raise RekindleError(f"This {self.kind} row has no usable {key!r}.", where=self.where)
        return int(value)

    def number(self, key: str) -> float:
        """A measured number, NaN where it is null or missing."""
        return _number(self.data.get(key), key, self.where)

    def numbers(self, key: str) -> tuple[float, ...] | None:
        """A list of shares or counts, which are never negative; None where it is null or missing."""
        return _numbers(self.data.get(key), key, self.where)

    def table(self, key: str) -> tuple[tuple[float, ...], ...] | None:
        value = self.data.get(key)
        if value is None:
            return None
        rows = value if isinstance(value, list) else []
        if not rows or not all(isinstance(row, list) and row for row in rows):
            raise RekindleError(f"{key!r} should be one list of numbers for each layer.", where=self.where)
        return tuple(_numbers(row, key, self.where) or () for row in rows)


def _row(line: str, where: str, last: bool) -> _Row | None:
    try:
        data = json.loads(line)
    except (ValueError, RecursionError):
        if last:
            return None
        raise RekindleError(
            "This line is not JSON.", where=where, hint="delete the line, or restore the file"
        ) from None
    if not isinstance(data, dict):
        raise RekindleError("This line is not a JSON object.", where=where)
    return _Row(data, where)


def _number(value: Any, key: str, where: str) -> float:
    if value is None:
        return math.nan
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise RekindleError(f"{key!r} should be a number and is {value!r:.60}.", where=where)
    if abs(value) > FAR:
        return math.inf if value > 0 else -math.inf
    return float(value)


def _numbers(value: Any, key: str, where: str) -> tuple[float, ...] | None:
    if value is None:
        return None
    if not isinstance(value, list):
        raise RekindleError(f"{key!r} should be a list of numbers.", where=where)
    found = tuple(_number(item, key, where) for item in value)
    if any(number < 0 for number in found):
        raise RekindleError(f"{key!r} holds {min(found):g}: none of these can be negative.", where=where)
    return found


def _step(row: _Row) -> Step:
    return Step(
        step=row.position("step"),
        tokens=row.position("tokens"),
        flops=row.position("flops"),
        loss=row.number("loss"),
        lr=row.number("lr"),
        grad_norm=row.number("grad_norm"),
        tokens_per_s=row.number("tokens_per_s"),
    )


def _evaluation(row: _Row) -> Evaluation:
    dead, stderr = row.numbers("dead_experts"), row.number("val_loss_stderr")
    if stderr < 0:
        raise RekindleError(f"'val_loss_stderr' is {stderr:g}: an error is never negative.", where=row.where)
    return Evaluation(
        step=row.position("step"),
        tokens=row.position("tokens"),
        flops=row.position("flops"),
        loss=row.number("val_loss"),
        stderr=stderr or math.nan,  # of a single window it is 0, which says nothing
        load=row.table("expert_load"),
        entropy=row.numbers("expert_entropy"),
        dead=None if dead is None else tuple(int(n) if math.isfinite(n) else 0 for n in dead),
        losses=row.numbers("val_losses"),
    )
