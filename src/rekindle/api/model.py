"""Checkpoints on disk and what has been decided to do to them; `save` does it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from rekindle.api import saving
from rekindle.api.decided import Decided, Step
from rekindle.api.described import described
from rekindle.api.options import takes
from rekindle.api.source import local
from rekindle.apply.parts import parse_part
from rekindle.apply.save import Job, SaveConfig, default_workers, prepare
from rekindle.apply.threads import check_workers
from rekindle.config import Resolved, resolve
from rekindle.edit import Checkpoint, joint, open_checkpoint
from rekindle.errors import RekindleError
from rekindle.methods import method_named
from rekindle.report.text import inspected
from rekindle.report.words import listed
from rekindle.store.folder import open_folder

Progress = Callable[[int], object]


@dataclass(frozen=True, repr=False)
class Model(Decided):
    """Checkpoints on disk, and what has been decided to do to them. Nothing is written until `save`."""

    def then(self, verb: str, options: Resolved[Any], tower: str | None = None) -> Model:
        """This model with one more method applied; raises RekindleError where it does not fit what is there.

        `tower`: to which of its towers, where it has several: one by name, or "both".
        """
        try:
            child = method_named(verb).apply(self.as_parent, options.config, tower)
        except RekindleError as error:
            if not self.steps:
                raise
            made = f"{listed([step.verb for step in self.steps])} made of {self.source}: {self.checkpoint.summary}"
            what = f"Step {len(self.steps) + 1}, {verb}, does not fit what comes before it. {error.what}"
            raise RekindleError(what, where=error.where or made, why=error.why, hint=error.hint) from None
        return replace(self, checkpoint=child, steps=(*self.steps, Step(verb, options, tower=tower)))

    def __repr__(self) -> str:
        steps = "".join(f", {step.verb}" for step in self.steps)
        return f"<Model {self.source!r}{steps}: {self.checkpoint.summary}>"

    def __str__(self) -> str:
        """What `inspect` shows."""
        return inspected(described(self))

    @takes(SaveConfig)
    def job(self, **save_options: Any) -> Job:
        """The plan, priced; raises RekindleError with every problem. No byte moves."""
        return prepare(self.checkpoint, resolve(SaveConfig, save_options).config)

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
        out, mine = Path(out), parse_part(part) if part else None
        workers = check_workers(default_workers() if workers is None else workers)
        how = {"part": mine, "overwrite": overwrite, "resume": resume, "workers": workers, "progress": progress}
        saving.save(self, out, resolve(SaveConfig, save_options), **how)
        return out


def combined(verb: str, models: Mapping[str, Model], options: Resolved[Any]) -> Model:
    """A method of several models applied to these, by name; raises RekindleError where it does not fit them."""
    parents = {name: model.as_parent.keyed(name) for name, model in models.items()}
    child = method_named(verb).combine(parents, options.config)
    used = {name: models[name] for name, parent in parents.items() if parent.sources.keys() <= child.sources.keys()}
    sources = {joint(name, key): given for name, model in used.items() for key, given in model.given.items()}
    steps = [step.keyed(name) for name, model in used.items() for step in model.steps]
    child.noting(*_twice(models))
    same = _same(child, {name: parents[name] for name in used})
    first = next(iter(used[same].given.values())) if same is not None else sources[next(iter(child.sources))]
    return Model(first, child, (*steps, Step(verb, options, of=tuple(used))), sources)


def _same(child: Checkpoint, parents: Mapping[str, Checkpoint]) -> str | None:
    """Which parent the child is, where it is one: what verify compares it with."""
    same = (name for name, p in parents.items() if all(x is p.tensors.get(role) for role, x in child.tensors.items()))
    return next(same, None)


def _twice(models: Mapping[str, Model]) -> Iterator[str]:
    """Folders that stand among the models more than once, as they are."""
    paths = Counter(model.checkpoint.folder.path.resolve() for model in models.values() if not model.steps)
    for path, count in paths.items():
        if count > 1:
            yield f"{count} of the sources are one folder, {path}"


def open(source: str | Path, *, without: Collection[str] = ()) -> Model:
    """Open a checkpoint: a folder, `org/model[@revision]`, `hf://org/model` or `ARCHIVE@step`. Reads headers only.

    A config.json alone, as a folder or a file, can be planned with but not saved. `without`: shards that are lost, for
    `repair` alone.
    """
    folder = replace(open_folder(local(source), bare=True, without=without), given=str(source))
    return Model(str(source), open_checkpoint(folder))
