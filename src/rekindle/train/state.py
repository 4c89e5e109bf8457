"""What a run needs to continue bit for bit after a kill at any time.

The run lives in a hidden folder beside OUT, `.OUT.training`, until OUT is whole:

    metrics.jsonl              rows up to now
    state-<step>/              weights and moments in float32 under transformers' names, state.json, checksums.json,
                               and averages, where a run keeps some

A state is written beside its place, flushed and renamed; the one before it goes only then. The order of the data and
the seeds of the random numbers are functions of the step, so nothing else needs to be kept. What a run goes on from is
held to the SHA-256 of what was written: a bit that flipped on the disc would otherwise train on, unseen.
"""

from __future__ import annotations

import errno
import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from rekindle.anatomy.adam import MOMENTS
from rekindle.config import to_dict
from rekindle.errors import RekindleError
from rekindle.store.publish import check_free, sync
from rekindle.store.system import DiscFull, error_number
from rekindle.train.averages import FILE as AVERAGES
from rekindle.train.averages import Averages
from rekindle.train.config import TrainConfig
from rekindle.train.held import Whole
from rekindle.train.metrics import NAME as METRICS
from rekindle.train.metrics import last_step
from rekindle.train.objectives import Objective


@dataclass(frozen=True)
class Saved:
    """A state on disk. `step` updates are done; metrics.jsonl was `position` bytes long; `run` is what it is of.

    `archived` is what the archive of the run held before this state, step -> digest; None where nobody noted it.
    """

    path: Path
    step: int
    position: int
    run: dict[str, Any]
    archived: dict[int, str] | None = None


TRACKERS = "trackers"
CHECKSUMS = "checksums.json"

# What a run cannot change when it is resumed: where it began, what it reads and in which order, what it is measured on.
# The rest it can, and says so: --lr after a NaN, --micro-batch for want of memory.
_FIXED = ("tokens", "batch_tokens", "seq_len", "seed", "skip", "eval_tokens", "optimizer_state", "keep_averages")
_CHANGES = "changes"  # sentences on what was changed in the middle of the run
_OPTIONS = "options"
_MAY_DIFFER = (_OPTIONS, _CHANGES)


def describe_run(config: TrainConfig, fingerprint: str, objective: Objective | None) -> dict[str, Any]:
    """What a saved state must agree on with the run that resumes it, and under "options" what may differ.

    Without an objective nothing is said of the text.
    """
    options = {name: list(x) if isinstance(x, tuple) else x for name, x in to_dict(config).items()}
    fixed = {name: options.pop(name) for name in _FIXED}
    text = objective.text() if objective else {}
    return {**fixed, "source": fingerprint, **text, _OPTIONS: options, _CHANGES: []}


def check_start(out: Path, *, resume: bool, overwrite: bool) -> None:
    """Refuse an OUT that is not free; to who would resume it, say that its run has ended, or how to replace it."""
    if resume and not overwrite and out.is_dir() and any(out.iterdir()):
        if saved := find_state(work_folder(out)):
            raise RekindleError(
                f"{out} is not empty, and an unfinished run that is to replace it stopped after step {saved.step}.",
                hint="--resume --overwrite to continue that run, or another OUT",
            )
        if (out / METRICS).is_file():
            step = last_step(out / METRICS)
            raise RekindleError(
                f"The run in {out} has ended{f', at step {step}' if step else ''}: there is nothing to resume.",
                hint=f"rekindle train {out} OUT ... to train on from it, or --overwrite to start afresh",
            )
    check_free(out, overwrite)


