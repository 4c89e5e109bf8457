"""The paper's variants by their names (table 1): which half has a checkpoint, of which kind, and what is one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any, NamedTuple

from rekindle.edit import Checkpoint, exact
from rekindle.edit.special import special_tokens
from rekindle.errors import RekindleError, nearest
from rekindle.methods.warming.halves import RANDOM, SAME

ALONE = "gpt"  # the variant without an encoder: a GPT-2 that reads the source before it writes
BERT, ROBERTA, GPT = ("bert", "bert-generation"), ("roberta",), ("gpt2",)
DRAWN: tuple[str, ...] = ()


class Variant(NamedTuple):
    encoder: tuple[str, ...]  # the kinds of SRC that it may be; none of a half that is drawn
    decoder: tuple[str, ...]
    share: str


VARIANTS = {
    "rnd2rnd": Variant(DRAWN, DRAWN, "embeddings"),
    "bert2rnd": Variant(BERT, DRAWN, "embeddings"),
    "rnd2bert": Variant(DRAWN, BERT, "embeddings"),
    "bert2bert": Variant(BERT, BERT, "embeddings"),
    "bertshare": Variant(BERT, BERT, "all"),
    "robertashare": Variant(ROBERTA, ROBERTA, "all"),
    "rnd2gpt": Variant(DRAWN, GPT, "embeddings"),
    "bert2gpt": Variant(BERT, GPT, "none"),
    "roberta2gpt": Variant(ROBERTA, GPT, "none"),
}


def as_published(parents: Mapping[str, Checkpoint], config: Any) -> Any:
    """The config with what its variant says; raises RekindleError where it says something else itself."""
    if not config.variant:
        return config
    name = config.variant.lower()
    if name not in VARIANTS:
        hint = nearest(name, (*VARIANTS, ALONE)) or ", ".join((*VARIANTS, ALONE))
        raise RekindleError(f"The paper has no variant {config.variant!r}.", hint=hint)
    variant = VARIANTS[name]
    if config.share not in ("auto", variant.share) or config.cross != "random":
        what = f"{name} has --share {variant.share} and --cross random."
        raise RekindleError(what, hint="no --variant, and the halves by themselves")
    decoder = config.decoder
    if config.decoder == RANDOM and variant.decoder and variant.decoder == variant.encoder:
        decoder = SAME
    for half, kinds, source in (("encoder", variant.encoder, config.encoder), ("decoder", variant.decoder, decoder)):
        _check(name, half, kinds, source, parents)
    return replace(config, decoder=decoder, share=variant.share)


def alone(parents: Mapping[str, Checkpoint], config: Any) -> Checkpoint:
    """The GPT-2 as it is, which says how its texts begin and end; raises RekindleError for anything beside it."""
    asked = {"encoder": RANDOM, "share": "auto", "cross": "random", "encoder_layers": "all", "decoder_layers": "all"}
    if beside := next((name for name, usual in asked.items() if getattr(config, name) != usual), None):
        flag = f"--{beside.replace('_', '-')}"
        raise RekindleError(f"{ALONE} is a decoder by itself: {flag} is not for it.", hint=f"without {flag}")
    _check(ALONE, "decoder", GPT, config.decoder, parents)
    parent = parents[config.decoder]
    tokens = special_tokens(parent)
    ids = {key: token for key, token in tokens.ids.items() if key != "decoder_start_token_id"}
    child = parent.derive(config=parent.config | ids)
    told = "it reads a source as the beginning of its text: train --objective seq2seq"
    return child.noting(told).promising(exact("it is the model that it was"))


def _check(variant: str, half: str, kinds: tuple[str, ...], source: str, parents: Mapping[str, Checkpoint]) -> None:
    drawn = source.partition(":")[0] == RANDOM
    if drawn and kinds:
        raise RekindleError(f"The {half} of {variant} is a {kinds[0]}, and none is named.", hint=f"--{half} SRC")
    if not drawn and not kinds:
        raise RekindleError(f"The {half} of {variant} is drawn.", hint=f"no --{half}, or --{half} random:SRC")
    if source in parents and (found := parents[source].family.model_type) not in kinds and kinds:
        raise RekindleError(f"The {half} of {variant} is a {kinds[0]}, and this is a {found}.", hint=f"--{half} SRC")
