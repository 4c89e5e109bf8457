"""Encoder-decoders out of checkpoints that options name: whose halves they are."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from rekindle.api.model import Model, combined, open
from rekindle.api.options import takes
from rekindle.config import Resolved, resolve
from rekindle.errors import RekindleError
from rekindle.methods import method_named
from rekindle.methods import warm_start as warm_start_
from rekindle.methods.warming.halves import RANDOM, SAME

VERB = "warm-start"

Source = Model | str | Path


@takes(warm_start_.Config)
def warm_start(encoder: Source = RANDOM, decoder: Source = RANDOM, **options: Any) -> Model:
    """Join checkpoints into an encoder-decoder: one reads, one writes.

    `encoder`, `decoder`: a SRC or a model; "random", in the other's size, or "random:SRC"; and of the decoder "same".
    Nothing is written until `save`; raises RekindleError where no class of transformers holds them. On the command
    line:

        rekindle warm-start OUT --encoder BERT --decoder same --share all
    """
    given = {"encoder": encoder, "decoder": decoder}
    models = {name: one for name, one in given.items() if isinstance(one, Model)}
    named = {name: name if name in models else str(one) for name, one in given.items()}
    return warmed(resolve(warm_start_.Config, {**options, **named}), models)


def warmed(options: Resolved[warm_start_.Config], models: dict[str, Model] | None = None) -> Model:
    """`warm_start` with options that are resolved; each SRC that they name is opened, one of both halves once."""
    found, keys, method = dict(models or {}), {name: name for name in models or {}}, method_named(VERB)
    for half in method.named_by:
        text = getattr(options.config, half)
        source = text.removeprefix(f"{RANDOM}:")
        if source in keys or text in (RANDOM, SAME):
            continue
        model = open(source)
        same = (key for key, one in found.items() if _is_one(one, model))
        keys[source] = next(same, half)
        found.setdefault(keys[source], model)
    if not found:
        raise RekindleError("Both halves are drawn anew, and nothing says their sizes.", hint="--encoder SRC")
    config = method.renamed(options.config, keys)
    return combined(VERB, found, replace(options, config=config))


def _is_one(one: Model, other: Model) -> bool:
    ours, theirs = one.checkpoint.folder.path, other.checkpoint.folder.path
    return not one.steps and ours.resolve() == theirs.resolve()
