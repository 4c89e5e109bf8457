"""A function for each method, its words out of the table of methods and its options out of the method's Config.

A line here is what a type checker sees of a method: its options by name and type. A test holds the lines to the table.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Concatenate, ParamSpec, cast

from rekindle.api.merging import merge
from rekindle.api.model import Model, open
from rekindle.api.options import takes
from rekindle.api.repairing import repair
from rekindle.api.warming import warm_start
from rekindle.config import resolve
from rekindle.methods import gqa as gqa_
from rekindle.methods import grow_depth as grow_depth_
from rekindle.methods import grow_experts as grow_experts_
from rekindle.methods import method_named, sparse_upcycling
from rekindle.methods import rewrite as rewrite_

P = ParamSpec("P")


def apply(verb: str, source: Any, *, tower: str | None = None, **options: Any) -> Model:
    """Apply a method by its verb, see rekindle.methods.METHODS; each has a function of its own too.

    `tower`: "encoder", "decoder" or "both", of a model of two. `source`: several, of a method that takes them, or what
    its options name, the first of these where it is no mapping.
    """
    if names := method_named(verb).named_by:
        return warm_start(**{**(source if isinstance(source, Mapping) else {names[0]: source}), **options})
    if method_named(verb).takes == "models":
        return merge(source, **options)
    if verb == "repair":
        return repair(source, **options)
    model = source if isinstance(source, Model) else open(source)
    return model.then(verb, resolve(method_named(verb).config, options), tower)


def _verb(verb: str, config: Callable[P, Any]) -> Callable[Concatenate[Model | str | Path, P], Model]:
    method = method_named(verb)

    def of_tower(source: Model | str | Path, *, tower: str | None = None, **options: Any) -> Model:
        return apply(verb, source, tower=tower, **options)

    def of_model(source: Model | str | Path, **options: Any) -> Model:
        return apply(verb, source, **options)

    function = of_tower if method.takes == "tower" else of_model

    function.__name__ = function.__qualname__ = verb.replace("-", "_")
    examples = "\n".join(f"    {command}" for command in method.commands)
    paper = f"{method.paper}\n\n" if method.paper else ""
    function.__doc__ = (
        f"{method.summary}\n\n{paper}Nothing is written until `save`; raises RekindleError where it does not fit. "
        f"On the command line:\n\n{examples}"
    )
    return cast(Callable[Concatenate[Model | str | Path, P], Model], takes(method.config)(function))


upcycle = _verb("upcycle", sparse_upcycling.Config)
grow_depth = _verb("grow-depth", grow_depth_.Config)
grow_experts = _verb("grow-experts", grow_experts_.Config)
gqa = _verb("gqa", gqa_.Config)
rewrite = _verb("rewrite", rewrite_.Config)
