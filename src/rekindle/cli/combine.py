"""combine and average: one model out of what a run saved."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Any

import click

from rekindle import api
from rekindle.api.combining import combined, journal_of, priced
from rekindle.api.given import models_of
from rekindle.api.source import files_read, place, typed
from rekindle.apply.save import SaveConfig
from rekindle.cli.options import options_of, resolved
from rekindle.cli.out import FORMAT, count, echo, nbytes, result, say, table
from rekindle.errors import RekindleError
from rekindle.methods.merging.post_hoc import AverageConfig
from rekindle.progress import Progress
from rekindle.report.combination import combination_text
from rekindle.search.config import CombineConfig
from rekindle.store.publish import check_free, check_spares


@click.command("combine")
@click.argument("series", nargs=-1, metavar="SERIES...", required=True)
@click.argument("out")
@options_of(CombineConfig, SaveConfig)
@click.option("--config", "config_file", metavar="FILE", help="YAML with values for these options")
@click.option("--page", metavar="DIR", help="write a page of what was found there, with figures")
@click.option("--workers", type=int, default=1, metavar="N", help="candidates that are scored at once  [1]")
@click.option("--resume", is_flag=True, help="go on with an interrupted search; starts afresh where there is none")
@click.option("--overwrite", is_flag=True, help="replace OUT")
@click.option(
    "--dry-run", is_flag=True, help="say what would be searched and what it takes; nothing is read or written"
)
@FORMAT
def combine(
    series: tuple[str, ...],
    out: str,
    config_file: str | None,
    page: str | None,
    workers: int,
    resume: bool,
    overwrite: bool,
    dry_run: bool,
    format_: str,
    **given: Any,
) -> None:
    """A better model out of a run's saved checkpoints: a linear combination whose coefficients are searched.

    LCSC (Liu et al. 2024, arXiv 2404.02241)

    \b
    rekindle combine 'run/checkpoint-*' OUT --objective loss --data corpus/ --seq-len 64 --budget 40
    rekindle combine 'run/checkpoint-*' OUT --objective score.py:score --search cma --page PAGE
    """
    options, save = resolved(CombineConfig, given, config_file, out), resolved(SaveConfig, given)
    models, pipeline = models_of(typed(series), options.config.component)
    echo(f"rekindle combine: {' '.join(series)} -> {out}", options, save)
    for folder in map(Path, (out, *([page] if page else []))):
        check_spares(folder, pipeline, *files_read(options.config))
        for source in (source for model in models.values() for source in model.given.values()):
            check_spares(folder, place(source))
    if page and Path(page).resolve() == Path(out).resolve():
        raise RekindleError("The page would replace OUT.", hint="--page PAGE, another folder")
    if dry_run:
        cost = priced(models, options.config)
        rows = [("checkpoints", str(cost["checkpoints"])), ("values", count(cost["values"])),
                ("held in memory", nbytes(cost["bytes"])), ("evaluations", cost["evaluations"])]  # fmt: skip
        result(cost, table(rows), format_)
        return
    for folder in (out, *([page] if page else [])):
        check_free(Path(folder), overwrite)
    journal = journal_of(Path(out))
    if resume and journal.exists():
        say(f"note: goes on with what {journal} knows")
    with Progress("search", None, "evaluations") as bar:
        found = combined(
            models,
            options.config.objective,
            options.config.held_out,
            options,
            pipeline=pipeline,
            journal=journal,
            resume=resume,
            workers=workers,
            progress=lambda share, best: bar.update(1, f"best {best:.4g}"),
        )
    kept = {name: value["value"] for name, value in save.options().items() if value["origin"] != "default"}
    path = found.save(out, overwrite=overwrite, **kept)
    journal.unlink(missing_ok=True)
    written = {"page": str(found.page(page, overwrite=overwrite))} if page else {}
    shown = "".join(f"\npage: {place}" for place in written.values())
    result({"out": str(path), **written, **found.data}, f"{path}: {combination_text(found.data)}{shown}", format_)
    if options.config.objective == "loss":
        data = ["--data", options.config.data] if options.config.data != "stdlib" else []
        say(f"next:  {shlex.join(['rekindle', 'evaluate', str(path), *data])}")


@click.command("average")
@click.argument("averages")
@click.argument("out")
@options_of(AverageConfig, SaveConfig)
@click.option("--overwrite", is_flag=True, help="replace OUT")
@FORMAT
def average(averages: str, out: str, overwrite: bool, format_: str, **given: Any) -> None:
    """An average of any length, out of those that `train --keep-averages` left beside a run.

    Post-hoc EMA (Karras et al. 2023, arXiv 2312.02696)

    \b
    rekindle average RUN-averages OUT --sigma 0.07
    """
    options, save = resolved(AverageConfig, given), resolved(SaveConfig, given)
    echo(f"rekindle average: {averages} -> {out}", options, save)
    model = api.average(averages, sigma=options.config.sigma, step=options.config.step)
    for note in model.checkpoint.notes:
        say(f"note: {note}")
    kept = {name: value["value"] for name, value in save.options().items() if value["origin"] != "default"}
    path = model.save(out, overwrite=overwrite, **kept)
    weights = dict(zip(model.given, map(float, model.steps[-1].options.config.weights), strict=True))
    rows = [("average", "counts"), *((name, f"{weight:+.4f}") for name, weight in weights.items())]
    result({"out": str(path), "coefficients": weights}, f"{path}\n{table(rows, right=(1,))}", format_)


COMMANDS = {"combine": combine, "average": average}
