"""A recipe's file: sources, steps and options of writing, all checked before anything is opened."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from rekindle.apply.save import SaveConfig
from rekindle.config import read_yaml, resolve, unknown_key
from rekindle.errors import RekindleError, together
from rekindle.methods import METHODS
from rekindle.report.words import listed

TRAINING = ("init", "train", "music train")  # verbs that are all of their recipe
SOURCELESS = ("init", "music train")  # those that begin with no checkpoint, or name theirs
BESIDE = ("of", "as", "tower")  # keys of a step beside its verb


class Written(NamedTuple):
    """A step as a recipe has it."""

    verb: str
    options: dict[str, Any]
    of: tuple[str, ...] = ()  # the models it takes; (): what the step before it made, or all
    to: str = ""  # what it makes is called so
    tower: str | None = None


class Recipe(NamedTuple):
    """What a recipe's file says."""

    sources: dict[str, str]  # by name; an only one has none
    steps: list[Written]
    save: dict[str, Any]

    @property
    def training(self) -> Written | None:
        """Its only step, where that trains or draws a model, which has no plan."""
        return self.steps[0] if self.steps[0].verb in TRAINING else None


def read_recipe(path: str | Path) -> Recipe:
    """A recipe's file; raises RekindleError with all that is wrong in it, but for the options of its steps."""
    recipe = read_yaml(path)
    known = dict.fromkeys(("rekindle", "source", "sources", "steps", "save"))
    problems = [unknown_key(key, known) for key in recipe if key not in known]
    steps = _steps(recipe.get("steps"), path, problems)
    sources = _sources(recipe, steps, path, problems)
    save = _save(recipe.get("save"), steps, path, problems)
    if problems:
        raise together(problems)
    return Recipe(sources, steps, save)


# -- the parts of it; what is wrong with each goes to `problems` -------------------------------------------------


def _steps(given: object, path: str | Path, problems: list[RekindleError]) -> list[Written]:
    rows = given if isinstance(given, list) else []
    if not rows or not all(isinstance(row, dict) and len(row.keys() - set(BESIDE)) == 1 for row in rows):
        problems.append(RekindleError("steps must be a list of `verb: options`.", where=path))
        return []
    steps = []
    for row in rows:
        try:
            steps.append(_step(row, path))
        except RekindleError as error:
            problems.append(error)
    for verb in TRAINING if len(steps) > 1 else ():
        if verb in (step.verb for step in steps):
            why = "methods are planned together and written in one pass; training needs their result on disk"
            problems.append(RekindleError(f"{verb} cannot be one of several steps.", where=path, why=why))
    return steps


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


def _sources(
    recipe: Mapping[str, Any], steps: list[Written], path: str | Path, problems: list[RekindleError]
) -> dict[str, str]:
    verbs = [step.verb for step in steps]
    one, several = recipe.get("source"), recipe.get("sources")
    named = several if isinstance(several, dict) else {}
    if len(verbs) == 1 and verbs[0] in SOURCELESS:
        return {}
    if "source" in recipe and "sources" in recipe:
        problems.append(RekindleError("The recipe has a source and sources.", where=path, hint="one of the two"))
    elif isinstance(one, str):
        return {"": one}
    elif not named or not all(name and isinstance(source, str) for name, source in named.items()):
        hint = "source: SRC, or sources: {one: SRC, other: SRC}"
        problems.append(RekindleError("The recipe names no source.", where=path, hint=hint))
    elif verbs == ["train"]:
        problems.append(RekindleError("train takes one model.", where=path, hint="source: SRC"))
    return named


def _save(given: object, steps: list[Written], path: str | Path, problems: list[RekindleError]) -> dict[str, Any]:
    if not isinstance(given, dict | None):
        problems.append(RekindleError("save must be keys and values.", where=path))
    elif given and steps and steps[0].verb in TRAINING:
        problems.append(RekindleError(f"save beside {steps[0].verb} would not be read.", where=path))
    else:
        try:
            resolve(SaveConfig, {}, given)
        except RekindleError as error:
            where = f"save in {path}" + (f", {error.where}" if error.where else "")
            problems.append(RekindleError(error.what, where=where, why=error.why, hint=error.hint))
        return given or {}
    return {}
