"""A run's saved checkpoints into one better model: find coefficients, and what is written by them."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from glob import escape
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rekindle.api.averaging import averages_at
from rekindle.api.combination import Combination, is_scaled
from rekindle.api.given import models_of, objective_named
from rekindle.api.merging import Source, steps_in
from rekindle.api.model import Model
from rekindle.api.options import takes
from rekindle.apply.threads import check_workers
from rekindle.config import Resolved, resolve, to_dict
from rekindle.edit import Checkpoint
from rekindle.errors import RekindleError
from rekindle.search.config import CombineConfig
from rekindle.store.sample import sampled, sampled_files

if TYPE_CHECKING:
    from rekindle.search.find import Outcome
    from rekindle.search.judge import Difference
    from rekindle.search.objective import Function, Objective
    from rekindle.search.series import Series

Progress = Callable[[float, float], object]  # called with evaluations made, and the best score so far


@takes(CombineConfig)
def combine(
    series: Source | Sequence[Source] | Mapping[str, Source],
    objective: str | Function | Objective,
    *,
    held_out: str | Function | None = None,
    journal: str | Path | None = None,
    resume: bool = False,
    workers: int = 1,
    progress: Progress = lambda evaluations, best: None,
    **options: Any,
) -> Combination:
    """Search a linear combination of saved checkpoints that makes `objective` smaller, and judge what was found.

    `objective`: "loss", or a function of a dict of tensors by name that gives a number, or a torch scalar with a
    gradient; "FILE.py:function" names one. `rekindle.search.objective` has those that are told which data to use, so
    that what is found is reported on data that the search never saw; `held_out` is another function for the same end.

    `journal`: a file that every score is noted in; with `resume` a search that was cut off goes on from it.

        found = rekindle.combine("run/checkpoint-*", objective=f, budget=300, seed=0)
        print(found)
        found.save(OUT)
    """
    given = {"objective": objective if isinstance(objective, str) else _name(objective)}
    given |= {} if held_out is None else {"held_out": held_out if isinstance(held_out, str) else _name(held_out)}
    how = {"journal": Path(journal) if journal else None, "resume": resume, "workers": workers, "progress": progress}
    config = resolve(CombineConfig, given | options)
    models, pipeline = models_of(series, config.config.component)
    return combined(models, objective, held_out, config, pipeline=pipeline, **how)


def journal_of(out: Path) -> Path:
    """Where the scores of a search for OUT are noted while it runs: a hidden file beside it."""
    return out.parent / f".{out.name}.search.jsonl"


def priced(models: Mapping[str, Model], config: CombineConfig) -> dict[str, Any]:
    """What a search takes, out of headers alone: every tensor that could move counts."""
    from rekindle.search.coefficients import rivals
    from rekindle.search.find import BUDGET, BUDGET_GRADIENT, SCALES, checked_budget
    from rekindle.search.judge import REPORTS, RERANKED, RERANKS
    from rekindle.search.series import series_of
    from rekindle.search.store import ITEMSIZE

    check_options(config, 1)
    steps = _steps(models)
    averages = {name: model.checkpoint for name, model in _averages(config, steps).items()}
    series = series_of({name: model.as_parent for name, model in models.items()}, averages, by=config.groups)
    each: int | str = checked_budget(config, config.search, series.shape)
    if config.search == "auto" and not config.budget:
        each = f"{BUDGET} ({BUDGET_GRADIENT} by gradient)"
    kinds = rivals(series.names, [*steps.values()] or None, [*averages])
    others = len({tuple(alpha) for some in kinds.values() for alpha in some.values()})
    others += len(SCALES) if config.sum == "free" else 0
    rows = len(kinds) + 2 + (config.sum == "free")
    judged = RERANKS * (rows + 2 * RERANKED * config.seeds) + REPORTS * rows
    times = f"{config.seeds} times " if config.seeds > 1 else ""
    told = f"{others} averages and single checkpoints, {times}{each} for the search, as many for a random one, "
    return {"checkpoints": len(series), "values": series.size,
            "bytes": ITEMSIZE[config.store] * (len(series) + len(averages)) * series.size,
            "evaluations": f"{told}and up to {judged} to judge"}  # fmt: skip


def combined(
    models: Mapping[str, Model],
    objective: str | Function | Objective,
    held_out: str | Function | None,
    options: Resolved[CombineConfig],
    *,
    pipeline: Path | None = None,
    journal: Path | None = None,
    resume: bool = False,
    workers: int = 1,
    progress: Progress = lambda evaluations, best: None,
) -> Combination:
    """`combine` of what `models_of` found."""
    from rekindle.search.candidate import kept_of
    from rekindle.search.find import find
    from rekindle.search.ledger import Journal, Ledger
    from rekindle.search.restarts import restart
    from rekindle.search.series import STATISTICS, series_of
    from rekindle.search.store import ITEMSIZE, Held, fill, where_to

    check_options(options.config, workers)
    parents = {name: model.as_parent for name, model in models.items()}
    judge = objective_named(objective, parents, options.config, pipeline)
    other = None if held_out is None else objective_named(held_out, parents, options.config, pipeline)
    steps = _steps(models)
    averages = _averages(options.config, steps)
    kept_by_run = {name: model.checkpoint for name, model in averages.items()}
    series = series_of(parents, kept_by_run, fused=judge.fused, by=options.config.groups)
    held: Held = options.config.store
    beside = journal.parent if journal and journal.parent.is_dir() else None
    room = where_to(ITEMSIZE[held] * (len(series) + len(averages)) * series.size, beside)
    store, kept = fill(series, held, room), kept_of(series)
    opened = [source for one in kept_by_run.values() for source in one.sources.values()]
    search = _search_of([*parents.values(), *opened], series.names, judge, options)
    with closing(Journal(journal, search, resume=resume)) as notes:
        how = {"journal": notes, "workers": workers, "progress": progress, "written": series.rounding()}
        ledger = Ledger(judge, store, series.places, kept, **how)
        reports = None if other is None else Ledger(other, store, series.places, kept, name="held out", **how)
        known = {"steps": [*steps.values()] or None, "averages": [*averages]}
        outcome = find(ledger, options.config, series.names, **known, held_out=reports)
    scaled = is_scaled(outcome.result.alpha)  # else what never moved comes back of itself
    on_disk = series_of(parents).kept if judge.fused and scaled else series.kept
    keep = tuple(escape(name) for name in on_disk if scaled or name.endswith(STATISTICS))
    data = described(outcome, series, judge.name, options.config)
    data["floor"] = {name: _finite(value) for name, value in (other or judge).floor.items()}
    read = dict.fromkeys(note for parent in parents.values() for note in parent.folder.notes)
    data["notes"] = [note for note in (*read, restart(parents, steps), *judge.notes) if note]
    component = (options.config.component or "unet") if pipeline else None
    return Combination(models, averages, data, keep, pipeline, component)


def _steps(models: Mapping[str, Model]) -> dict[str, int]:
    """Of a series whose steps rise; a further training may have counted from 0 again."""
    steps = steps_in(models)
    return steps if all(one < then for one, then in pairwise(steps.values())) else {}


def _averages(config: CombineConfig, steps: Mapping[str, int]) -> dict[str, Model]:
    """Those that the run kept, after the last of these steps."""
    return averages_at(config.averages, max(steps.values(), default=None)) if config.averages else {}


def _name(function: Any) -> str:
    return getattr(function, "__name__", None) or getattr(function, "name", type(function).__name__)


def _search_of(
    checkpoints: Sequence[Checkpoint],
    names: Sequence[str],
    objective: Objective,
    options: Resolved[CombineConfig],
) -> str:
    """Names a search: a journal of another one is of no use to it."""
    folders = [checkpoint.folder for checkpoint in checkpoints]
    told = {name: value["value"] for name, value in options.options().items()}
    files = [Path(str(told[name]).rpartition(":")[0]).expanduser() for name in ("objective", "held_out", "features")]
    files += _files_of(Path(told["data"]).expanduser())
    read = sampled_files({str(path): path for path in files if path.is_file()})
    stored = [sampled(folder.tensors) for folder in folders]
    return json.dumps([[folder.fingerprint for folder in folders], stored, list(names), objective.name, told, read])


def _files_of(data: Path) -> list[Path]:
    return sorted(data.rglob("*")) if data.is_dir() else [data]


def check_options(config: CombineConfig, workers: int) -> None:
    """Raise RekindleError for numbers that are none."""
    check_workers(workers)
    least_of = {"budget": 1, "seeds": 1, "samples": 2, "sampling_steps": 1, "batch_tokens": 1, "skip": 0}
    for name, least in least_of.items():
        if (value := getattr(config, name)) is not None and value < least:
            flag = name.replace("_", "-")
            raise RekindleError(f"{name} is {value}: {least} is the least.", hint=f"--{flag} {least}, or more")


def _finite(number: float) -> float | None:
    """JSON has no NaN and no infinity."""
    return number if math.isfinite(number) else None


def _interval(apart: Difference) -> dict[str, float | None]:
    return {name: _finite(number) for name, number in apart._asdict().items()}


def described(outcome: Outcome, series: Series, objective: str, config: CombineConfig) -> dict[str, Any]:
    """What OUT/combine.json holds: numbers and names alone."""
    from rekindle.search.judge import difference

    rows = [
        {
            "kind": row.kind,
            "name": row.name,
            "searched": _finite(row.searched),
            "reported": {metric: [_finite(value) for value in values] for metric, values in row.reported.items()},
            "less_ema": {metric: _interval(difference(row, outcome.ema, metric)) for metric in outcome.metrics},
            "less_rival": {metric: _interval(difference(row, outcome.rival, metric)) for metric in outcome.metrics},
            "distance": far,
            "coefficients": row.alpha.tolist(),
        }
        for row, far in zip(outcome.rows, outcome.distances, strict=True)
    ]
    return {
        "objective": objective,
        "search": outcome.search,
        "sum": config.sum,
        "seed": config.seed,
        "options": to_dict(config),
        "checkpoints": list(series.names),
        "searched": outcome.searched,
        "alone": [_finite(score) for score in outcome.alone],
        "values": series.size,
        "groups": [*series.parts] if len(series.parts) > 1 else [],
        "held_out": outcome.held_out,
        "evaluations": dict(outcome.evaluations),
        "invalid": outcome.invalid,
        "rival": outcome.rival.kind,
        "result": outcome.result.kind,
        "rows": rows,
        "seeds": [alpha.tolist() for alpha in outcome.others],
    }
