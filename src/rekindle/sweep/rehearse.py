"""A grid's steps on configs alone: all that a step would be refused for, before anything is trained."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

from rekindle.config import resolve
from rekindle.edit import Checkpoint, open_checkpoint
from rekindle.errors import RekindleError, together
from rekindle.methods import method_named
from rekindle.store.folder import Folder
from rekindle.sweep.grid import Grid, steps_of
from rekindle.sweep.steps import Step
from rekindle.train.config import InitConfig, TrainConfig
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


def _made(step: Step, models: Mapping[str, Checkpoint]) -> Checkpoint:
    """What the step makes, without weights."""
    from rekindle.train.price import price_training

    if step.verb == "init":
        return _begun(resolve(InitConfig, step.options).config)
    parent = models[step.source]
    if step.verb == "train":
        price_training(parent, resolve(TrainConfig, {"lr": UNTRAINED, **step.options}).config)
        return parent
    return method_named(step.verb).apply(parent, resolve(method_named(step.verb).config, step.options).config)


def _begun(config: InitConfig) -> Checkpoint:
    from rekindle.train.init import check_sizes, model_settings
    from rekindle.train.price import tokenizer_to_be

    check_sizes(config)
    settings = {"model_type": config.family, **model_settings(config, tokenizer_to_be(config))}
    return open_checkpoint(Folder(Path(config.family), settings, {}, "", bare=True))
