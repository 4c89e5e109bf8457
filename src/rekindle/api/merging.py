"""Several checkpoints into one: which they are, and what they are called."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from rekindle.anatomy import Adapter
from rekindle.api.model import Model, combined
from rekindle.api.options import takes
from rekindle.api.source import Located, located
from rekindle.config import Resolved, resolve
from rekindle.edit import joint, open_checkpoint
from rekindle.edit.lora import adapter_of
from rekindle.errors import RekindleError
from rekindle.methods import merge as merge_
from rekindle.store.adapter import is_adapter
from rekindle.store.folder import ADAPTER

BASE = "base"  # the key of what the others were trained from
STEP = re.compile(r"step-(\d+)")  # the name of a source that has one
NAME = re.compile(r"[\w.-]+(/[\w.-]+)*")  # a/b: b of what is called a

Source = Model | str | Path


@takes(merge_.Config)
def merge(
    sources: Source | Sequence[Source] | Mapping[str, Source], *, base: Source | None = None, **options: Any
) -> Model:
    """Make one model of several: a list of SRC or models, or a mapping from names to them; a SRC may be a series.

    Nothing is written until `save`; raises RekindleError where they do not fit together. On the command line:

        rekindle merge SRC SRC2 OUT --weights 0.3,0.7
    """
    return merged(named(sources), base, resolve(merge_.Config, options))


def merged(models: Mapping[str, Model], base: Source | None, config: Resolved[merge_.Config]) -> Model:
    """`merge` of models that have names already; without a base, adapters among them are put on the one they name."""
    _check_oldest_first([*models], config.config.how)
    origin = "flag"
    if base is None and (base := _base_of(models)) is not None:
        origin = ADAPTER
    if base is None:
        return combined("merge", models, config)
    if BASE in models:
        raise RekindleError(f"One of the sources is called {BASE}, and so is the base.", hint="another name")
    own = base if isinstance(base, Model) else _only(base)
    config = Resolved(replace(config.config, base=BASE), config.origins | {"base": origin})
    return combined("merge", {**models, BASE: own}, config)


def _check_oldest_first(names: Sequence[str], how: str) -> None:
    """Refuse steps of a run in another order, where the way goes by it."""
    steps = [*steps_in(names).values()]
    if how in ("ema", "wsm"):
        for first, then in zip(steps, steps[1:]):
            if first > then:
                what = f"{how} goes from the oldest checkpoint on, and step {first} stands before step {then}."
                raise RekindleError(what, hint="in the order of their steps, or the pattern itself as SRC")


def steps_in(names: Iterable[str]) -> dict[str, int]:
    """The step of each, where all have one."""
    found = {name: STEP.fullmatch(name) for name in names}
    return {name: int(match[1]) for name, match in found.items() if match} if all(found.values()) else {}


def _base_of(models: Mapping[str, Model]) -> Model | None:
    """The base that adapters say they were trained on, opened; None where there are no adapters.

    Raises RekindleError where they name none, several, or one that is not here.
    """
    adapters = [model.checkpoint.family for model in models.values()]
    found = [family for family in adapters if isinstance(family, Adapter)]
    if not found:
        return None
    names = list(dict.fromkeys(family.base for family in found))
    if len(names) > 1:
        listed = ", ".join(map(str, names))
        raise RekindleError(f"These adapters name different bases: {listed}.", hint="--base SRC, one for all")
    if names[0] is None:
        raise found[0].refusing("merge")
    try:
        return _only(names[0])
    except RekindleError as error:
        what = f"The adapter is for {names[0]}, and that is not here."
        raise RekindleError(what, where=found[0].path, why=error.what, hint="--base SRC") from None


def named(sources: Source | Sequence[Source] | Mapping[str, Source]) -> dict[str, Model]:
    """Models by name: those of a mapping, else by their steps or in their order; a series is NAME/STEP."""
    if isinstance(sources, Mapping):
        found: dict[str, Model] = {}
        for name, source in sources.items():
            if not NAME.fullmatch(name):
                raise RekindleError(f"{name!r} is no name of a source.", hint="letters, digits, - and _")
            inner = named(source)
            own = {name: next(iter(inner.values()))} if len(inner) == 1 else _under(name, inner)
            if twice := sorted(found.keys() & own.keys()):
                raise RekindleError(f"Two of the sources are called {twice[0]}.", hint="another name for one of them")
            found |= own
        return found
    given = [sources] if isinstance(sources, (Model, str, Path)) else sources
    if any(isinstance(source, Model) for source in given):
        models = [one for source in given for one in ([source] if isinstance(source, Model) else located(source))]
    else:
        models = located([source for source in given if not isinstance(source, Model)])  # which may be a series
    opened = [one if isinstance(one, Model) else _opened(one) for one in models]
    return dict(zip(names_of(models), opened, strict=True))


def names_of(models: Sequence[Model | Located]) -> list[str]:
    """Their steps, where each has one of its own; else numbers from s1 on."""
    steps = [one.step if isinstance(one, Located) else None for one in models]
    numbered = None not in steps and len(set(steps)) == len(steps)
    return [f"step-{step}" if numbered else f"s{i}" for i, step in enumerate(steps, 1)]


def _under(name: str, models: Mapping[str, Model]) -> dict[str, Model]:
    return {joint(name, inner): model for inner, model in models.items()}


def _only(source: str | Path) -> Model:
    found = named(source)
    if len(found) > 1:
        raise RekindleError(f"The base is {source}, {len(found)} checkpoints.", hint="one of them")
    return next(iter(found.values()))


def _opened(one: Located) -> Model:
    folder = one.folder()
    return Model(one.given, adapter_of(folder) if is_adapter(folder.path) else open_checkpoint(folder))
