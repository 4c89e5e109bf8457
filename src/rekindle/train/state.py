"""What a run needs to continue bit for bit after a kill at any time.

The run lives in a hidden folder beside OUT, `.OUT.training`, until OUT is whole:

    metrics.jsonl              rows up to now
    state-<step>/              weights and moments in float32 under transformers' names, and state.json

A state is written beside its place, flushed and renamed; the one before it goes only then. The order of the data and
the seeds of the random numbers are functions of the step, so nothing else needs to be kept.
"""

from __future__ import annotations

import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rekindle.errors import RekindleError
from rekindle.store.publish import explained, sync
from rekindle.train.config import TrainConfig
from rekindle.train.optimizer import MOMENTS
from rekindle.train.tokens import Corpus


@dataclass(frozen=True)
class Saved:
    """A state on disk. `step` updates are done; metrics.jsonl was `position` bytes long; `run` is what it is of."""

    path: Path
    step: int
    position: int
    run: dict[str, Any]


TRACKERS = "trackers"

# What a run cannot change when it is resumed. The rest it can: --lr after a NaN, --micro-batch for want of memory.
_FIXED = ("data", "tokens", "batch_tokens", "seq_len", "seed", "skip")


def describe_run(config: TrainConfig, fingerprint: str, corpus: Corpus) -> dict[str, Any]:
    """What a saved state must agree on with the run that resumes it."""
    options = {name: getattr(config, name) for name in _FIXED}
    text = {"tokens of training text": len(corpus.train), "digest of all text": corpus.digest}
    return {**options, "source": fingerprint, **text}


def find_start(out: Path, run: Mapping[str, Any], *, resume: bool, overwrite: bool) -> Saved | None:
    """The state to continue from, None for a fresh start; changes nothing.

    Raises RekindleError for a saved state that nobody said what to do with, or that is of another run.
    """
    saved = find_state(work_folder(out))
    if saved is None:
        return None
    if resume:
        different = [name for name, value in run.items() if saved.run.get(name) != value]
        if different:
            values = "; ".join(f"{name} was {saved.run.get(name)}, is {run[name]}" for name in different)
            raise RekindleError(
                f"The interrupted run is another one: {values}.",
                where=saved.path,
                hint="the same options, or --overwrite to start afresh",
            )
        return saved
    if overwrite:
        return None
    raise RekindleError(
        f"An unfinished run of {out} stopped after step {saved.step}.",
        hint="--resume to continue it, or --overwrite to start afresh",
    )


def work_folder(out: Path) -> Path:
    return out.parent / f".{out.name}.training"


def save_state(
    work: Path,
    model: torch.nn.Module,
    optimizer: torch.optim.Optimizer,
    *,
    step: int,
    position: int,
    run: Mapping[str, Any],
) -> None:
    """Save a state and drop the earlier ones."""
    new = work / "state.new"
    with explained(work):
        shutil.rmtree(new, ignore_errors=True)
        new.mkdir()
        parameters = dict(model.named_parameters())
        save_file({name: p.detach().contiguous() for name, p in parameters.items()}, new / "weights.safetensors")
        moments = {
            f"{name}.{key}": value.contiguous()
            for name, p in parameters.items()
            for key, value in optimizer.state[p].items()
        }
        save_file(moments, new / "moments.safetensors")
        described = {"step": step, "position": position, "run": dict(run)}
        (new / "state.json").write_text(json.dumps(described), encoding="utf-8")
        for path in (*new.iterdir(), new):
            sync(path)
        place = work / f"state-{step}"
        shutil.rmtree(place, ignore_errors=True)
        new.rename(place)
        sync(work)
        for old in _states(work):
            if old != place:
                shutil.rmtree(old, ignore_errors=True)


def find_state(work: Path) -> Saved | None:
    """The latest whole state in a work folder."""
    for path in _states(work):
        try:
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            return Saved(path, state["step"], state["position"], state["run"])
        except (OSError, ValueError, KeyError):
            continue  # its deletion was interrupted
    return None


def load_state(saved: Saved, model: torch.nn.Module, optimizer: torch.optim.Optimizer) -> None:
    """Fill model and optimizer from a state. Raises RekindleError where its files are damaged."""
    try:
        weights = load_file(saved.path / "weights.safetensors")
        moments = load_file(saved.path / "moments.safetensors")
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(weights.pop(name))
                if f"{name}.step" in moments:
                    keys = ("step", *MOMENTS)
                    optimizer.state[p] = {key: moments[f"{name}.{key}"].to(p.device) for key in keys}
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise RekindleError(
            f"The saved state cannot be read: {error}.", where=saved.path, hint="--overwrite starts afresh"
        ) from None


def _states(work: Path) -> list[Path]:
    """State folders, latest first."""
    found = [
        (int(match[1]), path) for path in work.glob("state-*") if (match := re.fullmatch(r"state-(\d+)", path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]
