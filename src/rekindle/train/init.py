"""A model from scratch: `init_model`, and what it would take: `price_init`."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any

from rekindle.anatomy import Settings
from rekindle.errors import counted
from rekindle.store.manifest import Manifest, Record
from rekindle.store.publish import publishing
from rekindle.train.blank import DEFAULT_CONTEXT, MARKS, Blank, blank_model, family_of_options, unmakeable
from rekindle.train.config import InitConfig
from rekindle.train.tokenizer import SENTINELS, bpe_size, make_tokenizer
from rekindle.version import __version__

log = logging.getLogger(__name__)

# The tokenizer of a model that reads images.
NO_TOKENS: Any = SimpleNamespace(get_vocab=lambda: {"": -1}, **dict.fromkeys(MARKS))


def init_model(
    out: Path,
    config: InitConfig,
    *,
    command: str,
    options: dict[str, dict[str, Any]],
    recipe: Mapping[str, Any] | None = None,
    overwrite: bool = False,
) -> Path:
    """Write a model with random weights to `out`, and a tokenizer where it reads a text.

    The same config gives the same bytes.

    `command` is what to type, `recipe` what rekindle.yaml says.
    Raises RekindleError for sizes that make no model and data that make no tokenizer.
    """
    import torch
    from transformers import AutoConfig

    from rekindle.apply.load import model_class, quietly
    from rekindle.train.finish import write_manifest
    from rekindle.train.model import save_model

    # What makes no model is refused before a tokenizer is trained.
    context = blank_to_be(config).settings.context
    with publishing(out, overwrite=overwrite) as partial:
        family = family_of_options(config)
        if family.reads_images:
            tokenizer = NO_TOKENS
        else:
            sentinels = bool(family.towers)
            tokenizer = make_tokenizer(config.tokenizer, config.data, context, config.text_column, sentinels=sentinels)
            tokenizer.save_pretrained(partial)
        blank = blank_model(config, tokenizer)
        for remark in blank.family.remarks(blank.settings):
            log.warning("%s", remark)
        try:
            with torch.random.fork_rng(devices=[]), quietly():
                torch.manual_seed(config.seed)
                made = model_class(blank.settings.output)
                model = made.from_config(AutoConfig.for_model(**blank.config), dtype=torch.float32)
                _part_head(model, blank.settings)
        except Exception as error:  # of values that the table does not judge, such as a dropout of 2
            raise unmakeable(error) from None
        save_model(model.to(getattr(torch, config.dtype)), partial)
        record = Record(verb="init", command=command, options=options, summary=_sentence(blank))
        life = Manifest(version=__version__, lineage=[record], parameters=blank.parameters())
        write_manifest(partial, life, recipe)
    return Path(out)


def _part_head(model: Any, settings: Settings) -> None:
    """Give the head a matrix of its own where one is asked for; transformers (5.23) ties a T5's in any case.

    So wide that logits begin with a variance of 1, as those of tied and scaled embeddings do. Departure: transformers
    draws such a head as it does embeddings, and where its input is not scaled a loss then begins at tens of nats.
    """
    import torch

    head = model.get_output_embeddings()
    if settings.tie_word_embeddings or head is None or head.weight is not model.get_input_embeddings().weight:
        return
    std = model.config.initializer_factor * (1.0 if settings.scaled_output else settings.hidden_size**-0.5)
    head.weight = torch.nn.Parameter(torch.empty_like(head.weight).normal_(std=std))


def price_init(config: InitConfig) -> dict[str, Any]:
    """{"parameters", "vocab_size", "bytes"}: the most, as data that is too little makes a smaller vocabulary."""
    blank = blank_to_be(config)
    itemsize = {"float32": 4, "bfloat16": 2}[config.dtype]
    n = blank.parameters()
    return {"parameters": n, "vocab_size": blank.settings.vocab_size, "bytes": itemsize * n["total"]}


def blank_to_be(config: InitConfig) -> Blank:
    """What `init` makes of these options, before any tokenizer is trained."""
    return blank_model(config, _tokenizer_to_be(config))


def _tokenizer_to_be(config: InitConfig) -> Any:
    """The tokenizer of these options; one that is not trained yet has as many entries as it may get."""
    if family_of_options(config).reads_images:
        return NO_TOKENS
    size = bpe_size(config.tokenizer)
    if size is not None:
        most = size + (SENTINELS if family_of_options(config).towers else 0)
        return SimpleNamespace(get_vocab=lambda: {"": most - 1}, **dict.fromkeys(MARKS))
    return make_tokenizer(config.tokenizer, config.data, DEFAULT_CONTEXT)


def _sentence(blank: Blank) -> str:
    n, settings = blank.parameters(), blank.settings
    columns = [f"{name} of {counted(own.num_layers, 'layer')}" for name, own in settings.towers.items()]
    depth = " and ".join(columns) or counted(settings.num_layers, "layer")
    return (
        f"{blank.family.model_type} from scratch: hidden {settings.hidden_size}, "
        f"{depth}, {n['total']:,} parameters ({n['active']:,} active)"
    )
