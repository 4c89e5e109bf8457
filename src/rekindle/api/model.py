"""A checkpoint on disk and what has been decided to do to it; `save` does it."""

from __future__ import annotations

import json
import shlex
from collections.abc import Callable, Iterable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields, replace
from functools import partial
from pathlib import Path, PurePath
from typing import Any

from rekindle import __version__
from rekindle.api.options import takes
from rekindle.api.source import digest_of, files_read, local, place
from rekindle.apply import save as saving
from rekindle.apply.join import is_there, publishing_part
from rekindle.apply.measure import FOLDER as MEASURED
from rekindle.apply.parts import parse_part
from rekindle.apply.save import Job, SaveConfig
from rekindle.apply.state import states_in
from rekindle.apply.threads import check_workers
from rekindle.config import Resolved, dump_yaml, resolve, to_dict
from rekindle.edit import Checkpoint, open_checkpoint
from rekindle.edit.measure import Activations
from rekindle.errors import RekindleError, counted
from rekindle.methods import METHODS, method_named
from rekindle.report.text import inspected
from rekindle.report.words import listed
from rekindle.store.folder import PARTS, open_folder
from rekindle.store.manifest import NAME as MANIFEST
from rekindle.store.manifest import Manifest, Record, read_manifest
from rekindle.store.publish import check_free, check_spares, publishing
from rekindle.store.system import explained

Progress = Callable[[int], object]


@dataclass(frozen=True)
class Step:
    """One method applied, with its options."""

    verb: str
    options: Resolved[Any]


