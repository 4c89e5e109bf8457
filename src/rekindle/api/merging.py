"""Several checkpoints into one: which they are, and what they are called."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rekindle.api.model import Model, combined
from rekindle.api.options import takes
from rekindle.api.source import Located, located
from rekindle.config import Resolved, resolve
from rekindle.edit import joint, open_checkpoint
from rekindle.errors import RekindleError
from rekindle.methods import merge as merge_

BASE = "base"  # the key of what the others were trained from
NAME = re.compile(r"[\w.-]+")

Source = Model | str | Path


@takes(merge_.Config)
def merge(
    sources: Source | Sequence[Source] | Mapping[str, Source], *, base: Source | None = None, **options: Any
) -> Model:
    """Make one model of several: a list of SRC or models, or a mapping from names to them; a SRC may be a series.

    Nothing is written until `save`; raises RekindleError where they do not fit together. On the command line:

        rekindle merge SRC SRC2 OUT --weights 0.3,0.7
    """
    config = resolve(merge_.Config, options | ({"base": BASE} if base is not None else {}))
    return merged(named(sources), base, config)


def merged(models: Mapping[str, Model], base: Source | None, config: Resolved[merge_.Config]) -> Model:
    """`merge` of models that have names already."""
    own = {BASE: base if isinstance(base, Model) else _only(base)} if base is not None else {}
    if taken := sorted(own.keys() & models.keys()):
        raise RekindleError(f"One of the sources is called {taken[0]}, and so is the base.", hint="another name")
    return combined("merge", {**models, **own}, config)


def named(sources: Source | Sequence[Source] | Mapping[str, Source]) -> dict[str, Model]:
    """Models by name: those of a mapping, else by their steps or in their order; a series is NAME/STEP."""
    if isinstance(sources, Mapping):
        found: dict[str, Model] = {}
        for name, source in sources.items():
            if not NAME.fullmatch(name):
                raise RekindleError(f"{name!r} is no name of a source.", hint="letters, digits, - and _")
            inner = named(source)
            found |= {name: next(iter(inner.values()))} if len(inner) == 1 else _under(name, inner)
        return found
    given = [sources] if isinstance(sources, (Model, str, Path)) else list(sources)
    models: list[Model | Located] = []
    for model, texts in _runs(given):
        models += [model] if model else located(texts)
    steps = [one.step if isinstance(one, Located) else None for one in models]
    numbered = None not in steps and len(set(steps)) == len(steps)
    names = [f"step-{step}" if numbered else f"s{i}" for i, step in enumerate(steps, 1)]
    return {name: one if isinstance(one, Model) else _opened(one) for name, one in zip(names, models, strict=True)}


def _runs(given: Sequence[Source]) -> list[tuple[Model | None, list[str | Path]]]:
    """Models one by one, and neighbouring texts together: a shell may have made them of one pattern."""
    found: list[tuple[Model | None, list[str | Path]]] = []
    for source in given:
        if isinstance(source, Model):
            found.append((source, []))
        elif found and found[-1][0] is None:
            found[-1][1].append(source)
        else:
            found.append((None, [source]))
    return found


def _under(name: str, models: Mapping[str, Model]) -> dict[str, Model]:
    return {joint(name, inner): model for inner, model in models.items()}


def _only(source: str | Path) -> Model:
    found = named(source)
    if len(found) > 1:
        raise RekindleError(f"The base is {source}, {len(found)} checkpoints.", hint="one of them")
    return next(iter(found.values()))


def _opened(one: Located) -> Model:
    return Model(one.given, open_checkpoint(one.folder()))
