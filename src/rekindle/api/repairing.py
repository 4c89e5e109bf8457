"""A checkpoint that has lost something, and another that may have it still."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rekindle.api.model import Model, combined, open
from rekindle.api.options import takes
from rekindle.api.source import located
from rekindle.config import Resolved, resolve
from rekindle.edit import open_checkpoint
from rekindle.errors import RekindleError
from rekindle.methods import repair as repair_

HURT, OTHER = "hurt", "other"  # the keys of a checkpoint and of the one that has what it lost

Source = Model | str | Path


@takes(repair_.Config)
def repair(source: Source, *, from_: Source = "neighbours", **options: Any) -> Model:
    """Make a checkpoint whole again that has lost layers or a shard.

    `from_`: "neighbours", "copy", or another checkpoint that has what is lost. Nothing is written until `save`; raises
    RekindleError where nothing is left to make it of. On the command line:

        rekindle repair SRC OUT --lost layers:8-11
        rekindle repair SRC OUT --lost shard:model-00003-of-00007.safetensors --from SRC2
    """
    other = from_ if isinstance(from_, Model) else None
    return repaired(source, resolve(repair_.Config, {**options, "from": OTHER if other else str(from_)}), other)


def repaired(source: Source, options: Resolved[repair_.Config], other: Model | None = None) -> Model:
    """`repair` with options that are resolved; a SRC2 that they name is opened."""
    config = options.config
    model = source if isinstance(source, Model) else open(source, without=unreadable(config))
    if other is None and config.from_ in repair_.WAYS:
        return model.then("repair", options)
    other = other or _opened(config.from_)
    if not model.steps and model.checkpoint.folder.path.resolve() == other.checkpoint.folder.path.resolve():
        raise RekindleError(f"--from {config.from_} is the checkpoint that lost it.", hint="another one of this shape")
    options = replace(options, config=replace(config, from_=OTHER))
    return combined("repair", {HURT: model, OTHER: other}, options)


def unreadable(config: repair_.Config) -> tuple[str, ...]:
    """Shards that need not be there."""
    return repair_.named(config.lost).files


def _opened(source: str) -> Model:
    try:
        found = located([source])
        if len(found) != 1:
            raise RekindleError(f"--from {source} is {len(found)} checkpoints.", hint="one of them")
        return Model(found[0].given, open_checkpoint(found[0].folder()))
    except RekindleError as error:
        error.hint = error.hint or f"--from {' or '.join(repair_.WAYS)}, or a checkpoint"
        raise
