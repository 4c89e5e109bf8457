"""One verb per method, out of the table of methods; and `run`."""

from __future__ import annotations

import gc
import os
import shlex
import sys
from itertools import islice
from typing import Any

import click

from rekindle import api
from rekindle.apply.save import Job, SaveConfig, default_workers
from rekindle.cli.options import options_of, resolved
from rekindle.cli.out import FORMAT, count, echo, nbytes, result, say, table
from rekindle.config import Resolved, dump_yaml, resolve
from rekindle.errors import RekindleError
from rekindle.methods import METHODS, Method

SHOWN = 4  # tensors named one by one in a dry run

EXAMPLES = {
    "upcycle": [
        "rekindle upcycle SRC OUT --experts 8 --top-k 2",
        "rekindle upcycle SRC OUT --experts 4 --dry-run",
    ],
    "grow-depth": [
        "rekindle grow-depth SRC OUT --factor 2",
        "rekindle grow-depth SRC OUT --layers 3 --order llama-pro",
    ],
    "grow-experts": [
        "rekindle grow-experts MOE OUT --factor 2 --noise 0.01",
        "rekindle grow-experts MOE OUT --top-k keep --copies utility --scores scores.json",
    ],
    "rewrite": ["rekindle rewrite SRC OUT --max-shard-size 2GB", "rekindle rewrite SRC OUT --dtype bfloat16"],
}


def _verb(method: Method) -> click.Command:
    text = f"{method.summary}\n\n" + (f"{method.paper}\n\n" if method.paper else "")
    text += "\b\n" + "\n".join(EXAMPLES.get(method.verb, []))

    @click.command(method.verb, help=text)
    @click.argument("src")
    @click.argument("out")
    @options_of(method.config, SaveConfig)
    @_writing
    @click.option("--config", "config_file", metavar="FILE", help="YAML with values for the method's options")
    @click.option("--print-config", is_flag=True, help="print the resolved recipe as YAML and stop")
    def verb(src: str, out: str, config_file: str | None, print_config: bool, **given: Any) -> None:
        gc.disable()  # a plan is hundreds of thousands of objects that live to the end: a third of its time saved
        options = resolved(method.config, given, config_file)
        save = resolved(SaveConfig, given)
        model = api.open(src).then(method.verb, options)
        if print_config:
            click.echo(dump_yaml(model.recipe(save)), nl=False)
            return
        echo(f"rekindle {method.verb}: {src} -> {out}", options, save)
        _write(model, out, save, given)

    return verb


def _writing(function: Any) -> Any:
    """The flags of every verb that writes a checkpoint."""
    for option in (
        click.option("--debug", is_flag=True, hidden=True),
        FORMAT,
        click.option("--workers", type=int, metavar="N", help="threads that write  [cores, at most 4]"),
        click.option("--resume", is_flag=True, help="finish an interrupted write; starts afresh where there is none"),
        click.option("--overwrite", is_flag=True, help="replace OUT"),
        click.option("--dry-run", is_flag=True, help="say what would be written and what it costs; write nothing"),
    ):
        function = option(function)
    return function


@click.command("run")
@click.argument("recipe")
@click.argument("out")
@_writing
def run(recipe: str, out: str, **given: Any) -> None:
    """Apply a recipe: the rekindle.yaml of an earlier result, or your own.

    \b
    rekindle run OUT/rekindle.yaml AGAIN
    rekindle run recipe.yaml OUT --dry-run
    """
    if api.is_training(recipe):
        if given["dry_run"]:
            raise RekindleError("A recipe that trains has no dry run.", where=recipe)
        path = api.run(recipe, out, overwrite=given["overwrite"], resume=given["resume"])
        result({"out": str(path)}, str(path), given["format_"])
        return
    gc.disable()
    model, save_options = api.load_recipe(recipe)
    save = resolve(SaveConfig, {}, save_options)
    echo(f"rekindle run: {recipe} -> {out}", *(step.options for step in model.steps), save)
    _write(model, out, save, given)


