"""One verb per method, out of the table of methods; `run`, and `join`."""

from __future__ import annotations

import gc
import os
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import click

from rekindle import api
from rekindle.anatomy import Nameless
from rekindle.api.merging import BASE, merged, named
from rekindle.api.repairing import repaired
from rekindle.api.saving import check_apart, check_keeps_state, lost
from rekindle.api.saving import recipe as recipe_of
from rekindle.api.source import typed
from rekindle.api.warming import warmed
from rekindle.apply.parts import Part, missing_parts, parse_part, read_records
from rekindle.apply.save import Job, SaveConfig, default_workers, nbytes_read
from rekindle.apply.threads import check_workers
from rekindle.cli.dry_run import cost_text, dry_data, dry_text, parameters
from rekindle.cli.options import options_of, resolved
from rekindle.cli.out import FORMAT, echo, nbytes, result, say, table
from rekindle.config import Resolved, dump_yaml, resolve
from rekindle.edit import Checkpoint
from rekindle.errors import RekindleError
from rekindle.methods import METHODS, Method
from rekindle.progress import Progress
from rekindle.store.lineage import last_sources
from rekindle.store.manifest import read_manifest
from rekindle.store.publish import check_free, check_spares


def _verb(method: Method) -> click.Command:
    """SRC OUT, SRC... OUT of a method that takes several, OUT where options name them; --tower of one that sees one."""
    text = f"{method.summary}\n\n" + (f"{method.paper}\n\n" if method.paper else "")
    text += "\b\n" + "\n".join(method.commands)

    several, sees_tower = method.takes == "models", method.takes == "tower"

    @click.command(method.verb, help=text)
    @(_nothing if method.named_by else _sources(several))
    @click.argument("out")
    @options_of(method.config, SaveConfig)
    @(TOWER if sees_tower else _nothing)
    @_writing
    @click.option("--config", "config_file", metavar="FILE", help="YAML with values for the method's options")
    @click.option("--print-config", is_flag=True, help="print the resolved recipe as YAML and stop")
    def verb(out: str, config_file: str | None, print_config: bool, sources: Any = (), **given: Any) -> None:
        gc.disable()  # a plan is hundreds of thousands of objects that live to the end: a third of its time saved
        options = resolved(method.config, given, config_file, out)
        save = resolved(SaveConfig, given)
        if method.named_by:
            model = warmed(options)
            sources = tuple(dict.fromkeys(model.given.values()))
        elif several:
            set_ = options.origins | save.origins
            by_order = [f"--{name.replace('_', '-')}" for name in BY_ORDER if set_.get(name, "default") != "default"]
            model = merged(named(typed(sources, by_order)), options.config.base, options)
            options = model.steps[-1].options  # with the base that adapters name
            options = replace(options, config=replace(options.config, base=model.given.get(BASE)))
        elif method.verb == "repair":
            model = repaired(sources, options)
        else:
            model = api.open(sources).then(method.verb, options, given.pop("tower", None))
        if print_config:
            click.echo(dump_yaml(recipe_of(model, save)), nl=False)
            return
        shown = " ".join(sources) if several else sources
        echo(f"rekindle {method.verb}: {shown} -> {out}", options, save)
        _write(model, out, save, given)

    return verb


BY_ORDER = "weights", "by_role", "t", "optimizer_state"  # options that go by the order of several SRC

TOWER = click.option("--tower", metavar="NAME", help="of an encoder-decoder: encoder, decoder or both")


def _sources(several: bool) -> Any:
    return click.argument("sources", nargs=-1 if several else 1, metavar="SRC..." if several else "SRC", required=True)


def _nothing(function: Any) -> Any:
    return function


