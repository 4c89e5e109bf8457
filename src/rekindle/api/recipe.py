"""Recipes: YAML that says what was done, and does it again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rekindle.api.merging import named
from rekindle.api.model import Model, combined, open
from rekindle.api.training import init, init_cost, train, train_cost
from rekindle.apply.save import SaveConfig
from rekindle.config import Resolved, read_yaml, resolve, unknown_key
from rekindle.errors import RekindleError, together
from rekindle.methods import METHODS, method_named
from rekindle.report.words import listed
from rekindle.store.publish import check_spares


def load_recipe(path: str | Path) -> tuple[Model, dict[str, Any]]:
    """A recipe's model with all its steps applied, and its save options. Raises with every unknown key."""
    recipe = _read_recipe(path)
    steps, problems = [], []
    for i, step in enumerate(recipe["steps"], 1):
        try:
            steps.append((step, resolve(method_named(step.verb).config, {}, step.options)))
        except RekindleError as error:
            where = f"step {i}, {step.verb}, in {path}"
            problems.append(RekindleError(error.what, where=where, why=error.why, hint=error.hint))
    if problems:
        raise together(problems)
    bench = Bench(recipe["sources"], path)
    for step, options in steps:
        bench.apply(step, options)
    return bench.result(), recipe["save"]


class Bench:
    """The models of a recipe by name: its sources, and what its steps make of them."""

    def __init__(self, sources: Mapping[str, str], path: str | Path):
        self._path, self._used = path, set[str]()
        self._models = {"": open(sources[""])} if "" in sources else named(sources)
        self._last: str | None = next(iter(self._models)) if len(self._models) == 1 else None

    def apply(self, step: Written, options: Resolved[Any]) -> None:
        method = method_named(step.verb)
        if method.takes == "models":
            models = self._named([*step.of, *self._base(options)]) if step.of else dict(self._models)
            self._set(step.to, combined(step.verb, models, options))
            self._used |= models.keys()
            return
        if len(step.of) > 1 or (not step.of and self._last is None):
            what = f"{step.verb} takes one model, and there are {len(step.of) or len(self._models)}."
            raise RekindleError(what, where=self._path, hint=f"of: {next(iter(self._models))}, beside {step.verb}")
        ((name, model),) = self._named(step.of or (self._last or "",)).items()
        self._used.add(name)
        self._set(step.to or name, model.then(step.verb, options, step.tower))

    def result(self) -> Model:
        """What the last step made; raises RekindleError where a source is in none of it."""
        assert self._last is not None
        if left := sorted(self._models.keys() - self._used - {self._last}):
            raise RekindleError(f"Nothing is made of {', '.join(left)}.", where=self._path, hint=f"of: [{left[0]}]")
        return self._models[self._last]

    def _named(self, names: Sequence[str]) -> dict[str, Model]:
        """The models of these names; of a series all, where nothing is made of it yet that is called so."""
        found: dict[str, Model] = {}
        for name in names:
            under = {key: model for key, model in self._models.items() if key.startswith(f"{name}/")}
            ones = {name: self._models[name]} if name in self._models else under
            if not ones:
                known = ", ".join(key for key in self._models if key)
                raise RekindleError(f"Nothing in the recipe is called {name!r}.", where=self._path, hint=known)
            found |= ones
        return found

    def _base(self, options: Resolved[Any]) -> list[str]:
        """What an option names as the base, where it is a model here: it need not be listed."""
        base = getattr(options.config, "base", None)
        return [base] if base in self._models else []

    def _set(self, name: str, model: Model) -> None:
        self._models[name] = model
        self._last = name


def run(path: str | Path, out: str | Path, *, overwrite: bool = False, resume: bool = False, **how: Any) -> Path:
    """Repeat a recipe into `out`: methods in one pass over the bytes, or one `train`, or one `init`."""
    check_spares(Path(out), None, path)
    recipe = _read_recipe(path)
    verbs = [step.verb for step in recipe["steps"]]
    if verbs == ["init"]:
        from rekindle.train.config import InitConfig

        return init(out, resolve(InitConfig, {}, recipe["steps"][0].options), overwrite=overwrite)
    if verbs == ["train"]:
        from rekindle.train.config import TrainConfig

        options = resolve(TrainConfig, {}, recipe["steps"][0].options)
        train(recipe["sources"][""], out, options, overwrite=overwrite, resume=resume)
        return Path(out)
    model, save_options = load_recipe(path)
    return model.save(out, overwrite=overwrite, resume=resume, **how, **save_options)


