"""Recipes: YAML that says what was done, and does it again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rekindle.api.merging import named
from rekindle.api.model import Model, combined, open
from rekindle.api.music import music_train
from rekindle.api.recipe_file import Written, read_recipe
from rekindle.api.repairing import unreadable
from rekindle.api.training import init, init_cost, train, train_cost
from rekindle.config import Resolved, resolve
from rekindle.errors import RekindleError, some, together
from rekindle.methods import Method, method_named
from rekindle.music.config import MusicTrainConfig
from rekindle.store.publish import check_spares
from rekindle.train.config import InitConfig, TrainConfig


def load_recipe(path: str | Path) -> tuple[Model, dict[str, Any]]:
    """A recipe's model with all its steps applied, and its save options. Raises with every unknown key."""
    recipe = read_recipe(path)
    steps, problems = [], []
    for i, step in enumerate(recipe.steps, 1):
        try:
            steps.append((step, resolve(method_named(step.verb).config, {}, step.options)))
        except RekindleError as error:
            where = f"step {i}, {step.verb}, in {path}"
            problems.append(RekindleError(error.what, where=where, why=error.why, hint=error.hint))
    if problems:
        raise together(problems)
    bench = Bench(_opened(recipe.sources, steps), path)
    for step, options in steps:
        bench.apply(step, options)
    return bench.result(), recipe.save


def _opened(sources: Mapping[str, str], steps: Sequence[tuple[Written, Resolved[Any]]]) -> Mapping[str, str | Model]:
    """The sources, of which one that a recipe begins to repair need not have all its shards."""
    if not steps or steps[0][0].verb != "repair":
        return sources
    step, options = steps[0]
    hurt = step.of[0] if step.of else next(iter(sources))
    return {**sources, hurt: open(sources[hurt], without=unreadable(options.config))} if hurt in sources else sources


def _model(source: str | Model) -> Model:
    return source if isinstance(source, Model) else open(source)


class Bench:
    """The models of a recipe by name: its sources, and what its steps make of them."""

    def __init__(self, sources: Mapping[str, str | Model], path: str | Path):
        self._path, self._sources = path, tuple(sources)
        self._models = {"": _model(sources[""])} if "" in sources else named(sources)
        self._last: str | None = next(iter(self._models)) if len(self._models) == 1 else None
        self._unread = dict.fromkeys(self._models)  # of which nothing is made yet, in order

    def apply(self, step: Written, options: Resolved[Any]) -> None:
        method = method_named(step.verb)
        if method.takes == "models" or (method.beside and len(step.of) > 1):
            models = self._named(step.of) | self._beside(method, options) if step.of else dict(self._models)
            self._set(step.to, combined(step.verb, models, options), models)
            return
        models = self._named(step.of or ([] if self._last is None else [self._last])) or self._models
        if len(models) > 1:
            what = f"{step.verb} takes one model, and there are {len(models)}."
            raise RekindleError(what, where=self._path, hint=f"of: {next(iter(models))}, beside {step.verb}")
        ((name, model),) = models.items()
        self._set(step.to or name, model.then(step.verb, options, step.tower), models)

    def result(self) -> Model:
        """What the last step made; raises RekindleError where a source, or what a step made, is in none of it."""
        assert self._last is not None
        self._check_read([name for name in self._unread if name != self._last])
        return self._models[self._last]

    def _check_read(self, left: Sequence[str], why: str | None = None) -> None:
        """Refuse that nothing is made of these; a series that is all among them goes by its own name."""
        for source in self._sources:
            inner = [key for key in self._models if key.startswith(f"{source}/") and source not in self._models]
            if all(key in left for key in inner):
                left = list(dict.fromkeys(source if name in inner else name for name in left))
        if left:
            what = f"Nothing is made of {some([name or 'what a step made without a name' for name in left])}."
            hint = f"of: [{', '.join(left)}]" if all(left) else "as: NAME beside that step, and of: [NAME]"
            raise RekindleError(what, where=self._path, why=why, hint=hint)

    def _named(self, names: Sequence[str]) -> dict[str, Model]:
        """The models of these names; of a series all, where nothing is made of it yet that is called so."""
        found: dict[str, Model] = {}
        for name in names:
            under = {key: model for key, model in self._models.items() if key.startswith(f"{name}/")}
            ones = {name: self._models[name]} if name in self._models else under
            if not ones:
                known = ", ".join(key for key in self._models if key)
                raise RekindleError(f"Nothing in the recipe is called {name!r}.", where=self._path, hint=known)
            if twice := [key for key in ones if key in found]:
                what = f"of has {twice[0]} twice: in {name}, and by itself."
                raise RekindleError(what, where=self._path, hint=f"of: [{', '.join(found | ones)}]")
            found |= ones
        return found

    def _beside(self, method: Method, options: Resolved[Any]) -> dict[str, Model]:
        """What an option names, a base for one, where it is a model here: it need not be listed."""
        name = getattr(options.config, method.beside, None) if method.beside else None
        return {name: self._models[name]} if name in self._models else {}

    def _set(self, name: str, model: Model, read: Mapping[str, Model]) -> None:
        """Name what a step made of others; raises RekindleError where one of which nothing is made had the name."""
        self._unread = {key: None for key in self._unread if key not in read}
        self._check_read([key for key in self._unread if key == name], "a later step makes another of the same name")
        self._models[name], self._unread[name], self._last = model, None, name


def run(path: str | Path, out: str | Path, *, overwrite: bool = False, resume: bool = False, **how: Any) -> Path:
    """Repeat a recipe into `out`: methods in one pass over the bytes, or one `train`, `init` or `music train`."""
    check_spares(Path(out), None, path)
    recipe = read_recipe(path)
    if (step := recipe.training) is None:
        model, save_options = load_recipe(path)
        return model.save(out, overwrite=overwrite, resume=resume, **how, **save_options)
    if step.verb == "init":
        return init(out, resolve(InitConfig, {}, step.options), overwrite=overwrite)
    if step.verb == "music train":
        music_train(out, resolve(MusicTrainConfig, {}, step.options), overwrite=overwrite, resume=resume)
        return Path(out)
    options = resolve(TrainConfig, {}, step.options)
    train(recipe.sources[""], out, options, overwrite=overwrite, resume=resume)
    return Path(out)


def run_cost(
    path: str | Path, out: str | Path | None = None, *, resume: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """What a recipe of one `init` or `train` would take; a recipe of methods has a plan, see load_recipe."""
    recipe = read_recipe(path)
    step = recipe.training
    if step is None:
        raise RekindleError("A recipe of methods has a plan.", where=path, hint="api.load_recipe(...)[0].job()")
    if step.verb == "init":
        return init_cost(resolve(InitConfig, {}, step.options))
    if step.verb == "music train":
        raise RekindleError(
            "What it takes is known step by step, as they are made.", where=path, hint="without --dry-run"
        )
    options = resolve(TrainConfig, {}, step.options)
    return train_cost(recipe.sources[""], options, out=out, resume=resume, overwrite=overwrite)


def is_training(path: str | Path) -> bool:
    """Whether a recipe trains or draws a model, which has no plan."""
    return read_recipe(path).training is not None
