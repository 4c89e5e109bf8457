"""Whether checkpoints can be merged: the same architecture, tensor by tensor; and what of them is no sum."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import fields
from typing import Any

from rekindle.anatomy import Settings, opaque_name
from rekindle.anatomy.settings import meaning
from rekindle.edit import Checkpoint
from rekindle.edit.arithmetic import is_computable
from rekindle.edit.opening import WHOLE
from rekindle.errors import RekindleError, together

BY_LAYER = {"windows", "sparse_layers"}  # settings
SHOWN = 4  # differences of one kind named one by one
UNREAD = ("_name_or_path", "transformers_version", "torch_dtype", "dtype", "use_cache")  # of a config: not the function


def check_alike(models: Mapping[str, Checkpoint]) -> None:
    """Raise RekindleError with every way in which a model differs from the first, or holds codes."""
    first, *others = models.values()
    problems = [problem for model in models.values() for problem in _codes(model)]
    problems = problems or [problem for other in others for problem in _differences(first, other)]
    if problems:
        raise together(problems)


def notes(models: Mapping[str, Checkpoint], first: Checkpoint) -> Iterator[str]:
    """What is taken from one model alone, where the others may say otherwise: `first`'s."""
    where = first.origin.folder.named
    if whole := [opaque_name(role) or str(role) for role, x in first.tensors.items() if not is_computable(x)]:
        yield f"whole numbers are not averaged but those of {where}: {_some(whole)}"
    own, *others = (_written_out(model) for model in (first, *models.values()))
    keys = {key: None for config in (own, *others) for key in config if key not in UNREAD}
    if unlike := [key for key in keys if any(config.get(key) != own.get(key) for config in others)]:
        yield f"the configs differ in {_some(unlike)}: that of {where} is taken"


def _written_out(model: Checkpoint) -> dict[str, Any]:
    """Its config with every value, in one spelling: what one library leaves out or calls otherwise is no difference."""
    with suppress(RekindleError):
        return model.family.config(model.settings, model.config, model.family)
    return model.config


def _codes(model: Checkpoint) -> Iterator[RekindleError]:
    """Tensors whose numbers stand for others: their sum stands for nothing."""
    codes = [x.dtype for x in model.tensors.values() if not is_computable(x) and x.dtype not in WHOLE]
    if codes or model.config.get("quantization_config"):
        kind = codes[0] if codes else "quantised"
        what = f"These weights are {kind}: codes cannot be added up."
        yield RekindleError(what, where=model.origin.folder.named, hint="the model they were made from")


def _differences(first: Checkpoint, other: Checkpoint) -> Iterator[RekindleError]:
    where = f"{first.origin.folder.named} and {other.origin.folder.named}"
    if first.family.name != other.family.name:
        what = f"A {first.family.name} and a {other.family.name} cannot be merged: tensors are not alike."
        yield RekindleError(what, where=where)
        return
    settings = [problem for tower, a, b in _settings(first, other) for problem in _unlike(tower, a, b)]
    if settings:
        yield RekindleError(f"These models differ: {'; '.join(settings)}.", where=where)
        return
    if missing := sorted(map(str, first.tensors.keys() ^ other.tensors.keys())):
        yield RekindleError(f"Only one of these models has {_some(missing)}.", where=where)
        return
    shapes = [
        f"{role} {list(x.shape)} and {list(other.tensors[role].shape)}"
        for role, x in first.tensors.items()
        if x.shape != other.tensors[role].shape
    ]
    if shapes:
        yield RekindleError(f"Shapes differ: {_some(shapes)}.", where=where)
        return
    dtypes = {
        (x.dtype, other.tensors[role].dtype)
        for role, x in first.tensors.items()
        if x.dtype != other.tensors[role].dtype
    }
    if dtypes:
        listed = ", ".join(f"{a} and {b}" for a, b in sorted(dtypes))
        yield RekindleError(
            f"Dtypes differ: {listed}.", where=where, hint="rekindle rewrite SRC SAME --dtype bfloat16, of one of them"
        )


def _settings(first: Checkpoint, other: Checkpoint) -> Iterator[tuple[str, Settings, Settings]]:
    towers = first.settings.towers
    for name, own in towers.items() if towers else [("", first.settings)]:
        yield name, own, other.settings.towers[name] if towers else other.settings


def _unlike(tower: str, a: Settings, b: Settings) -> Iterator[str]:
    where = f" in the {tower}" if tower else ""
    told = {"towers"} | (BY_LAYER if a.num_layers != b.num_layers else set())  # else one fact is said twice
    for f in fields(Settings):
        one, two = getattr(a, f.name), getattr(b, f.name)
        if one != two and f.name not in told:
            yield f"one {meaning(f.name, _short(one))}, the other {meaning(f.name, _short(two))}{where}"


def _short(value: object) -> object:
    return f"{str(value)[:37]}..." if len(str(value)) > 40 else value


def _some(words: list[str]) -> str:
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more
