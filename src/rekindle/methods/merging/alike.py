"""Whether checkpoints can be merged: the same architecture, tensor by tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields

from rekindle.anatomy import Settings
from rekindle.anatomy.settings import meaning
from rekindle.edit import Checkpoint
from rekindle.errors import RekindleError, together

SHOWN = 4  # differences of one kind named one by one


def check_alike(models: Mapping[str, Checkpoint]) -> None:
    """Raise RekindleError with every way in which a model differs from the first."""
    (_, first), *others = models.items()
    problems = [problem for _, other in others for problem in _differences(first, other)]
    if problems:
        raise together(problems)


def _differences(first: Checkpoint, other: Checkpoint) -> Iterator[RekindleError]:
    where = f"{first.origin.folder.path} and {other.origin.folder.path}"
    if first.family.model_type != other.family.model_type:
        what = f"A {first.family.model_type} and a {other.family.model_type} cannot be merged: tensors are not alike."
        yield RekindleError(what, where=where)
        return
    settings = [problem for tower, a, b in _settings(first, other) for problem in _unlike(tower, a, b)]
    if settings:
        yield RekindleError(f"These models differ: {'; '.join(settings)}.", where=where, hint=_hint(settings))
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
    for f in fields(Settings):
        one, two = getattr(a, f.name), getattr(b, f.name)
        if one != two and f.name != "towers":
            yield f"one {meaning(f.name, _short(one))}, the other {meaning(f.name, _short(two))}{where}"


def _short(value: object) -> object:
    return f"{str(value)[:37]}..." if len(str(value)) > 40 else value


def _hint(settings: list[str]) -> str | None:
    return "--vocab union, where tokens can be matched" if any("vocab_size" in text for text in settings) else None


def _some(words: list[str]) -> str:
    more = f" and {len(words) - SHOWN} more" if len(words) > SHOWN else ""
    return ", ".join(words[:SHOWN]) + more
