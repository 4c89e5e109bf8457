"""The tokens that a written text begins and ends with, and is padded with."""

from __future__ import annotations

import json
from typing import NamedTuple

from rekindle.edit.checkpoint import Checkpoint
from rekindle.errors import RekindleError
from rekindle.store.passengers import GENERATION
from rekindle.store.vocabulary import Vocabulary

WRITER = "decoder_tokenizer"  # the config key of the files of what writes, and the folder that they lie in


class Tokens(NamedTuple):
    ids: dict[str, int]  # under the config's keys, which `generate` reads too
    told: str

    @property
    def of_a_half(self) -> dict[str, int]:
        """As decoders call them."""
        return {key.replace("decoder_start", "bos"): token for key, token in self.ids.items()}

    @property
    def files(self) -> dict[str, str]:
        """What `generate` reads before the config."""
        return {GENERATION: json.dumps(self.ids, indent=2) + "\n"}


def tokenizer_of(model: Checkpoint) -> dict[str, str]:
    """The files of a tokenizer under WRITER, name -> text, and what transformers must know of its model."""
    found = Vocabulary(model.folder.path, model.folder.named).texts()
    config = json.dumps({"model_type": model.family.model_type}) + "\n"
    return {f"{WRITER}/{name}": text for name, text in (found | {"config.json": config}).items()} if found else {}


def special_tokens(model: Checkpoint, *, apart: bool = False) -> Tokens:
    """Those of a text that this model is to write. `apart`: what pads is not what begins.

    It begins with what its tokenizer, or else its config, calls cls or bos, else with what ends it, pads it, or 0; it
    ends with sep or eos, else with what begins it; and it is padded with pad, else with what ends it. Raises
    RekindleError where such a token is outside the vocabulary.
    """
    vocabulary = Vocabulary(model.folder.path, model.folder.named)
    named = vocabulary.special
    own = {f"{name}_token": model.config.get(f"{name}_token_id") for name in ("bos", "eos", "pad")}
    own = {name: i for name, i in own.items() if type(i) is int}

    def first(*names: str) -> int | None:
        keys = [f"{name}_token" for name in names]
        return next((known[key] for known in (named, own) for key in keys if key in known), None)

    start, end, pad = first("cls", "bos"), first("sep", "eos"), first("pad")
    start = next(i for i in (start, end, pad, 0) if i is not None)
    end = start if end is None else end
    pad = end if pad is None else pad
    if apart and pad == start:  # the last of the model's tokens: where its tokenizer has fewer, none that is written
        pad = end if end != start else model.settings.vocab_size - 1
    found = {"decoder_start_token_id": start, "eos_token_id": end, "pad_token_id": pad}
    for key, i in found.items():
        if not 0 <= i < model.settings.vocab_size:
            what = f"{key} would be {i}, and the decoder's vocabulary has {model.settings.vocab_size} tokens."
            raise RekindleError(what, where=model.folder.path, hint="a tokenizer of this model, or its config mended")
    words = {i: word for word, i in vocabulary.ids.items()}
    owned = pad in words and pad not in (start, end) and pad not in named.values()
    beside = ", which texts have too: its tokenizer has no token to spare" if owned else ""
    start, end, pad = (f"{words[i]!r}" if i in words else f"token {i}" for i in found.values())
    return Tokens(found, f"a text that it writes begins with {start}, ends with {end} and is padded with {pad}{beside}")