def find_start(out: Path, run: Mapping[str, Any], *, resume: bool, overwrite: bool) -> Saved | None:
    """The state to continue from, None for a fresh start; changes nothing.

    Raises RekindleError for a saved state that nobody said what to do with, or that is of another run.
    """
    saved = find_state(work_folder(out))
    if saved is None:
        if (states := _states(work_folder(out))) and not overwrite:
            raise _unreadable(states[0], "its state.json is not what was written")
        return None
    if resume:
        different = _differences({name: value for name, value in run.items() if name not in _MAY_DIFFER}, saved.run)
        if different:
            raise RekindleError(
                f"The interrupted run is another one: {'; '.join(different)}.",
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


def resumed(saved: Saved, run: Mapping[str, Any]) -> tuple[dict[str, Any], list[str]]:
    """What describes the run from here on, and which of its options are others than they were."""
    now = _differences(run[_OPTIONS], saved.run.get(_OPTIONS, {}))
    before = saved.run.get(_CHANGES, [])
    return {**run, _CHANGES: [*before, *[f"from step {saved.step} on {', '.join(now)}"] * bool(now)]}, now


def _differences(now: Mapping[str, Any], before: Mapping[str, Any]) -> list[str]:
    """Of what both say."""
    return [f"{name} was {before[name]}, is {x}" for name, x in now.items() if name in before and before[name] != x]


def work_folder(out: Path) -> Path:
    return out.parent / f".{out.name}.training"


def save_state(
    work: Path,
    whole: Whole,
    *,
    step: int,
    position: int,
    run: Mapping[str, Any],
    archived: Mapping[int, str] | None = None,
    averages: Mapping[str, torch.Tensor] | None = None,
) -> None:
    """Save a state and drop the earlier ones. Where the disc is full, the one before stays as it is."""
    new = work / "state.new"
    shutil.rmtree(new, ignore_errors=True)
    new.mkdir()
    try:
        save_file({name: p.contiguous() for name, p in whole.parameters.items()}, new / "weights.safetensors")
        moments = {
            f"{name}.{key}": value.contiguous() for name, state in whole.moments.items() for key, value in state.items()
        }
        save_file(moments, new / "moments.safetensors")
        if averages is not None:
            save_file({name: x.contiguous() for name, x in averages.items()}, new / AVERAGES)
        described = {"step": step, "position": position, "run": dict(run), "archived": dict(archived or {})}
        (new / "state.json").write_text(json.dumps(described), encoding="utf-8")
        sums = {path.name: _sha256(path) for path in sorted(new.iterdir())} | {
            METRICS: _sha256(work / METRICS, position)
        }
        (new / CHECKSUMS).write_text(json.dumps(sums), encoding="utf-8")
        for path in (*new.iterdir(), new):
            sync(path)
    except BaseException:
        shutil.rmtree(new, ignore_errors=True)
        raise
    place = work / f"state-{step}"
    shutil.rmtree(place, ignore_errors=True)
    new.rename(place)
    sync(work)
    for old in _states(work):
        if old != place:
            shutil.rmtree(old, ignore_errors=True)


def find_state(work: Path) -> Saved | None:
    """The latest state in a work folder."""
    return next(iter(_readable(work)), None)


def _readable(work: Path) -> Iterator[Saved]:
    """States that say what they are, latest first; the deletion of others was interrupted."""
    for path in _states(work):
        try:
            state = json.loads((path / "state.json").read_text(encoding="utf-8"))
            archived = state.get("archived")
            known = None if archived is None else {int(step): digest for step, digest in archived.items()}
            yield Saved(path, state["step"], state["position"], state["run"], known)
        except (OSError, ValueError, KeyError, AttributeError):
            continue


def load_state(
    saved: Saved, model: torch.nn.Module, optimizer: torch.optim.Optimizer, averages: Averages | None = None
) -> None:
    """Fill model, optimizer and averages. Raises RekindleError where the state is not what was written."""
    if damaged := _damaged(saved):
        raise _unreadable(saved.path, damaged)
    try:
        weights = load_file(saved.path / "weights.safetensors")
        moments = load_file(saved.path / "moments.safetensors")
        with torch.no_grad():
            for name, p in model.named_parameters():
                p.copy_(weights.pop(name))
                if f"{name}.step" in moments:
                    keys = ("step", *MOMENTS)
                    optimizer.state[p] = {key: moments[f"{name}.{key}"].to(p.device) for key in keys}
            if averages:
                averages.load(load_file(saved.path / AVERAGES))
    except (OSError, SafetensorError, KeyError, RuntimeError) as error:
        raise _unreadable(saved.path, str(error)) from None


def _damaged(saved: Saved) -> str:
    """Which file of a state is not what was written, as the rest of a sentence; empty where all are."""
    path = saved.path / CHECKSUMS
    if not path.exists():
        return ""  # of an earlier version
    try:
        sums = json.loads(path.read_text(encoding="utf-8"))
        for name, expected in sums.items():
            found = (
                _sha256(saved.path.parent / METRICS, saved.position) if name == METRICS else _sha256(saved.path / name)
            )
            if found != expected:
                return f"{name} is not what was written"
    except (OSError, ValueError, AttributeError) as error:
        return str(error)
    return ""


def _unreadable(state: Path, why: str) -> RekindleError:
    whole = (saved for saved in _readable(state.parent) if saved.path != state and not _damaged(saved))
    earlier = next(whole, None)
    back = f"delete that folder, and --resume goes on from step {earlier.step}; or " if earlier else ""
    return RekindleError(
        f"The saved state cannot be read: {why}.",
        where=state,
        why="the run would go on from other numbers than it had",
        hint=f"{back}--overwrite to start afresh",
    )


@contextmanager
def disc_explained(work: Path) -> Iterator[None]:
    """A full disc as a sentence that says from where the run goes on."""
    try:
        yield
    except Exception as error:
        if not isinstance(error, DiscFull) and error_number(error) not in (errno.ENOSPC, errno.EDQUOT):
            raise
        what, where = (error.what, None) if isinstance(error, DiscFull) else ("The disc is full.", work)
        saved = find_state(work)
        again = f"--resume (from step {saved.step})" if saved else "start it again"
        raise DiscFull(what, where=where, hint=f"free some space, then {again}") from None


def _sha256(path: Path, length: int | None = None) -> str:
    """Of a file, or of its first `length` bytes."""
    with path.open("rb") as file:
        if length is None:
            return hashlib.file_digest(file, "sha256").hexdigest()
        digest, left = hashlib.sha256(), length
        while left and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
        return digest.hexdigest()


def _states(work: Path) -> list[Path]:
    """State folders, latest first."""
    found = [
        (int(match[1]), path) for path in work.glob("state-*") if (match := re.fullmatch(r"state-(\d+)", path.name))
    ]
    return [path for _, path in sorted(found, reverse=True)]
