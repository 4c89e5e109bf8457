"""A model's way to OUT: what may be replaced there, the bytes, and the papers beside them."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import fields, replace
from pathlib import Path, PurePath
from typing import Any, get_type_hints

from rekindle.api.calibration import calibration
from rekindle.api.decided import Decided, Step
from rekindle.api.source import digest_of, files_read, place
from rekindle.apply import save as saving
from rekindle.apply.join import is_there, publishing_part
from rekindle.apply.measure import FOLDER as MEASURED
from rekindle.apply.measure import SOURCE, was_found_in
from rekindle.apply.parts import Part
from rekindle.apply.save import Job, SaveConfig
from rekindle.apply.state import states_in
from rekindle.config import Resolved, dump_yaml, only_in_files, option_name, read_yaml, to_dict
from rekindle.edit import Checkpoint
from rekindle.edit.measure import Activations
from rekindle.edit.provenance import provenance
from rekindle.errors import RekindleError
from rekindle.methods import METHODS
from rekindle.store.folder import PARTS, open_folder
from rekindle.store.lineage import extended
from rekindle.store.manifest import NAME as MANIFEST
from rekindle.store.manifest import Manifest, Record, read_manifest
from rekindle.store.publish import check_free, check_spares, publishing
from rekindle.store.system import explained
from rekindle.version import __version__

Progress = Callable[[int], object]


def save(
    model: Decided,
    out: Path,
    options: Resolved[SaveConfig],
    *,
    part: Part | None,
    overwrite: bool,
    resume: bool,
    workers: int,
    progress: Progress,
) -> None:
    """Write the result, or a part of it, to `out`: whole or not at all; raises CheckFailed where it has NaN.

    A result of several sources that has NaN is not kept.
    """
    _need_weights(model.checkpoint)
    check_apart(model, out, options.config)
    if not part:
        check_free(out, overwrite)
    job = saving.prepare(model.checkpoint, options.config)
    _check_measured(model, job)
    if part and is_there(out, part, job.identity, overwrite=overwrite, resume=resume):
        return
    if not part:
        check_keeps_state(model, out, job)

    def calibrate(source: str, data: str) -> Activations:
        return calibration(model.checkpoint.sources[source], data)

    folders = [source.folder.path for source in model.checkpoint.sources.values()]
    unpacked = {path: digest for path in folders if (digest := digest_of(path))}
    place_of = (
        publishing_part(out, part, resume=resume)
        if part
        else publishing(out, overwrite=overwrite, keep_partial=True, resume=resume)
    )
    with place_of as folder:
        how = {"workers": workers, "resume": resume, "progress": progress, "calibrate": calibrate}
        written = saving.write(job, folder, out, part=part, unpacked=unpacked, **how)
        if model.sources:  # where it came from is to be seen in them: the result is of no use
            saving.check_finite(written, out, *model.given.values())
        _describe(model, folder, out, options, {} if part else written)
        if not part:
            saving.close_journal(folder)
    saving.check_finite(written, out, model.source)


def _need_weights(made: Checkpoint) -> None:
    """Raise RekindleError where tensors are read of what is only a config; one may say sizes alone."""
    if any(source.folder.bare for source in made.sources.values()):
        for key in {leaf.source for x in made.tensors.values() for leaf in x.leaves()}:
            made.sources[key].folder.need_weights()


# -- what OUT may be --------------------------------------------------------------------------------------------


def check_apart(model: Decided, out: Path, config: SaveConfig) -> None:
    """Raise RekindleError where something that is read would be deleted with an OUT that is replaced.

    The only source may be replaced by what computes the same with the same sizes, and by nothing else.
    """
    made, origin = model.checkpoint, model.checkpoint.origin
    same = made.promise.exact and (made.family, made.settings) == (origin.family, origin.settings)
    same = same and len(made.sources) == 1
    read = files_read(config, *(step.options.config for step in model.steps))
    for key, source in made.sources.items():
        check_spares(out, place(model.given[key]), *read, in_place=same)
        check_spares(out, source.folder.path, in_place=same)
        with explained(out):
            if out.is_dir() and not out.samefile(source.folder.path):
                check_spares(out, None, *source.folder.shards)  # which may be links


def _check_measured(model: Decided, job: Job) -> None:
    """Raise RekindleError where measurements to use again are of other sources, of another order, or of changed files.

    They are known by the names that they had in that plan. An early result does not say in what they were found.
    """
    if not job.config.measurements:
        return
    there = Path(job.config.measurements)
    was, now = was_found_in(there), job.found_in
    asked = [name for name in sorted(was | now) if name.startswith(SOURCE) or (name in was and name in now)]
    changed = [name for name in asked if was.get(name) != now.get(name)]
    if (was and not changed) or not (was or model.sources):
        return
    recipe_there = there / "rekindle.yaml"
    then = read_yaml(recipe_there)
    found = then.get("sources", {"": then.get("source")})
    if found != dict(model.given):
        named = ", ".join(map(str, found.values())) if isinstance(found, dict) else "others"
        what = f"What was measured there is of {named}, not of {', '.join(model.given.values())}."
        raise RekindleError(what, where=recipe_there, hint="without --measurements")
    if was:
        name = changed[0]
        of = model.given[name.removeprefix(SOURCE)] if name.startswith(SOURCE) else name.partition("\0")[0]
        what = f"{of} is not what it was when it was measured there: its files differ."
        raise RekindleError(what, where=there / MEASURED, hint="without --measurements")


def check_keeps_state(model: Decided, out: Path, job: Job) -> None:
    """Raise RekindleError where OUT is the source, and optimizer state in it would be gone when it is replaced."""
    if out.resolve() != model.checkpoint.folder.path.resolve():
        return
    gone = lost(model, out, job)
    if state := next((path for path in states_in(out) if path.relative_to(out).parts[0] in gone), None):
        what = f"{out} would lose its optimizer state: it is the source, and the result has none."
        raise RekindleError(what, where=state, hint="another OUT")


def lost(model: Decided, out: Path, job: Job) -> list[str]:
    """What lies in OUT beside the model that is read from there, and has no like in the result: gone with OUT."""
    made = {"config.json", MANIFEST, "rekindle.yaml", "README.md", "verify.json", PARTS}
    made |= {PurePath(shard.file).parts[0] for shard in job.share(None)}
    made |= {path.relative_to(model.checkpoint.folder.path).parts[0] for path in job.passengers}
    made |= {MEASURED} if job.measurements else set()
    with explained(out):
        there = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    with suppress(OSError, RekindleError):  # no model that can be read: none of it is
        made |= open_folder(out).weight_files()
    return [name for name in there if name not in made]


# -- the papers -------------------------------------------------------------------------------------------------


def recipe(model: Decided, options: Resolved[SaveConfig] | None = None) -> dict[str, Any]:
    """What OUT/rekindle.yaml holds: `rekindle run` repeats it."""
    made: dict[str, Any] = {"rekindle": __version__}
    made |= {"sources": dict(model.sources)} if model.sources else {"source": model.source}
    made["steps"] = [step.written() for step in model.steps]
    return made | ({"save": to_dict(options.config)} if options else {})


def _describe(
    model: Decided, folder: Path, out: Path, options: Resolved[SaveConfig], written: Mapping[str, Any]
) -> None:
    from rekindle.report.card import write_card

    joined = any(METHODS[step.verb].named_by for step in model.steps)
    manifest = Manifest(
        version=__version__,
        lineage=_lineage(model, out, options),
        parameters=model.checkpoint.parameters(),
        promise=model.checkpoint.promise.to_dict(),
        measured=model.checkpoint.told,
        made_of=provenance(model.checkpoint) if joined else {},
        shards={file: w.entry for file, w in written.items() if "/" not in file},
    )
    manifest.write(folder)
    (folder / "rekindle.yaml").write_text(dump_yaml(recipe(model, options)), encoding="utf-8")
    folders = {key: source.folder.path for key, source in model.checkpoint.sources.items()}
    made_by = papers((step.verb, step.options.options()) for step in model.steps)
    write_card(folder, manifest, model.checkpoint.config, None, made_by, folders)


def _lineage(model: Decided, out: Path, options: Resolved[SaveConfig]) -> list[Record]:
    """The life of the result: its sources' own, and a record for each step."""
    lives: dict[str, tuple[str, str | None, Manifest | None]] = {}
    untouched = set(model.given)
    for key, given in model.given.items():
        folder = model.checkpoint.sources[key].folder
        lives[key] = given, folder.fingerprint, read_manifest(folder.path)
    for step in model.steps:
        record = Record(
            verb=step.verb,
            command=_command(step, {name: lives[name][0] for name in step.of}, out, options),
            options=step.options.options() | options.options(),
            summary=model.checkpoint.summary,
        )
        (first, _, before), several = lives[step.of[0]], len(step.of) > 1
        if several or step.of[0] in untouched:
            lineage = extended({name if several else "": lives[name] for name in step.of}, record)
        else:
            lineage = [*(before.lineage if before else []), record]
        untouched -= {step.made, *step.of}
        lives[step.made] = first, None, Manifest(version=__version__, lineage=lineage)
    found = lives[model.steps[-1].made if model.steps else next(iter(lives))][2]
    return found.lineage if found else []


