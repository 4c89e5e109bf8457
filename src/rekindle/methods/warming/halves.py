"""The two halves of a warm start: whose tensors each has, and in which class of transformers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from rekindle.anatomy import GEMMAS, PAIRS, READERS, WRITERS, Family, Role, Settings
from rekindle.edit import Checkpoint, Expr
from rekindle.edit.arithmetic import Sum
from rekindle.edit.choose import Chosen
from rekindle.errors import RekindleError, together
from rekindle.methods.warming.sandwich import AS_GEMMA

RANDOM, SAME = "random", "same"  # instead of a SRC
READS_AS = {"bert": "bert-generation", "bert-generation": "bert-generation", "roberta": "roberta",
            "modernbert": "modernbert", "gemma2": "t5gemma", "gemma3_text": "t5gemma2"}  # fmt: skip
WRITES_AS = {kind: name for kind, name in READS_AS.items() if kind != "modernbert"} | {"gpt2": "gpt2"}
ADAPTED = {family.name: family for family in GEMMAS}  # classes of their own, of both towers
CLASSES = {**PAIRS, **{(name, name): family for name, family in ADAPTED.items()}}
READS: dict[str, Family] = {**READERS, **{name: family.towers["encoder"] for name, family in ADAPTED.items()}}
WRITES: dict[str, Family] = {
    **{kind: writer.tower for kind, writer in WRITERS.items()},
    **{name: family.towers["decoder"] for name, family in ADAPTED.items()},
}
NEW = "bert-generation"  # of a half that is drawn, where the other's kind cannot be it


@dataclass(frozen=True)
class Half:
    """A tower to be: `parent` is whose tensors it has, None where they are drawn; `like` whose sizes."""

    name: str
    table: Family
    parent: Checkpoint | None
    like: Checkpoint
    layers: tuple[int, ...]

    def settings(self, **own: Any) -> Settings:
        """Its sizes are those of `like`, all else what its table says."""
        count, s = len(self.layers), self.like.settings
        types = s.token_types if "token_types" in self.table.keys else 0
        windows = (None,) * count if self.table.windows == "none" else tuple(s.windows[layer] for layer in self.layers)
        known: dict[str, Any] = {"num_layers": count, "windows": windows, "token_types": types}
        if self.table.rope == "none":
            known |= {"rope_theta": 0.0, "rope_scaling": None, "rotary_dim": 0, "local_rope_theta": None}
        return replace(s, **known | dict(self.table.fixed) | own)

    def tensor(self, role: Role) -> Expr | None:
        """What the parent has in its place."""
        if self.parent is None:
            return None
        held, layer = self.parent.tensors, self.layers[role.layer] if role.layer >= 0 else -1
        x = held.get(Role(role.part, layer))
        if role.part == "positions" and x is not None and "token_types" not in self.table.keys:
            types = held.get(Role("token_types"))
            return x if types is None else Sum(x, Chosen(types, np.zeros(x.shape[0], np.int64)))
        return x

    @property
    def kept(self) -> bool:
        """Whether it is all of its SRC, looks where that did, and no sum in it is rounded to 16 bits."""
        if self.parent is None or len(self.layers) < self.like.settings.num_layers:
            return False
        if self.settings().bidirectional != self.like.settings.bidirectional or not self.parent.promise.exact:
            return False
        return self.parent.dtype in ("F32", "F64") or not isinstance(self.tensor(Role("positions")), Sum)


def halves_of(
    parents: Mapping[str, Checkpoint], encoder: str, decoder: str, layers: Mapping[str, str]
) -> tuple[Half, Half]:
    """The two; raises RekindleError with every reason why one cannot be."""
    reads, reads_like = _named(parents, encoder)
    if decoder == SAME:
        if not reads:
            raise RekindleError("The decoder is the same as the encoder, which has no SRC.", hint="--encoder SRC")
        writes, writes_like = reads, reads
    else:
        writes, writes_like = _named(parents, decoder)
    like = reads_like or writes_like
    if like is None:
        what = "Both halves are drawn anew, and nothing says their sizes."
        raise RekindleError(what, hint="--encoder SRC, or --encoder random:SRC")
    problems: list[RekindleError] = []
    reader = _half("encoder", reads, reads_like or like, READS_AS, READS, layers["encoder"], problems)
    writer = _half("decoder", writes, writes_like or like, WRITES_AS, WRITES, layers["decoder"], problems)
    if problems or reader is None or writer is None:
        raise together(problems)
    if (reader.table.name, writer.table.name) not in CLASSES:
        kinds = reader.like.family.name, writer.like.family.name
        what = f"No class of transformers joins a {kinds[0]} that reads and a {kinds[1]} that writes."
        hint = "one kind for both; or a bert or roberta that reads, and one of these or a gpt2 that writes"
        raise RekindleError(what, hint=hint)
    return reader, writer


def _named(parents: Mapping[str, Checkpoint], text: str) -> tuple[Checkpoint | None, Checkpoint | None]:
    """(whose tensors a half has, whose sizes): None of what is not said."""
    word, _, other = text.partition(":")
    name = other if word == RANDOM else text
    if name and name not in parents:
        what = f"No model here is called {name!r}."
        raise RekindleError(what, hint=f"{', '.join(parents) or 'SRC'}, {RANDOM}, or of the decoder {SAME}")
    found = parents[name] if name else None
    return (None if word == RANDOM else found), found


def _half(
    name: str,
    parent: Checkpoint | None,
    like: Checkpoint,
    kinds: Mapping[str, str],
    tables: Mapping[str, Family],
    layers: str,
    problems: list[RekindleError],
) -> Half | None:
    """One of them, or one more problem."""
    family = like.family.model_type
    kind = kinds.get(family, NEW if parent is None else None)
    if kind is None:
        what = f"No class of transformers holds this {family} as the {name} of a pair."
        problems.append(RekindleError(what, where=like.folder.path, hint=f"one of {', '.join((*kinds, *AS_GEMMA))}"))
        return None
    try:
        return Half(name, tables[kind], parent, like, like.layers(layers))
    except RekindleError as error:
        error.what = error.what.replace("--layers", f"--{name}-layers")
        problems.append(error)
        return None
