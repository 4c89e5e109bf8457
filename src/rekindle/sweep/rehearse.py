"""A grid's steps on configs alone: what each would make, and all that it would be refused for, before any training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rekindle.config import resolve
from rekindle.edit import Checkpoint, open_checkpoint
from rekindle.errors import RekindleError, together
from rekindle.methods import method_named
from rekindle.store.folder import Folder
from rekindle.sweep.grid import Grid, steps_of
from rekindle.sweep.steps import Step
from rekindle.train.blank import Blank
from rekindle.train.config import InitConfig, TrainConfig
from rekindle.train.init import blank_to_be
from rekindle.train.rate import UNTRAINED


def rehearse(grid: Grid, where: object) -> None:
    """Raises RekindleError with each kind of refusal once. What the text decides is not known here."""
    models: dict[str, Checkpoint] = {}
    problems: dict[str, RekindleError] = {}
    steps, _ = steps_of(replace(grid, seeds=grid.seeds[:1]))
    for step in steps:
        if step.source and step.source not in models:
            continue  # what it starts from was refused
        try:
            models[step.name] = _made(step, models)
        except RekindleError as error:
            what = f"The step {step.name} would fail: {error.what}"
            problems.setdefault(error.what, RekindleError(what, where=where, why=error.why, hint=error.hint))
    if problems:
        raise together(list(problems.values()))


def models_of(steps: Sequence[Step]) -> dict[str, Checkpoint]:
    """Name of a step -> the model that it makes, without weights; seeds tell it nothing."""
    models: dict[str, Checkpoint] = {}
    made: dict[Any, Checkpoint] = {}
    for step in steps:
        if step.verb == "train":
            models[step.name] = models[step.source]
            continue
        options = repr({name: value for name, value in step.options.items() if name != "seed"})
        key = step.verb, id(models[step.source]) if step.source else None, options
        if key not in made:
            made[key] = _made(step, models)
        models[step.name] = made[key]
    return models


def _made(step: Step, models: Mapping[str, Checkpoint]) -> Checkpoint:
    """What the step makes, without weights."""
    from rekindle.train.price import price_training

    if step.verb == "init":
        made = begun(step.options)
        return open_checkpoint(Folder(Path(made.family.model_type), made.config, {}, "", bare=True))
    parent = models[step.source]
    if step.verb == "train":
        price_training(parent, resolve(TrainConfig, {"lr": UNTRAINED, **step.options}).config)
        return parent
    return method_named(step.verb).apply(parent, resolve(method_named(step.verb).config, step.options).config)


def begun(options: Mapping[str, Any]) -> Blank:
    """What `init` makes of these options."""
    return blank_to_be(resolve(InitConfig, options).config)