def _command(step: Step, given: Mapping[str, str], out: Path, options: Resolved[SaveConfig]) -> str:
    """What to type to do a step again; models that options name are named as they were given, not by their keys."""
    own, method = step.options, METHODS[step.verb]
    named = [*given] if method.named_by else [getattr(own.config, method.beside, None)]
    own = replace(own, config=method.renamed(own.config, given))
    sources = [source for name, source in given.items() if name not in named]
    return command(step.verb, [*sources, str(out), *(["--tower", step.tower] if step.tower else [])], own, options)


def command(verb: str, arguments: list[str], *options: Resolved[Any]) -> str:
    """What to type to do this again: the arguments, and each option that is not its default."""
    words = ["rekindle", verb, *arguments]
    for resolved in options:
        values, kinds = to_dict(resolved.config), get_type_hints(type(resolved.config))
        for f in fields(resolved.config):
            name = option_name(f)
            value = values[name]
            if value == f.default or resolved.origins[name] == "default" or only_in_files(kinds[f.name]):
                continue
            flag = f"--{name.replace('_', '-')}"
            if isinstance(value, bool):
                words += [flag if value else f"--no-{flag[2:]}"]
            elif isinstance(value, dict):
                words += [word for key, held in value.items() for word in (flag, f"{key}={json.dumps(held)}")]
            else:
                words += [flag, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return shlex.join(words)


def papers(steps: Iterable[tuple[str, Mapping[str, Any]]]) -> str:
    """The papers behind these verbs with their options, as a lineage has them, a line each."""
    lines = [METHODS[verb].cited(options) for verb, options in steps if verb in METHODS]
    return "\n".join(line for line in dict.fromkeys(lines) if line)
