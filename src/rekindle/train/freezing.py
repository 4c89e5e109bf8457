"""Parameters that stay as they are for some steps, or for all of a run: by what they are.

encoder             a tower            decoder.cross       a tower's parts of that kind
attn, embed, ffn    parts of any       encoder:1000        for so many steps, and from then on trained
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from rekindle.anatomy import Role, family_of, runtime_names
from rekindle.config import Count, parse
from rekindle.errors import RekindleError, nearest


class Frozen(NamedTuple):
    """Parameters, and how many steps they are left alone."""

    parameters: list[torch.nn.Parameter]
    steps: float


def frozen_at(frozen: Sequence[Frozen], step: int) -> Iterator[torch.nn.Parameter]:
    return (p for group in frozen if step < group.steps for p in group.parameters)


def frozen_of(model: Any, wanted: Sequence[str]) -> list[Frozen]:
    """Of each word of `--freeze`; raises RekindleError where it names nothing of this model, or all of it."""
    if not wanted:
        return []
    roles, found = roles_of(model), []
    for word in wanted:
        what, steps = _parsed(word)
        chosen = [p for name, p in model.named_parameters() if name in roles and what in _names(roles[name])]
        if not chosen:
            known = sorted({name for role in roles.values() for name in _names(role)})
            hint = nearest(what, known) or ", ".join(name for name in known if "." not in name)
            raise RekindleError(f"--freeze {word} names nothing of this model.", hint=hint)
        found.append(Frozen(chosen, steps))
    always = {id(p) for group in found if group.steps == math.inf for p in group.parameters}
    if all(id(p) in always for p in model.parameters()):
        raise RekindleError(f"--freeze {','.join(wanted)} leaves nothing to train.", hint="fewer of these")
    return found


def roles_of(model: Any) -> dict[str, Role]:
    """What each parameter is, by transformers' name; of a stack of experts what its parts are."""
    config = model.config.to_dict()
    family = family_of(config)
    by_disk = {placed[0]: role for role, placed in family.table(family.settings(config))}
    names = [name for name, _ in model.named_parameters()]
    held = runtime_names(config, names)
    disks = {name: held[name] for name in names if name in held}
    first = {name: disk if isinstance(disk, str) else disk[0][0] for name, disk in disks.items()}
    return {name: by_disk[disk] for name, disk in first.items() if disk in by_disk}


def _names(role: Role) -> set[str]:
    """encoder, attn and encoder.attn of a query matrix of an encoder; and attn.q with them."""
    kind = role.part.split(".")[0]
    parts = {kind, role.part}
    return parts | ({role.tower, *(f"{role.tower}.{part}" for part in parts)} if role.tower else set())


def _parsed(word: str) -> tuple[str, float]:
    what, colon, steps = word.partition(":")
    try:
        return what, parse(steps, Count) if colon else math.inf
    except ValueError as error:
        raise RekindleError(f"--freeze {word}: {error}.", hint="--freeze encoder:1000, of steps") from None
