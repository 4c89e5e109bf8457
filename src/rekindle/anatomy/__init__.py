"""What each tensor is: roles, and one table per family.

family_of(config)          the table for a config.json
runtime_names(config)      transformers' parameter names -> names on disk
serving_spelling(config)   config.json as transformers v4 and the serving engines read it
packs(table, settings)     the tensors on disk that hold several roles, or one of them transposed
stacks(family, settings)   those in which transformers v5 keeps a layer's experts in memory
on_disk(table, settings)   all tensors on disk, with their shapes
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from typing import Any

from rekindle.anatomy.families import FAMILIES
from rekindle.anatomy.family import Family
from rekindle.anatomy.nameless import Adapter, Nameless, adapter, nameless
from rekindle.anatomy.packing import Packed, on_disk, packs, stacks
from rekindle.anatomy.pairs import PAIR, PAIRS, READERS, WRITERS
from rekindle.anatomy.settings import Role, Settings
from rekindle.anatomy.t5gemma import GEMMAS
from rekindle.anatomy.tensor import OPAQUE, Placed, Tensor, opaque_name
from rekindle.errors import RekindleError

__all__ = [
    "FAMILIES",
    "GEMMAS",
    "OPAQUE",
    "PAIR",
    "PAIRS",
    "READERS",
    "WRITERS",
    "Adapter",
    "Family",
    "Nameless",
    "Packed",
    "Placed",
    "Role",
    "Settings",
    "Tensor",
    "UnknownFamily",
    "adapter",
    "family_named",
    "family_of",
    "nameless",
    "on_disk",
    "opaque_name",
    "packs",
    "runtime_names",
    "serving_spelling",
    "stacks",
]


BY_NAMES = "merge, rewrite and pack take any"


class UnknownFamily(RekindleError):
    """A config that no table fits."""


def family_named(name: str) -> Family:
    if name in FAMILIES:
        return FAMILIES[name]
    raise UnknownFamily(
        f"The architecture {name!r} is not known; known are: {', '.join(FAMILIES)}.",
        hint="docs/families.md explains how to add one: a table of data, no code",
    )


def family_of(config: Mapping[str, Any]) -> Family:
    """The family of a config.json; raises RekindleError for an unknown one or quantised weights."""
    if config.get("quantization_config"):
        method = config["quantization_config"].get("quant_method", "unknown")
        raise RekindleError(
            f"These weights are quantised ({method}): they are codes, and no method can calculate with them.",
            where="config.json: quantization_config",
            hint="the checkpoint this one was quantised from",
        )
    name = config.get("model_type")
    if not isinstance(name, str):
        kind = RekindleError if config.get("architectures") else UnknownFamily  # transformers could not read it either
        raise kind("The config has no model_type.", where="config.json")
    if name == "mistral" and "layer_types" in config:  # so its AutoConfig has it (5.23)
        raise RekindleError(
            "A mistral that lists layer_types is a ministral to transformers, and that architecture is not known.",
            where="config.json: layer_types",
            hint="without that line it is a mistral, whose layers all have the window",
        )
    family = _pair_of(config) if name == PAIR else family_named(name)
    refuse_class(family, config)
    return family


def _pair_of(config: Mapping[str, Any]) -> Family:
    """The table of an encoder and a decoder that are models of their own."""
    said = [config.get(name) for name in ("encoder", "decoder")]
    encoder, decoder = (own.get("model_type") if isinstance(own, Mapping) else None for own in said)
    if pair := PAIRS.get((str(encoder), str(decoder))):
        return pair
    known = f"encoders {', '.join(READERS)}, decoders {', '.join(WRITERS)}"
    raise UnknownFamily(f"An encoder {encoder!r} with a decoder {decoder!r} is not known; known are {known}.")


def refuse_class(family: Family, config: Mapping[str, Any]) -> None:
    """Raise UnknownFamily for a class beside those of several towers, or of images: some have other tensors, all other
    outputs.
    """
    own = (*family.classes.values(), *family.renamed)
    for key, value in family.beyond.items():
        if config.get(key) == value and type(config[key]) is type(value):
            what = f"A {family.model_type} with {key} {json.dumps(value)} is not known."
            raise UnknownFamily(what, where=f"config.json: {key}", hint=BY_NAMES)
    named = config.get("architectures")
    if (family.towers or family.reads_images) and isinstance(named, list) and named and not str(named[0]).endswith(own):
        what = f"Of {family.model_type} the class {named[0]!r} is not known; known is {' or '.join(own)}."
        raise UnknownFamily(what, where="config.json: architectures", hint=BY_NAMES)


def runtime_names(
    config: Mapping[str, Any], parameters: Iterable[str] = ()
) -> dict[str, str | tuple[tuple[str, ...], ...]]:
    """transformers' parameter name -> its name on disk, or for stacked experts, expert by expert, the names of each.

    `parameters`: those that the model has, some of which no row of the table may name.
    """
    family = family_of(config)
    settings = family.settings(config)
    disk = {role: name for role, (name, _, _) in family.table(settings)}
    names: dict[str, str | tuple[tuple[str, ...], ...]] = {
        name: disk[role]
        for role, (name, _, row) in family.table(settings, fused=True)
        if not (row.buffer or row.stacked)
    }
    for stack in stacks(family, settings):
        held = [disk[role] for role in stack.roles]
        each = len(held) // settings.num_experts
        names[stack.name] = tuple(tuple(held[at : at + each]) for at in range(0, len(held), each))
    others = {name: family.name_on_disk(name) for name in parameters if name not in names}
    return names | {name: there for name, there in others.items() if family.opaque_role(there) is not None}


def serving_spelling(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json rewritten in the spelling that transformers v4, v5 and the serving engines all read."""
    family = family_of(config)
    return family.config(family.settings(config), config, family)
