"""Sizes of a config, each on its own and with the others: what makes no model is refused when it is read."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from rekindle.anatomy.settings import Settings
from rekindle.anatomy.spelling import Reading
from rekindle.errors import RekindleError, together

MAY_BE_ZERO = {
    "intermediate_size", "token_types", "shared_size", "num_experts", "top_k", "kv_rank", "q_rank", "value_dim",
    "expert_size",
}  # fmt: skip
NEEDED = {"num_experts", "top_k", "expert_size", "num_groups", "top_k_groups", "value_dim"}
AT_MOST = {"num_layers": 100_000, "num_experts": 1_000_000}  # longer tables than any model's would only take for ever


def check_each(family: Reading, given: Mapping[str, Any], config: Mapping[str, Any]) -> None:
    """Refuse sizes that no model has, and values of which only one is known."""
    for name, value in given.items():
        key = family.keys.get(name, name)
        if value is None and name in NEEDED:
            raise RekindleError(f"{key} is null, but the shapes of tensors follow from it.", where="config.json")
        fixed = name not in family.keys
        if type(value) is int and not (0 if fixed or name in MAY_BE_ZERO else 1) <= value <= AT_MOST.get(name, 2**40):
            wanted = f"up to {AT_MOST[name]}" if name in AT_MOST and value > 0 else "not a positive whole number"
            raise RekindleError(f"{key} is {value!r}, {wanted}.", where="config.json")
    for key, known in (family.only or {}).items():
        found = family.value(config, key)
        if found is not None and found != known:
            raise RekindleError(
                f"{key} is {found!r}: of {family.name} only models with {known!r} are known.",
                where="config.json",
            )


def check_together(family: Reading, s: Settings) -> None:
    """Sizes that must fit one another, in every family or in transformers' class of this one."""
    problems = []
    if s.head_dim < 1:
        problems.append(f"A hidden size of {s.hidden_size} leaves nothing to each of {s.num_heads} heads")
    if s.sparse_layers and s.expert_size < 1:
        problems.append("There are layers of experts, but no expert has any units")
    if s.num_heads % s.num_kv_heads and not s.latent_attention:
        problems.append(f"{s.num_heads} heads cannot share {s.num_kv_heads} key-value heads evenly")
    if family.whole_heads and s.hidden_size % s.num_heads:
        problems.append(f"A hidden size of {s.hidden_size} is no multiple of {s.num_heads} heads")
    if s.rotary_dim % 2 and s.rotary_dim == s.head_dim:
        problems.append(f"RoPE turns pairs, but a head has {s.head_dim} dims")
    if s.sparse_layers and not ("routing" in family.keys) <= s.top_k <= s.num_experts:
        problems.append(f"A token cannot be sent to {s.top_k} of {s.num_experts} experts")
    if s.num_experts % s.num_groups or s.top_k_groups > s.num_groups:
        problems.append(f"{s.num_experts} experts do not stand in {s.num_groups} groups, {s.top_k_groups} chosen")
    if problems:
        raise together([RekindleError(f"{problem}.", where="config.json") for problem in problems])
