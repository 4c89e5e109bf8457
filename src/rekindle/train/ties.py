"""Parameters that are one and are written twice: the alias map of a config, see methods.warm_start; and key-value heads
that are one and are written for each of their queries, see methods.gqa.

Plain transformers reads copies, and so trains each. Here they are one again, and written as they were.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Mapping
from functools import partial
from typing import Any

import torch

from rekindle.anatomy import family_of, runtime_names
from rekindle.edit import REPEATED, TIED
from rekindle.errors import counted

log = logging.getLogger(__name__)


def tie(model: Any) -> None:
    """Make one parameter of each two that the config calls one, and that are equal."""
    apart = []
    parameters = dict(model.named_parameters(remove_duplicate=False))
    for name, of in ties_of(model).items():
        old, new = parameters[name], parameters[of]
        if old is new:
            continue
        if not torch.equal(old, new):
            apart.append(name)
            continue
        for module in model.modules():
            for key in [key for key, p in module.named_parameters(recurse=False) if p is old]:
                setattr(module, key, new)
    if apart:
        log.warning(
            "%s are said to be copies and are none: each is trained by itself", counted(len(apart), "parameter")
        )


def share_heads(model: Any) -> None:
    """Let repeated key-value heads have one gradient, the mean of theirs, where they are equal: so they stay equal."""
    said = getattr(model.config, REPEATED, None) or {}
    if not said:
        return
    config, apart = model.config.to_dict(), 0
    family = family_of(config)
    settings, parameters = family.settings(config), dict(model.named_parameters())
    here = {disk: name for name, disk in runtime_names(config, parameters).items() if isinstance(disk, str)}
    for role, (disk, _, _) in family.table(settings):
        if role.tower in said and re.fullmatch(r"(attn|cross)\.[kv](\.bias)?", role.part):
            own, parameter = settings.towers.get(role.tower, settings), parameters[here[disk]]
            shape = (int(said[role.tower]), -1, own.head_dim, *parameter.shape[1:])
            heads = parameter.view(shape)
            if torch.equal(heads, heads[:, :1].expand_as(heads)):
                parameter.register_hook(partial(_mean_over_copies, shape=shape))
            else:
                apart += 1
    if apart:
        log.warning("%s: key-value heads are said to be repeated and differ: each is trained by itself", apart)


def _mean_over_copies(x: torch.Tensor, shape: tuple[int, ...]) -> torch.Tensor:
    """Of heads [J, N, A, ...] that stand one below the other, N copies of each, those of their mean."""
    heads = x.view(shape)
    return heads.mean(1, keepdim=True).expand_as(heads).reshape_as(x)


def with_copies(model: Any, weights: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
    """Weights by the model's names, those of parameters that are one under all of them."""
    copies = {name: weights[of] for name, of in ties_of(model).items() if name not in weights and of in weights}
    return {**weights, **{name: x.clone() for name, x in copies.items()}}


def ties_of(model: Any) -> dict[str, str]:
    """The alias map by the model's names; empty of most."""
    said = getattr(model.config, TIED, None) or {}
    if not said:
        return {}
    names = {name for name, _ in model.named_parameters(remove_duplicate=False)}
    here = {disk: name for name, disk in runtime_names(model.config.to_dict(), names).items() if isinstance(disk, str)}
    return {here[name]: here[of] for name, of in said.items() if name in here and of in here}