def _write(model: api.Model, out: str, save: Resolved[SaveConfig], given: dict[str, Any]) -> None:
    from rekindle.store.publish import check_free

    for note in model.checkpoint.notes:
        say(f"note: {note}")
    given_save = {name: value["value"] for name, value in save.options().items() if value["origin"] != "default"}
    workers = given["workers"] or default_workers()
    job = model.job(**given_save)
    if given["dry_run"]:
        result(dry_data(job, workers), dry_text(job, workers), given["format_"])
        return
    from pathlib import Path

    from tqdm import tqdm

    check_free(Path(out), given["overwrite"])
    with tqdm(
        total=job.nbytes + job.nbytes_measured, unit="B", unit_scale=True, disable=None, file=sys.stderr, leave=False
    ) as bar:
        path = model.save(
            out,
            overwrite=given["overwrite"],
            resume=given["resume"],
            workers=workers,
            progress=bar.update,
            **given_save,
        )
    data = {"out": str(path), "bytes": job.nbytes, "parameters": model.checkpoint.parameters()}
    lines = [f"{path}: {api.summary(model.checkpoint)}, {_parameters(job)}, {nbytes(job.nbytes)}"]
    lines.append(f"promise: {model.checkpoint.promise.kind}: {model.checkpoint.promise.text}")
    result(data, "\n".join(lines), given["format_"])
    if os.path.isdir(model.source):
        say(f"next:  {shlex.join(['rekindle', 'verify', str(path), '--against', model.source])}")


def dry_data(job: Job, workers: int) -> dict[str, Any]:
    return {
        "tensors": len(job.plan.tensors),
        "bytes": job.nbytes,
        "peak_memory": job.memory(workers),
        "measured": {"count": len({m.name for m in job.measurements}), "bytes": job.nbytes_measured},
        "fates": job.plan.counts,
        "dropped": job.plan.dropped,
        "parameters": job.checkpoint.parameters(),
        "promise": {"kind": job.checkpoint.promise.kind, "text": job.checkpoint.promise.text},
        "notes": job.checkpoint.notes,
        "config": job.plan.config,
    }


def dry_text(job: Job, workers: int) -> str:
    rows = [("", "tensors", "bytes")]
    rows += [(fate, str(n["tensors"]), nbytes(n["bytes"])) for fate, n in job.plan.counts.items()]
    if job.moments:
        rows.append(("moments", str(len(job.moments)), nbytes(sum(x.nbytes for x in job.moments.values()))))
    rows.append(("total", str(len(job.plan.tensors) + len(job.moments)), nbytes(job.nbytes)))
    lines = ["[dry-run] " + api.summary(job.checkpoint) + ", " + _parameters(job)]
    lines.append(table(rows, indent=2, right=(1, 2)))
    changed = len(job.plan.tensors) - job.plan.counts["copied"]["tensors"]
    for name, fate in islice(job.plan.changed(), SHOWN):
        expr = job.plan.tensors[name]
        lines.append(f"  {fate}: {name} {expr.dtype} {list(expr.shape)}")
    lines += [f"  ... and {changed - SHOWN} more"] if changed > SHOWN else []
    lines.append(f"  dropped: {', '.join(job.plan.dropped) or 'nothing'}")
    if job.measurements:
        texts = sorted({m.data for m in job.measurements if m.data})
        by = "".join(f", and the source run on {text}" for text in texts)
        lines.append(
            f"  measure: {len({m.name for m in job.measurements})} tensors, {nbytes(job.nbytes_measured)} read{by}"
        )
    lines.append(f"  memory:  at most {nbytes(job.memory(workers))} of blocks, {workers} workers")
    lines.append(f"  promise: {job.checkpoint.promise.kind}: {job.checkpoint.promise.text}")
    return "\n".join(lines)


def _parameters(job: Job) -> str:
    n = job.checkpoint.parameters()
    if n["total"] == n["active"]:
        return f"{count(n['total'])} parameters"
    return f"{count(n['total'])} parameters, {count(n['active'])} active"


COMMANDS = {method.verb: _verb(method) for method in METHODS.values()} | {"run": run}
