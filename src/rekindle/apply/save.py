"""Write a checkpoint into a folder: weights, config, and the files that travel along."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from rekindle.apply.crew import JOURNAL, Progress, finished, write_shards
from rekindle.apply.join import RECORD, measured_by_others
from rekindle.apply.measure import FOLDER as FOUND
from rekindle.apply.measure import Calibrate, Found, fingerprint, read_found, settle, write_found
from rekindle.apply.optimizer import OptimizerState, recycle, write_info
from rekindle.apply.parts import Identity, Part, Record, owners
from rekindle.apply.shards import Shard, cut, write_index
from rekindle.apply.threads import cores, one_for_each_worker
from rekindle.apply.write import WINDOW, Written
from rekindle.config import Size, option
from rekindle.edit.checkpoint import Checkpoint
from rekindle.edit.expressions import Expr
from rekindle.edit.measure import Measurement, measurements
from rekindle.edit.plan import Plan, plan
from rekindle.errors import CheckFailed, RekindleError
from rekindle.store.files import Files
from rekindle.store.header import unreadable

MOMENTS = "optimizer/optimizer"  # of the files that hold Adam's moments
SAMPLE = 1 << 16  # bytes in the middle of a source file that tell it from another of its size


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """How a result is laid out on disk."""

    max_shard_size: Size = option(Size(5_000_000_000), help="largest weight file, e.g. 5GB")
    fused: bool = option(False, help="stack experts as transformers v5 holds them in memory, not one by one")
    checksum: bool = option(False, help="hash each shard (SHA-256) in the same pass; costs about a copy's time again")
    optimizer_state: str | None = option(None, help="folder or optimizer.pt: the parent's Adam moments, to recycle too")
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
    def shards(self) -> list[Shard]:
        return cut(self.plan.tensors, self.config.max_shard_size)

    @cached_property
    def moment_shards(self) -> list[Shard]:
        return cut(self.moments, self.config.max_shard_size, MOMENTS) if self.moments else []

    def share(self, part: Part | None) -> list[Shard]:
        """The shards to write: all, or those of one part."""
        shards = [*self.shards, *self.moment_shards]
        return part.share(shards) if part else shards

    def exprs(self) -> Iterator[Expr]:
        """What is written, each distinct tensor of the plan once."""
        yield from (use.expr for use in self.plan.census.values())
        yield from self.moments.values()

    @cached_property
    def measurements(self) -> list[Measurement]:
        """What must be found before the write."""
        return self.needed(None)

    def needed(self, part: Part | None) -> list[Measurement]:
        """What must be found before all, or a part, is written."""
        exprs = (expr for shard in self.share(part) for expr in shard.tensors.values()) if part else self.exprs()
        return measurements(exprs, self.checkpoint.findings)

    @cached_property
    def sources(self) -> list[str]:
        """The files it reads."""
        return sorted({leaf.stored.path for expr in self.exprs() for leaf in expr.leaves()})

    @cached_property
    def identity(self) -> Identity:
        """What every part of this result has in common, on any machine.

        Times of change are left out, since copies of a file have different ones. A sample stands in for them: it
        tells an earlier step of a training, whose files have the same names and sizes, from a later one.
        """
        c = self.config
        layout = f"{c.max_shard_size}/{c.fused}/{c.checksum}/{list(self.moments)}"
        sources = [(Path(path).name, *_size_and_sample(path)) for path in self.sources]
        return Identity(plan=_digest(f"{self.plan.digest()}/{layout}"), sources=_digest(repr(sources)))

    @property
    def nbytes_measured(self) -> int:
        return nbytes_read(self.measurements)

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


def nbytes_read(needed: Iterable[Measurement]) -> int:
    """Bytes read to measure, those of equal names once."""
    return sum({m.name: m.nbytes for m in needed}.values())


def default_workers() -> int:
    return min(4, cores())


def write(
    job: Job,
    folder: Path,
    out: Path,
    *,
    part: Part | None,
    workers: int,
    resume: bool,
    progress: Progress,
    calibrate: Calibrate,
) -> dict[str, Written]:
    """Measure, then write everything but the manifest and the card into `folder`. Returns what became of each shard.

    Of a `part` of OUT only its own shards are written, and its record. `progress` hears of bytes measured and
    written; `calibrate` runs the source on a text, where the plan asks for it.
    """
    digest = f"{job.identity}/{job.config}/{_times(job)}"
    if not (resume and finished(folder, digest)):
        for stale in folder.iterdir():
            shutil.rmtree(stale) if stale.is_dir() else stale.unlink()
    known = _known(job, folder) | (measured_by_others(out, part) if part else {})
    found = settle(job.needed(part), workers=workers, known=known, calibrate=calibrate, progress=progress)
    write_found(folder, found)
    if job.moments:
        (folder / MOMENTS).parent.mkdir(exist_ok=True)
        write_index(job.moment_shards, folder, MOMENTS)
        write_info((folder / MOMENTS).parent, job.info)
    how = {"checksum": job.config.checksum, "workers": workers, "resume": resume, "progress": progress}
    with one_for_each_worker():
        written = write_shards(job.share(part), folder, digest=digest, **how)
    write_index(job.shards, folder)
    text = json.dumps(job.plan.config, indent=2) + "\n"
    (folder / "config.json").write_text(text, encoding="utf-8")
    for path in job.checkpoint.folder.passengers():
        _copy(path, folder / path.name)
    if part:
        whose, measured = owners(job.share(None), part.of), {name: fingerprint({name: found[name]}) for name in found}
        record = Record(part=part, identity=job.identity, owners=whose, written=written, measured=measured)
        record.write(folder / RECORD)
    return written


def _known(job: Job, folder: Path) -> Found:
    """What need not be measured again: found for another result, or by an earlier attempt at this one."""
    known = read_found(Path(job.config.measurements)) if job.config.measurements else {}
    return known | (read_found(folder) if (folder / FOUND).is_dir() else {})


def close_journal(folder: Path) -> None:
    """Nothing is left to resume: the folder is complete but for its publication."""
    (folder / JOURNAL).unlink(missing_ok=True)


def check_finite(written: Mapping[str, Written], out: Path, source: str) -> None:
    """Raise CheckFailed where computed values are NaN or infinite."""
    bad = {file: w for file, w in written.items() if w.not_finite}
    if bad:
        file, w = next(iter(bad.items()))
        raise CheckFailed(
            f"{sum(w.not_finite for w in bad.values())} computed values are NaN or infinite.",
            where=f"{w.where} in {out / file}",
            why="the source has such values, or they overflowed",
            hint=f"rekindle inspect {source} --checksum --nan",
        )


def _times(job: Job) -> list[tuple[str, int]]:
    """The files that the plan reads, and when they changed: others must not finish what these began."""
    return [(path, _stat(path).st_mtime_ns) for path in job.sources]


def _size_and_sample(path: str) -> tuple[int, str]:
    size = _stat(path).st_size
    with Files() as files:
        return size, _digest(files.read(path, size // 2, min(SAMPLE, size - size // 2)))


def _digest(data: str | bytes) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:16]


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
