"""Write a checkpoint into a folder: weights, config, and the files that travel along."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath
from typing import Any

from rekindle.apply.crew import JOURNAL, Progress, finished, write_shards
from rekindle.apply.identity import identity
from rekindle.apply.join import RECORD, measured_by_others
from rekindle.apply.measure import FOLDER as FOUND
from rekindle.apply.measure import Calibrate, Found, fingerprint, found_in, read_found, settle, write_found
from rekindle.apply.moments import DESCRIPTION as STATE
from rekindle.apply.moments import write_info
from rekindle.apply.optimizer import recycle, states_of, told
from rekindle.apply.parts import Identity, Part, Record, owners
from rekindle.apply.shards import Shard, cut, write_index
from rekindle.apply.threads import cores, one_for_each_worker
from rekindle.apply.write import LARGE, Written
from rekindle.config import Size, option
from rekindle.edit.checkpoint import Checkpoint
from rekindle.edit.expressions import Expr
from rekindle.edit.measure import Measurement, measurements
from rekindle.edit.plan import Plan, plan
from rekindle.edit.weighing import NotFinite
from rekindle.errors import CheckFailed, RekindleError, counted
from rekindle.store.folder import ADAPTER
from rekindle.store.passengers import have_say, travels
from rekindle.store.stamps import Stamps, check_unchanged, stamp, stamps, stamps_in, unchanged
from rekindle.store.weights import stem_of

MOMENTS = "optimizer/optimizer"  # of the files that hold Adam's moments
TABLES = {"config.json", ADAPTER, STATE}  # what the plan goes by, beside headers and indices


@dataclass(frozen=True, kw_only=True)
class SaveConfig:
    """How a result is laid out on disk."""

    max_shard_size: Size = option(Size(5_000_000_000), help="largest weight file, e.g. 5GB")
    fused: bool = option(False, help="stack experts as transformers v5 holds them in memory, not one by one")
    checksum: bool = option(False, help="hash each shard (SHA-256) in the same pass; costs about a copy's time again")
    optimizer_state: tuple[str, ...] | None = option(
        None, help="folder or optimizer.pt: the parent's Adam moments, to recycle too; one for each SRC"
    )
    measurements: str | None = option(None, help="earlier result of the same source whose measurements are reused")


@dataclass(frozen=True)
class Job:
    """A plan with its layout settled: everything that will be written, priced."""

    checkpoint: Checkpoint
    plan: Plan
    config: SaveConfig
    moments: dict[str, Expr]
    info: dict[str, Any]  # optimizer.json
    seen: Stamps  # of the files it reads, from before they were opened

    @property
    def nbytes(self) -> int:
        return self.plan.nbytes + sum(expr.nbytes for expr in self.moments.values())

    @cached_property
    def shards(self) -> list[Shard]:
        return cut(self.plan.tensors, self.config.max_shard_size, self.stem)

    @property
    def stem(self) -> str:
        return stem_of(self.plan.config)

    @cached_property
    def moment_shards(self) -> list[Shard]:
        return cut(self.moments, self.config.max_shard_size, MOMENTS) if self.moments else []

    @property
    def notes(self) -> list[str]:
        """What the user should know, besides the checkpoint's own notes."""
        return told(self.moments)

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
        if part:
            exprs = [expr for shard in self.share(part) for expr in shard.tensors.values()]
        else:
            exprs = [*self.plan.made, *self.moments.values()]
        return measurements(exprs, (finding.measurement for finding in self.checkpoint.findings))

    @cached_property
    def sources(self) -> list[str]:
        """The files it reads."""
        return sorted({leaf.stored.path for expr in self.exprs() for leaf in expr.leaves()})

    @cached_property
    def passengers(self) -> list[Path]:
        return self.checkpoint.folder.passengers()

    @cached_property
    def layout(self) -> str:
        """Names what is written, and how it lies on disc: the same whenever the same files would be written."""
        c = self.config
        files = "".join(f"/{name}={text}" for name, text in self.checkpoint.files.items())
        return f"{self.plan.digest()}/{c.max_shard_size}/{c.fused}/{c.checksum}/{list(self.moments)}{files}"

    @cached_property
    def identity(self) -> Identity:
        """What every part of this result has in common, on any machine."""
        leaves = (leaf for expr in self.exprs() for leaf in expr.leaves())
        return identity(self.layout, leaves, self.checkpoint.folder)

    def check_unchanged(self) -> None:
        """Raise RekindleError where a file that is read is not what it was when it was opened."""
        tables = [path for path in self.seen if Path(path).name in TABLES or path.endswith(".index.json")]
        carried = self.checkpoint.folder
        there = [path for path in carried.seen if travels(Path(path).name)]  # or was, when it was opened
        check_unchanged(self.seen, {*self.sources, *tables, *there, *map(str, self.passengers)})

    @property
    def nbytes_measured(self) -> int:
        return nbytes_read(self.measurements)

    @cached_property
    def found_in(self) -> dict[str, str]:
        """Names what measurements are found in, see apply.measure."""
        folders = {key: source.folder for key, source in self.checkpoint.sources.items()}
        return found_in(folders, self.measurements)

    def memory(self, workers: int) -> int:
        return self.plan.memory(workers, LARGE)