@dataclass(frozen=True, repr=False)
class Model:
    """A checkpoint on disk, and what has been decided to do to it. Nothing is written until `save`."""

    source: str
    checkpoint: Checkpoint
    steps: tuple[Step, ...] = field(default=())

    def then(self, verb: str, options: Resolved[Any]) -> Model:
        """This model with one more method applied; raises RekindleError where it does not fit what is there."""
        try:
            parent = self.checkpoint.as_saved() if self.steps else self.checkpoint
            child = method_named(verb).apply(parent, options.config)
        except RekindleError as error:
            if not self.steps:
                raise
            made = f"{listed([step.verb for step in self.steps])} made of {self.source}: {summary(self.checkpoint)}"
            what = f"Step {len(self.steps) + 1}, {verb}, does not fit what comes before it. {error.what}"
            raise RekindleError(what, where=error.where or made, why=error.why, hint=error.hint) from None
        return replace(self, checkpoint=child, steps=(*self.steps, Step(verb, options)))

    def __repr__(self) -> str:
        steps = "".join(f", {step.verb}" for step in self.steps)
        return f"<Model {self.source!r}{steps}: {summary(self.checkpoint)}>"

    def __str__(self) -> str:
        """What `inspect` shows."""
        from rekindle.api.look import inspect

        return inspected(inspect(self))

    @takes(SaveConfig)
    def job(self, **save_options: Any) -> Job:
        """The plan, priced; raises RekindleError with every problem. No byte moves."""
        return saving.prepare(self.checkpoint, resolve(SaveConfig, save_options).config)

    @takes(SaveConfig)
    def save(
        self,
        out: str | Path,
        *,
        overwrite: bool = False,
        resume: bool = False,
        workers: int | None = None,
        progress: Progress = lambda done: None,
        part: str | None = None,
        **save_options: Any,
    ) -> Path:
        """Write the result to `out`, whole or not at all. Returns `out`.

        `part`: "2/8" writes the second of eight parts, on any machine; `join` makes them whole.
        """
        self.checkpoint.folder.need_weights()
        out, mine = Path(out), parse_part(part) if part else None
        workers = check_workers(saving.default_workers() if workers is None else workers)
        options = resolve(SaveConfig, save_options)
        self.check_apart(out, options.config)
        if not mine:
            check_free(out, overwrite)
        job = saving.prepare(self.checkpoint, options.config)
        if not mine:
            self.check_keeps_state(out, job)
        if mine and is_there(out, mine, job.identity, overwrite=overwrite, resume=resume):
            return out
        with (
            publishing_part(out, mine, resume=resume)
            if mine
            else publishing(out, overwrite=overwrite, keep_partial=True, resume=resume)
        ) as folder:
            calibrate = partial(calibration, self.checkpoint.origin)
            how = {"workers": workers, "resume": resume, "progress": progress, "calibrate": calibrate}
            written = saving.write(job, folder, out, part=mine, origin=digest_of(self.checkpoint.folder.path), **how)
            self._describe(folder, out, options, {} if mine else written)
            if not mine:
                saving.close_journal(folder)
        saving.check_finite(written, out, self.source)
        return out

    def check_apart(self, out: Path, config: SaveConfig) -> None:
        """Raise RekindleError where something that is read would be deleted with an OUT that is replaced.

        The source may be replaced by what computes the same with the same sizes, and by nothing else.
        """
        made, origin = self.checkpoint, self.checkpoint.origin
        same = made.promise.exact and (made.family, made.settings) == (origin.family, origin.settings)
        read = files_read(config, *(step.options.config for step in self.steps))
        check_spares(out, place(self.source), *read, in_place=same)
        check_spares(out, made.folder.path, in_place=same)
        with explained(out):
            if out.is_dir() and not out.samefile(made.folder.path):
                check_spares(out, None, *made.folder.shards)  # which may be links

    def check_keeps_state(self, out: Path, job: Job) -> None:
        """Raise RekindleError where OUT is the source, and optimizer state in it would be gone when it is replaced."""
        if out.resolve() != self.checkpoint.folder.path.resolve():
            return
        lost = self.lost(out, job)
        if state := next((path for path in states_in(out) if path.relative_to(out).parts[0] in lost), None):
            what = f"{out} would lose its optimizer state: it is the source, and the result has none."
            raise RekindleError(what, where=state, hint="another OUT")

    def lost(self, out: Path, job: Job) -> list[str]:
        """What lies in OUT beside the model that is read from there, and has no like in the result: gone with OUT."""
        made = {"config.json", MANIFEST, "rekindle.yaml", "README.md", "verify.json", PARTS}
        made |= {PurePath(shard.file).parts[0] for shard in job.share(None)}
        made |= {path.relative_to(self.checkpoint.folder.path).parts[0] for path in job.passengers}
        made |= {MEASURED} if job.measurements else set()
        with explained(out):
            there = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
        with suppress(OSError, RekindleError):  # no model that can be read: none of it is
            made |= open_folder(out).weight_files()
        return [name for name in there if name not in made]

    def recipe(self, options: Resolved[SaveConfig] | None = None) -> dict[str, Any]:
        """What OUT/rekindle.yaml holds: `rekindle run` repeats it."""
        steps = [{step.verb: to_dict(step.options.config)} for step in self.steps]
        recipe: dict[str, Any] = {"rekindle": __version__, "source": self.source, "steps": steps}
        return recipe | ({"save": to_dict(options.config)} if options else {})

    def _describe(self, folder: Path, out: Path, options: Resolved[SaveConfig], written: Mapping[str, Any]) -> None:
        from rekindle.report.card import write_card

        before = read_manifest(self.checkpoint.folder.path)
        records = [self._record(step, out, options) for step in self.steps]
        manifest = Manifest(
            version=__version__,
            lineage=[*(before.lineage if before else []), *records],
            parameters=self.checkpoint.parameters(),
            promise={"kind": self.checkpoint.promise.kind, "text": self.checkpoint.promise.text},
            measured=self.checkpoint.told,
            shards={file: w.entry for file, w in written.items() if "/" not in file},
        )
        manifest.write(folder)
        (folder / "rekindle.yaml").write_text(dump_yaml(self.recipe(options)), encoding="utf-8")
        made_by, parent = papers(step.verb for step in self.steps), self.checkpoint.folder.path
        write_card(folder, manifest, self.checkpoint.config, None, made_by, parent)

    def _record(self, step: Step, out: Path, options: Resolved[SaveConfig]) -> Record:
        first = step is self.steps[0]
        return Record(
            verb=step.verb,
            command=command(step.verb, [self.source, str(out)], step.options, options),
            options=step.options.options() | options.options(),
            source=self.source if first else None,
            source_fingerprint=self.checkpoint.folder.fingerprint if first else None,
            summary=summary(self.checkpoint),
        )


