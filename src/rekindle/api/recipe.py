"""Recipes: YAML that says what was done, and does it again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rekindle.api.model import Model, open
from rekindle.api.training import init, init_cost, train, train_cost
from rekindle.config import read_yaml, resolve, unknown_key
from rekindle.errors import RekindleError, together
from rekindle.methods import method_named
from rekindle.store.publish import check_spares


def load_recipe(path: str | Path) -> tuple[Model, dict[str, Any]]:
    """A recipe's model with all its steps applied, and its save options. Raises with every unknown key."""
    recipe = _read_recipe(path)
    steps, problems = [], []
    for i, (verb, options) in enumerate(recipe["steps"], 1):
        try:
            steps.append((verb, resolve(method_named(verb).config, {}, options)))
        except RekindleError as error:
            where = f"step {i}, {verb}, in {path}"
            problems.append(RekindleError(error.what, where=where, why=error.why, hint=error.hint))
    if problems:
        raise together(problems)
    model = open(recipe["source"])
    for verb, options in steps:
        model = model.then(verb, options)
    return model, recipe["save"]


def run(path: str | Path, out: str | Path, *, overwrite: bool = False, resume: bool = False, **how: Any) -> Path:
    """Repeat a recipe into `out`: methods in one pass over the bytes, or one `train`, or one `init`."""
    check_spares(Path(out), None, path)
    recipe = _read_recipe(path)
    verbs = [verb for verb, _ in recipe["steps"]]
    if verbs == ["init"]:
        from rekindle.train.config import InitConfig

        return init(out, resolve(InitConfig, {}, recipe["steps"][0][1]), overwrite=overwrite)
    if verbs == ["train"]:
        from rekindle.train.config import TrainConfig

        options = resolve(TrainConfig, {}, recipe["steps"][0][1])
        train(recipe["source"], out, options, overwrite=overwrite, resume=resume)
        return Path(out)
    model, save_options = load_recipe(path)
    return model.save(out, overwrite=overwrite, resume=resume, **how, **save_options)


def run_cost(
    path: str | Path, out: str | Path | None = None, *, resume: bool = False, overwrite: bool = False
) -> dict[str, Any]:
    """What a recipe of one `init` or `train` would take; a recipe of methods has a plan, see load_recipe."""
    recipe = _read_recipe(path)
    [(verb, given)] = recipe["steps"]
    from rekindle.train.config import InitConfig, TrainConfig

    if verb == "init":
        return init_cost(resolve(InitConfig, {}, given))
    options = resolve(TrainConfig, {}, given)
    return train_cost(recipe["source"], options, out=out, resume=resume, overwrite=overwrite)


def is_training(path: str | Path) -> bool:
    """Whether a recipe is one of `init` or `train`, which have no plan."""
    return [verb for verb, _ in _read_recipe(path)["steps"]][0] in ("init", "train")


def _read_recipe(path: str | Path) -> dict[str, Any]:
    """{"source", "steps": [(verb, options)], "save"} of a recipe file, checked."""
    recipe = read_yaml(path)
    known = {"rekindle": None, "source": None, "steps": None, "save": None}
    problems = [unknown_key(key, known) for key in recipe if key not in known]
    steps = recipe.get("steps")
    if not (isinstance(steps, list) and steps and all(isinstance(s, dict) and len(s) == 1 for s in steps)):
        steps = []
        problems.append(RekindleError("steps must be a list of `verb: options`.", where=path))
    pairs = [(verb, options or {}) for step in steps for verb, options in step.items()]
    for verb, options in pairs:
        if not isinstance(options, dict):
            problems.append(RekindleError(f"The options of {verb} must be keys and values.", where=path))
        if verb in ("init", "train") and len(pairs) > 1:
            why = "methods are planned together and written in one pass; training needs their result on disk"
            problems.append(RekindleError(f"{verb} cannot be one of several steps.", where=path, why=why))
    if not isinstance(recipe.get("source"), str) and [verb for verb, _ in pairs] != ["init"]:
        problems.append(RekindleError("The recipe names no source.", where=path, hint="source: SRC"))
    if problems:
        raise together(problems)
    return {"source": recipe.get("source"), "steps": pairs, "save": recipe.get("save") or {}}