def prepare(checkpoint: Checkpoint, config: SaveConfig) -> Job:
    """Plan the writing; no byte moves. Raises RekindleError with every problem."""
    if config.max_shard_size < 1:
        raise RekindleError(f"A shard of {config.max_shard_size} bytes holds nothing.", hint="--max-shard-size 5GB")
    planned, folder = plan(checkpoint, fused=config.fused), checkpoint.folder
    seen = dict(stamps([] if folder.bare else folder.passengers()))
    for source in checkpoint.sources.values():
        seen |= source.folder.seen
    if not config.optimizer_state:
        return Job(checkpoint, planned, config, {}, {}, seen)
    for path in config.optimizer_state:
        seen |= stamps_in(Path(path))
    states = states_of(checkpoint.sources, config.optimizer_state)
    unfused = plan(checkpoint) if config.fused else planned
    return Job(checkpoint, planned, config, *recycle(unfused, states), seen)


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
    unpacked: Mapping[Path, str] | None = None,
) -> dict[str, Written]:
    """Measure, then write everything but the manifest and the card into `folder`. Returns what became of each shard.

    Of a `part` of OUT only its own shards are written, and its record. `progress` hears of bytes measured and
    written; `calibrate` runs a source on a text, where the plan asks for it. `unpacked` names what is in those folders
    whose files have no times of their own: steps of archives, which are unpacked anew each time. Raises RekindleError
    where a source is changed meanwhile, or has files that are links out of it.
    """
    with unchanged(job.check_unchanged):
        digest = f"{job.layout}/{job.config}/{','.join((unpacked or {}).values())}/{_times(job, list(unpacked or {}))}"
        _clear(folder, finished(folder, digest) if resume else {})
        job.checkpoint.folder.carry(folder)
        have_say(folder, job.checkpoint.family.generating(job.checkpoint.settings))
        for name, text in job.checkpoint.files.items():
            (folder / name).parent.mkdir(exist_ok=True)
            (folder / name).write_text(text, encoding="utf-8")
        known = _known(job, folder) | (measured_by_others(out, part) if part else {})
        try:
            found = settle(job.needed(part), workers=workers, known=known, calibrate=calibrate, progress=progress)
        except NotFinite as error:
            raise error.of(job.checkpoint.sources[error.source].folder.named) from None
        write_found(folder, found, job.found_in if found else {})
        if job.moments:
            (folder / MOMENTS).parent.mkdir(exist_ok=True)
            write_index(job.moment_shards, folder, MOMENTS)
            write_info((folder / MOMENTS).parent, job.info)
        how = {"checksum": job.config.checksum, "workers": workers, "resume": resume, "progress": progress}
        with one_for_each_worker():
            written = write_shards(job.share(part), folder, digest=digest, **how)
        write_index(job.shards, folder, job.stem)
        text = json.dumps(job.plan.config, indent=2) + "\n"
        (folder / "config.json").write_text(text, encoding="utf-8")
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


def check_finite(written: Mapping[str, Written], out: Path, *sources: str) -> None:
    """Raise CheckFailed where computed values are NaN or infinite."""
    bad = {file: w for file, w in written.items() if w.not_finite}
    if bad:
        file, w = next(iter(bad.items()))
        count = sum(w.not_finite for w in bad.values())
        one = "the source" if len(sources) == 1 else "a source"
        raise CheckFailed(
            f"{counted(count, 'computed value')} {'is' if count == 1 else 'are'} NaN or infinite.",
            where=f"{w.where} in {out / file}",
            why=f"{one} has such values, or they overflowed",
            hint="; ".join(f"rekindle inspect {source} --nan" for source in list(dict.fromkeys(sources))[:4]),
        )


def _times(job: Job, without: Sequence[Path]) -> list[tuple[str, int]]:
    """The files that the plan reads, and when they changed: others must not finish what these began."""
    paths = [path for path in job.sources if not any(Path(path).is_relative_to(folder) for folder in without)]
    return [(path, found.mtime_ns) for path in paths if (found := stamp(path))]


def _clear(folder: Path, done: Mapping[str, Written]) -> None:
    """Leave of an earlier attempt what is finished and what was measured, or nothing."""
    kept = {JOURNAL, FOUND, *(PurePath(file).parts[0] for file in done)} if done else set()
    for path in folder.iterdir():
        if path.name not in kept:
            shutil.rmtree(path) if path.is_dir() else path.unlink()