def _writing(function: Any) -> Any:
    """The flags of every verb that writes a checkpoint."""
    for option in (
        FORMAT,
        click.option("--workers", type=int, metavar="N", help="threads that write  [cores, at most 4]"),
        click.option("--part", metavar="I/N", help="write the I-th N-th of the shards; `rekindle join OUT` ends it"),
        click.option("--resume", is_flag=True, help="finish an interrupted write; starts afresh where there is none"),
        click.option("--overwrite", is_flag=True, help="replace OUT, or this part of it"),
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
        if given["part"]:
            raise RekindleError("A recipe that trains has no parts.", where=recipe)
        if given["dry_run"]:
            cost = api.run_cost(recipe, out, resume=given["resume"], overwrite=given["overwrite"])
            result(cost, cost_text(cost), given["format_"])
            return
        path = api.run(recipe, out, overwrite=given["overwrite"], resume=given["resume"])
        result({"out": str(path)}, str(path), given["format_"])
        return
    gc.disable()
    check_spares(Path(out), None, recipe)
    model, save_options = api.load_recipe(recipe)
    save = resolve(SaveConfig, {}, save_options)
    echo(f"rekindle run: {recipe} -> {out}", *(step.options for step in model.steps), save)
    _write(model, out, save, given)


@click.command("join")
@click.argument("out")
@FORMAT
def join(out: str, format_: str) -> None:
    """Make one model of the parts that `--part` wrote: the same files as a single write.

    Every part must be in OUT, written there or copied there. What is missing or does not belong is named.

    \b
    rekindle join OUT
    """
    path = api.join(out)
    checkpoint = api.open(path).checkpoint
    stored = sum(tensor.nbytes for tensor in checkpoint.folder.tensors.values())
    human = f"{path}: {checkpoint.summary}, {parameters(checkpoint)}, {nbytes(stored)}"
    result({"out": str(path), "bytes": stored, "parameters": checkpoint.parameters()}, human, format_)
    manifest = read_manifest(path)
    sources = last_sources(manifest.lineage) if manifest else []
    _say_verify(checkpoint, path, sources[0] if len(sources) == 1 else "")


def _write(model: api.Model, out: str, save: Resolved[SaveConfig], given: dict[str, Any]) -> None:
    for note in model.checkpoint.notes:
        say(f"note: {note}")
    given_save = {name: value["value"] for name, value in save.options().items() if value["origin"] != "default"}
    check_apart(model, Path(out), save.config)
    workers = check_workers(default_workers() if given["workers"] is None else given["workers"])
    part = parse_part(given["part"]) if given["part"] else None
    job = model.job(**given_save)
    for note in job.notes:
        say(f"note: {note}")
    if given["overwrite"] and not part:
        check_free(Path(out), overwrite=True)
        check_keeps_state(model, Path(out), job)
        if gone := lost(model, Path(out), job):
            say(f"note: goes with the {out} that is replaced, and is not in the new one: {', '.join(gone)}")
    if given["dry_run"]:
        result(dry_data(job, part, workers), dry_text(job, part, workers), given["format_"])
        return
    if part:
        _say_nothing_to_write(job, part)
    else:
        check_free(Path(out), given["overwrite"])
    total = sum(shard.nbytes for shard in job.share(part)) + nbytes_read(job.needed(part))
    with Progress("write", total, "B") as bar:
        how = {name: given[name] for name in ("overwrite", "resume", "part")}
        path = model.save(out, workers=workers, progress=bar.update, **how, **given_save)
    _tell(model, job, part, path, given["format_"])


def _say_nothing_to_write(job: Job, part: Part) -> None:
    if not job.share(part):
        n = len(job.share(None))
        there = f"there {'is 1 shard' if n == 1 else f'are {n} shards'}"
        say(f"note: part {part} has nothing to write: {there}; a smaller --max-shard-size makes more")


def _tell(model: api.Model, job: Job, part: Part | None, path: Path, format_: str) -> None:
    """What was written, and what comes next."""
    child, own = model.checkpoint, job.share(part)
    size = sum(shard.nbytes for shard in own)
    data: dict[str, Any] = {"out": str(path), "bytes": size, "parameters": child.parameters()}
    lines = [f"{path}: {child.summary}, {parameters(child)}, {nbytes(size)}"]
    if part:
        data |= {"part": str(part), "shards": [shard.file for shard in own]}
        lines[0] += f", part {part}: {len(own)} of {len(job.share(None))} shards"
    lines.append(f"promise: {child.promise.kind}: {child.promise.text}")
    if told := child.told:
        data["measured"] = told
        columns = list(next(iter(told.values())))
        rows = [("measured", *columns), *((row, *(f"{x:.3f}" for x in found.values())) for row, found in told.items())]
        lines.append(table(rows, right=range(1, len(columns) + 1)))
    result(data, "\n".join(lines), format_)
    if part:
        missing = missing_parts(read_records(path))
        once = f"  # once part {', '.join(map(str, missing))} of {part.of} is here too" if missing else ""
        say(f"next:  {shlex.join(['rekindle', 'join', str(path)])}{once}")
    else:
        _say_verify(child, path, model.source)


def _say_verify(child: Checkpoint, path: Path, source: str) -> None:
    if os.path.isdir(source) and not path.samefile(source) and not isinstance(child.family, Nameless):
        say(f"next:  {shlex.join(['rekindle', 'verify', str(path), '--against', source])}")


COMMANDS = {method.verb: _verb(method) for method in METHODS.values()} | {"run": run, "join": join}