def run_cost(
    path: str | Path, out: str | Path | None = None, *, resume: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """What a recipe of one `init` or `train` would take; a recipe of methods has a plan, see load_recipe."""
    recipe = _read_recipe(path)
    [step] = recipe["steps"]
    from rekindle.train.config import InitConfig, TrainConfig

    if step.verb == "init":
        return init_cost(resolve(InitConfig, {}, step.options))
    options = resolve(TrainConfig, {}, step.options)
    return train_cost(recipe["sources"][""], options, out=out, resume=resume, overwrite=overwrite)


def is_training(path: str | Path) -> bool:
    """Whether a recipe is one of `init` or `train`, which have no plan."""
    return [step.verb for step in _read_recipe(path)["steps"]][0] in TRAINING


# -- the file ---------------------------------------------------------------------------------------------------

TRAINING = ("init", "train")
BESIDE = ("of", "as", "tower")  # keys of a step beside its verb


class Written(NamedTuple):
    """A step as a recipe has it."""

    verb: str
    options: dict[str, Any]
    of: tuple[str, ...] = ()  # the models it takes; (): what the step before it made, or all
    to: str = ""  # what it makes is called so
    tower: str | None = None


def _read_recipe(path: str | Path) -> dict[str, Any]:
    """{"sources": {name: SRC}, "steps": [Written], "save"} of a recipe file, checked; an only source has no name."""
    recipe = read_yaml(path)
    known = dict.fromkeys(("rekindle", "source", "sources", "steps", "save"))
    problems = [unknown_key(key, known) for key in recipe if key not in known]
    steps, wrong = _steps(recipe.get("steps"), path)
    problems += wrong
    verbs = [step.verb for step in steps]
    for verb in TRAINING if len(verbs) > 1 else ():
        if verb in verbs:
            why = "methods are planned together and written in one pass; training needs their result on disk"
            problems.append(RekindleError(f"{verb} cannot be one of several steps.", where=path, why=why))
    sources = {"": recipe["source"]} if recipe.get("source") is not None else recipe.get("sources")
    if verbs == ["init"]:
        sources = {}
    elif "source" in recipe and "sources" in recipe:
        problems.append(RekindleError("The recipe has a source and sources.", where=path, hint="one of the two"))
    elif not (isinstance(sources, dict) and sources and all(isinstance(given, str) for given in sources.values())) or (
        "" in sources and "source" not in recipe
    ):
        hint = "source: SRC, or sources: {one: SRC, other: SRC}"
        problems.append(RekindleError("The recipe names no source.", where=path, hint=hint))
    elif verbs == ["train"] and "" not in sources:
        problems.append(RekindleError("train takes one model.", where=path, hint="source: SRC"))
    save = recipe.get("save")
    if not isinstance(save, dict | None):
        problems.append(RekindleError("save must be keys and values.", where=path))
    elif save and verbs and verbs[0] in TRAINING:
        problems.append(RekindleError(f"save beside {verbs[0]} would not be read.", where=path))
    else:
        try:
            resolve(SaveConfig, {}, save)
        except RekindleError as error:
            where = f"save in {path}" + (f", {error.where}" if error.where else "")
            problems.append(RekindleError(error.what, where=where, why=error.why, hint=error.hint))
    if problems:
        raise together(problems)
    return {"sources": sources, "steps": steps, "save": save or {}}


def _steps(given: object, path: str | Path) -> tuple[list[Written], list[RekindleError]]:
    """The steps, and what is wrong with them."""
    rows = given if isinstance(given, list) else []
    if not rows or not all(isinstance(row, dict) and len(row.keys() - set(BESIDE)) == 1 for row in rows):
        return [], [RekindleError("steps must be a list of `verb: options`.", where=path)]
    steps, problems = [], []
    for row in rows:
        try:
            steps.append(_step(row, path))
        except RekindleError as error:
            problems.append(error)
    return steps, problems


def _step(row: Mapping[str, Any], path: str | Path) -> Written:
    """One step; raises RekindleError where a key is not of its kind, or stands beside a verb that does not read it."""
    (verb,) = row.keys() - set(BESIDE)
    options, of, to, tower = (row.get(key) for key in (verb, *BESIDE))
    if not isinstance(options, dict | None):
        raise RekindleError(f"The options of {verb} must be keys and values.", where=path)
    names = of if of and isinstance(of, list) else [of] * (of is not None)
    given = [*names, *(text for text in (to, tower) if text is not None)]
    if not all(isinstance(text, str) and text for text in given):
        raise RekindleError(f"of, as and tower beside {verb} must be names.", where=path)
    if twice := [name for name, count in Counter(names).items() if count > 1]:
        raise RekindleError(f"of beside {verb} has {twice[0]} twice.", where=path)
    takes = METHODS[verb].takes if verb in METHODS else "tower"
    reads = () if verb in TRAINING else BESIDE if takes == "tower" else ("of", "as")
    if unread := [key for key in BESIDE if row.get(key) is not None and key not in reads]:
        why = "it is all there is in its recipe" if verb in TRAINING else f"{verb} takes all of a model"
        raise RekindleError(f"{listed(unread)} beside {verb} would not be read.", where=path, why=why)
    return Written(verb, options or {}, tuple(names), to or "", tower)