def calibration(origin: Checkpoint, data: str) -> Activations:
    """What the checkpoint on disk computes on `DATA:TOKENS`, tokens of DATA's training part.

    Behind a NUL may follow the column of DATA's rows that holds the text.
    Block by block where model and moments do not fit into memory. Raises RekindleError where there is no tokenizer.
    """
    import torch

    from rekindle.apply.calibrate import Calibration, nbytes
    from rekindle.apply.load import fit
    from rekindle.train.model import check_ids
    from rekindle.train.tokens import sample_tokens

    text, _, column = data.partition("\0")
    name, _, tokens = text.rpartition(":")
    length = min(512, origin.settings.max_position_embeddings, int(tokens))
    sample = sample_tokens(origin.folder.path, name, int(tokens), length, "train", column=column or None)
    rows = torch.from_numpy(sample)
    check_ids(int(rows.max()), origin.settings.vocab_size, text)
    batches = ({"input_ids": ids} for ids in rows.split(max(1, 4096 // length)))
    return Calibration(origin, batches, blockwise=not fit(origin, besides=nbytes(origin)))


def summary(checkpoint: Checkpoint) -> str:
    """One line on what a checkpoint is: "mixtral, 8 experts, top-2 in 16 of 16 layers"."""
    s = checkpoint.settings
    if not s.sparse_layers:
        return f"{checkpoint.family.model_type}, dense, {counted(s.num_layers, 'layer')}"
    layers = f"{len(s.sparse_layers)} of {counted(s.num_layers, 'layer')}"
    return f"{checkpoint.family.model_type}, {s.num_experts} experts, top-{s.top_k} in {layers}"


def command(verb: str, arguments: list[str], *options: Resolved[Any]) -> str:
    """What to type to do this again: the arguments, and each option that is not its default."""
    words = ["rekindle", verb, *arguments]
    for resolved in options:
        values = to_dict(resolved.config)
        for f in fields(resolved.config):
            value = values[f.name]
            if value == f.default or resolved.origins[f.name] == "default":
                continue
            flag = f"--{f.name.replace('_', '-')}"
            if isinstance(value, bool):
                words += [flag if value else f"--no-{flag[2:]}"]
            elif isinstance(value, dict):
                words += [word for key, held in value.items() for word in (flag, f"{key}={json.dumps(held)}")]
            else:
                words += [flag, ",".join(map(str, value)) if isinstance(value, list) else str(value)]
    return shlex.join(words)


def papers(verbs: Iterable[str]) -> str:
    """The papers behind these verbs, a line each."""
    lines = [f"{METHODS[verb].paper} {METHODS[verb].url}".strip() for verb in dict.fromkeys(verbs) if verb in METHODS]
    return "\n".join(line for line in lines if line)


def open(source: str | Path) -> Model:
    """Open a checkpoint: a folder, `org/model[@revision]`, `hf://org/model` or `ARCHIVE@step`. Reads headers only.

    A config.json alone, as a folder or a file, can be planned with but not saved.
    """
    return Model(str(source), open_checkpoint(open_folder(local(source), bare=True)))


def apply(verb: str, source: Model | str | Path, **options: Any) -> Model:
    """Apply a method by its verb, see rekindle.methods.METHODS; each has a function of its own too."""
    model = source if isinstance(source, Model) else open(source)
    return model.then(verb, resolve(method_named(verb).config, options))
