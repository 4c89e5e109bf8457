"""What `combine` is given: the checkpoints of a series, or a part of each of its pipelines; and an objective."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, TypeGuard, get_args

from rekindle.anatomy import Nameless
from rekindle.api.merging import Source, named, names_of, steps_in
from rekindle.api.model import Model, open
from rekindle.api.source import Located, located, typed
from rekindle.edit import Checkpoint
from rekindle.errors import RekindleError, first_line, nearest
from rekindle.search.config import CombineConfig
from rekindle.store.manifest import read_manifest
from rekindle.train.config import Objective as Learned

if TYPE_CHECKING:
    from rekindle.search.objective import Function, Objective

PIPELINE = "model_index.json"  # in a folder that is a pipeline of diffusers


def models_of(
    series: Source | Sequence[Source] | Mapping[str, Source], component: str | None = None
) -> tuple[dict[str, Model], Path | None]:
    """The checkpoints of a series by name, oldest first; of pipelines that part of each, and the last one's folder."""
    if isinstance(series, (str, Path)) or (not isinstance(series, (Mapping, Model)) and _are_places(series)):
        places = located(series if isinstance(series, (str, Path)) else typed([*map(str, series)]))
        if not places:
            raise RekindleError("The series is empty.", hint="run/checkpoint-*, or ARCHIVE@*")
        if component or (places[-1].archive is None and (places[-1].path / PIPELINE).is_file()):
            part = component or "unet"
            _check_parts(places, part)
            parts = {name: open(place.path / part) for name, place in zip(names_of(places), places, strict=True)}
            ordered = _in_order(parts)
            last = dict(zip(parts, places, strict=True))[list(ordered)[-1]]
            return ordered, last.path
        series = [place.given for place in places]
    return _in_order(named(series)), None


def _in_order(models: Mapping[str, Model]) -> dict[str, Model]:
    """Oldest first: by the length of their lineage, since each training counts from 0, and by their steps, where all
    have one.
    """
    steps = steps_in(models)
    lives = {name: read_manifest(model.checkpoint.folder.path) for name, model in models.items()}
    age = {name: (len(life.lineage) if life else 0, steps.get(name, 0)) for name, life in lives.items()}
    return {name: models[name] for name in sorted(models, key=lambda name: age[name])}


def _check_parts(places: Sequence[Located], part: str) -> None:
    """Raise RekindleError where a pipeline has no such part."""
    for place in places:
        if not (place.path / part).is_dir():
            parts = sorted(path.parent.name for path in place.path.glob("*/config.json"))
            raise RekindleError(
                f"{place.given} has no {part}.", hint=", ".join(f"--component {name}" for name in parts)
            )


def _are_places(series: Sequence[Source]) -> TypeGuard[Sequence[str | Path]]:
    return not any(isinstance(one, Model) for one in series)


def objective_named(
    given: str | Function | Objective,
    parents: Mapping[str, Checkpoint],
    config: CombineConfig,
    pipeline: Path | None,
) -> Objective:
    """A function, or what a word says: loss, fd, kid, FILE.py:function. `parents`: the checkpoints, oldest first."""
    from rekindle.search.objective import objective_of

    if not isinstance(given, str):
        return objective_of(given)
    last = [*parents.values()][-1]
    if given in ("loss", *get_args(Learned)):
        from rekindle.search.losses import loss_of

        if isinstance(last.family, Nameless):
            what = f"How a {last.family.name} is called, and what its loss is, no table says."
            raise RekindleError(what, where=last.folder.named, hint="--objective FILE.py:function, of any model")
        return loss_of(last.folder, replace(config, objective=given))
    if given in ("fd", "kid"):
        from rekindle.search.images import quality_of

        if pipeline is None:
            what = f"{given} is of what a pipeline samples, and {last.folder.named} is none."
            raise RekindleError(what, where=PIPELINE, hint="a folder that diffusers saved, or FILE.py:function")
        return quality_of(pipeline, config, None if config.features == "pixels" else function_in(config.features))
    return replace(objective_of(function_in(given)), name=given)


def function_in(place: str) -> Function:
    """The function that FILE.py:NAME names; its file is run. Raises RekindleError where there is none."""
    path, _, name = place.rpartition(":")
    if not path.endswith(".py") or not name:
        what = f"{place!r} is no objective."
        raise RekindleError(
            what, hint="loss, next-token, seq2seq, span-corruption, ul2, prefix-lm, fd, kid, or FILE.py:function"
        )
    path = os.path.expanduser(path)
    if not os.path.isfile(path):
        raise RekindleError(f"There is no file {path}.", where=place)
    spec = importlib.util.spec_from_file_location(f"objective_{Path(path).stem}", path)
    assert spec is not None, path
    assert spec.loader is not None, path
    module = importlib.util.module_from_spec(spec)
    try:
        spec.loader.exec_module(module)
    except Exception as error:
        what = f"{path} cannot be run: {type(error).__name__}: {first_line(error)}."
        raise RekindleError(what, where=place) from error
    found = getattr(module, name, None)
    if not callable(found):
        known = [key for key, value in vars(module).items() if callable(value) and not key.startswith("_")]
        what = f"{path} has no function {name!r}."
        raise RekindleError(what, where=place, hint=nearest(name, known) or ", ".join(known) or None)
    return found
