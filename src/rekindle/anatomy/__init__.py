"""What each tensor is: roles, and one table per family.

family_of(config)          the table for a config.json
runtime_names(config)      transformers' parameter names -> names on disk
serving_spelling(config)   config.json as transformers v4 and the serving engines read it
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rekindle.anatomy.families import FAMILIES
from rekindle.anatomy.family import Family, Tensor
from rekindle.anatomy.settings import Role, Settings
from rekindle.errors import RekindleError

__all__ = [
    "FAMILIES",
    "Family",
    "Role",
    "Settings",
    "Tensor",
    "family_named",
    "family_of",
    "fused_slots",
    "runtime_names",
    "serving_spelling",
]

# On load, transformers v5 stacks the experts of a layer into these two, gate rows above up rows.
FUSED = {
    "mlp.experts.gate_up_proj": ("expert.gate", "expert.up"),
    "mlp.experts.down_proj": ("expert.down",),
}


def family_named(name: str) -> Family:
    if name in FAMILIES:
        return FAMILIES[name]
    raise RekindleError(
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
        raise RekindleError("The config has no model_type.", where="config.json")
    return family_named(name)


def fused_slots(family: Family, settings: Settings) -> dict[str, tuple[tuple[Role, ...], ...]]:
    """{fused name: for each expert the roles stacked on axis 0} of every layer with experts."""
    return {
        f"model.layers.{layer}.{name}": tuple(
            tuple(Role(part, layer, expert) for part in parts) for expert in range(settings.num_experts)
        )
        for layer in settings.sparse_layers
        for name, parts in FUSED.items()
    }


def runtime_names(config: Mapping[str, Any]) -> dict[str, str | tuple[tuple[str, ...], ...]]:
    """transformers' parameter name -> its name on disk, or for a fused one, expert by expert, the names stacked."""
    family = family_of(config)
    settings = family.settings(config)
    disk = {role: name for role, (name, _, _) in family.table(settings)}
    names: dict[str, str | tuple[tuple[str, ...], ...]] = {
        runtime_name(family, name): name for role, name in disk.items() if role.expert < 0
    }
    for name, experts in fused_slots(family, settings).items():
        names[name] = tuple(tuple(disk[role] for role in roles) for roles in experts)
    return names


def runtime_name(family: Family, name: str) -> str:
    """A disk name as transformers v5 has it in memory."""
    for disk, memory in (family.runtime or {}).items():
        name = name.replace(disk, memory)
    return name


def serving_spelling(config: Mapping[str, Any]) -> dict[str, Any]:
    """config.json rewritten in the spelling that transformers v4, v5 and the serving engines all read."""
    family = family_of(config)
    return family.config(family.settings(config), config, family)
