"""What a run would cost, before anything is tokenised, loaded or written."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from statistics import median
from typing import Any

from rekindle.anatomy.flops import flops_per_token
from rekindle.edit import Checkpoint
from rekindle.errors import RekindleError
from rekindle.ranks import number_of_ranks
from rekindle.train.budget import with_tokens
from rekindle.train.config import TrainConfig
from rekindle.train.device import device_name, micro_batch_size
from rekindle.train.metrics import NAME as METRICS
from rekindle.train.metrics import read_rows
from rekindle.train.model import check_lengths, check_written
from rekindle.train.objectives import objective_of
from rekindle.train.plan import make_plan
from rekindle.train.state import Saved, check_start, describe_run, find_start, resumed

_FLOAT = 4  # bytes; weights, gradients and both moments are float32 while training


def price_training(
    parent: Checkpoint, config: TrainConfig, out: Path | None = None, *, resume: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """{"parameters", "steps", "tokens", "flops", "evaluations", "saves", "memory", "bytes", "lr", ...}; sizes in bytes.

    With an `out`: as it lies there. "from_step" is where an interrupted run goes on, with "changes" of its options;
    FLOPs, evaluations, saves and hours are of what is left then.
    `memory` is a lower bound: weights, gradients, moments, and the logits of a forward pass; activations come on top.
    `hours` is None but where the parent was itself trained, on a device of this name: at the speed it had then. Raises
    RekindleError for what `train` would refuse without reading the data.
    """
    data = Path(config.data).expanduser()
    if config.data.startswith((".", "/", "~")) and not data.exists():
        raise RekindleError("There is no such file or folder.", where=data)
    kind = objective_of(config, parent.folder)
    config = with_tokens(config, parent.folder)
    ranks = number_of_ranks()
    plan = make_plan(config, ranks, parent.folder.path)
    run = describe_run(config, parent.folder.fingerprint, None)
    saved = _start(out, run, resume=resume, overwrite=overwrite) if out else None
    done = saved.step if saved else 0
    check_lengths(plan.seq_len, parent.config, config.micro_batch)
    read, written = plan.seq_len, kind.foreseen(config, parent.folder)  # tokens of a row, and targets
    check_written(written, parent.config)
    n, vocabulary = parent.parameters(), parent.settings.vocab_size
    micro = min(micro_batch_size(config.micro_batch, max(read, written), vocabulary), plan.batch // ranks)
    state = (5 if config.keep_averages else 3) * _FLOAT * n["total"]
    speed, left = _speed(parent.folder.path, n, ranks), (plan.steps - done) * plan.batch_tokens
    return {
        "parameters": n,
        "steps": plan.steps,
        "tokens": plan.tokens,
        "from_step": done,
        "changes": resumed(saved, run)[1] if saved else [],
        "flops": left * flops_per_token(parent.family, parent.settings, read, written),
        "lr": plan.schedule.peak,
        "schedule": plan.schedule.name,
        "data": config.data,
        "evaluations": -(-plan.steps // plan.eval_interval) - -(-done // plan.eval_interval) + 1,
        "saves": (plan.steps - 1) // plan.save_interval - done // plan.save_interval + 1 if left else 0,
        "memory": state + _FLOAT * n["total"] + _FLOAT * micro * written * vocabulary,
        "bytes": {
            "out": sum(tensor.nbytes for tensor in parent.folder.tensors.values()) + 2 * _FLOAT * n["total"],
            "state": state,
        },
        "tokens_per_s": speed,
        "hours": speed and left / speed / 3600,
    }


def _start(out: Path, run: Mapping[str, Any], *, resume: bool, overwrite: bool) -> Saved | None:
    """The state that `train` would go on from; raises RekindleError for what it would refuse in OUT."""
    out = Path(os.path.abspath(out))
    check_start(out, resume=resume, overwrite=overwrite)
    return find_start(out, run, resume=resume, overwrite=overwrite)


def _speed(folder: Path, parameters: dict[str, int], ranks: int) -> float | None:
    """Tokens per second of the run that made a checkpoint; None where another model ran, or elsewhere."""
    try:
        rows = read_rows(folder / METRICS)
        here = {"device": device_name(), "devices": ranks, "parameters": parameters}
        if not all(rows[0].get(name) == value for name, value in here.items()):
            return None
        return median(row["tokens_per_s"] for row in rows if row["kind"] == "step") or None
    except (OSError, ValueError, KeyError, IndexError, TypeError, AttributeError, RekindleError):
        return None  # not there, or not ours to judge
