"""Write a checkpoint into a folder: weights, config, and the files that travel along."""

from __future__ import annotations

import json
import os
import shutil
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rekindle.apply.crew import JOURNAL, Progress, finished, write_shards
from rekindle.apply.measure import FOLDER as FOUND
from rekindle.apply.measure import Calibrate, Found, fingerprint, read_found, settle, write_found
from rekindle.apply.optimizer import OptimizerState, recycle, write_info
from rekindle.apply.shards import cut, write_index
from rekindle.apply.write import WINDOW, Written
from rekindle.config import Size, option
from rekindle.edit.checkpoint import Checkpoint
from rekindle.edit.expressions import Expr
from rekindle.edit.measure import Measurement, measurements
from rekindle.edit.plan import Plan, plan
from rekindle.errors import RekindleError
from rekindle.store.header import unreadable


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """How a result is laid out on disk."""

    max_shard_size: Size = option(Size(5_000_000_000), help="largest weight file, e.g. 5GB")
    fused: bool = option(False, help="stack experts as transformers v5 holds them in memory, not one by one")
    checksum: bool = option(False, help="hash each shard (SHA-256) in the same pass; costs about a copy's time again")
    optimizer_state: str | None = option(None, help="folder with the parent's Adam moments, to recycle them too")
    measurements: str | None = option(None, help="earlier result of the same source whose measurements are reused")


@dataclass(frozen=True)
class Job:
    """A plan with its layout settled: everything that will be written, priced."""

    checkpoint: Checkpoint
    plan: Plan
    config: SaveConfig
    moments: dict[str, Expr]
    info: dict[str, Any]  # optimizer.json

    @property
    def nbytes(self) -> int:
        return self.plan.nbytes + sum(expr.nbytes for expr in self.moments.values())

    @cached_property
    def measurements(self) -> list[Measurement]:
        """What must be found before the write."""
        return measurements((*(use.expr for use in self.plan.census.values()), *self.moments.values()))

    @property
    def nbytes_measured(self) -> int:
        """Bytes read to measure, each measurement once."""
        return sum({m.name: m.nbytes for m in self.measurements}.values())

    def memory(self, workers: int) -> int:
        return self.plan.memory(workers, WINDOW)


def prepare(checkpoint: Checkpoint, config: SaveConfig) -> Job:
    """Plan the writing; no byte moves. Raises RekindleError with every problem."""
    if config.max_shard_size < 1:
        raise RekindleError(f"A shard of {config.max_shard_size} bytes holds nothing.", hint="--max-shard-size 5GB")
    planned = plan(checkpoint, fused=config.fused)
    if not config.optimizer_state:
        return Job(checkpoint, planned, config, {}, {})
    parent = checkpoint.origin
    state = OptimizerState(Path(config.optimizer_state), parent)
    unfused = plan(checkpoint) if config.fused else planned
    return Job(checkpoint, planned, config, *recycle(unfused, state))


def default_workers() -> int:
    return min(4, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def write(
    job: Job, folder: Path, *, workers: int, resume: bool, progress: Progress, calibrate: Calibrate
) -> dict[str, Written]:
    """Measure, then write everything but the manifest and the card into `folder`. Returns what became of each file.

    `progress` hears of bytes measured and written; `calibrate` runs the source on a text, where the plan asks for it.
    """
    found = _measure(job, folder, resume, workers, progress, calibrate)
    digest = f"{job.plan.digest()}/{job.config}/{_sources(job)}/{fingerprint(found)}"
    if not (resume and finished(folder, digest)):
        for stale in folder.iterdir():
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    write_found(folder, found)
    how = {"checksum": job.config.checksum, "workers": workers, "resume": resume, "progress": progress}
    shards = cut(job.plan.tensors, job.config.max_shard_size)
    written = write_shards(shards, folder, digest=digest, **how)
    write_index(shards, folder)
    if job.moments:
        inner = folder / "optimizer"
        inner.mkdir(exist_ok=True)
        moment_shards = cut(job.moments, job.config.max_shard_size, "optimizer")
        write_shards(moment_shards, inner, digest=digest, **how)
        write_index(moment_shards, inner, "optimizer")
        write_info(inner, job.info)
        (inner / JOURNAL).unlink(missing_ok=True)
    text = json.dumps(job.plan.config, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    for path in job.checkpoint.folder.passengers():
        _copy(path, folder / path.name)
    return written


def _measure(job: Job, folder: Path, resume: bool, workers: int, progress: Progress, calibrate: Calibrate) -> Found:
    known = read_found(Path(job.config.measurements)) if job.config.measurements else {}
    if resume and (folder / FOUND).is_dir():
        known |= read_found(folder)
    exprs = (*(use.expr for use in job.plan.census.values()), *job.moments.values())
    return settle(exprs, workers=workers, known=known, calibrate=calibrate, progress=progress)


def close_journal(folder: Path) -> None:
    """Nothing is left to resume: the folder is complete but for its publication."""
    (folder / JOURNAL).unlink(missing_ok=True)


def _sources(job: Job) -> list[tuple[str, int, int]]:
    """The files that the plan reads, by path, size and time of change: others must not finish what these began."""
    exprs = (*(use.expr for use in job.plan.census.values()), *job.moments.values())
    paths = sorted({leaf.stored.path for expr in exprs for leaf in expr.leaves()})
    return [(path, stat.st_size, stat.st_mtime_ns) for path in paths if (stat := _stat(path))]


def _stat(path: str) -> os.stat_result:
    try:
        return os.stat(path)
    except OSError as error:
        raise unreadable(path, error) from None


def _copy(path: Path, to: Path) -> None:
    try:
        source = path.open("rb")
    except OSError as error:
        raise unreadable(path, error) from None
    with source, to.open("wb") as out:
        shutil.copyfileobj(source, out)
