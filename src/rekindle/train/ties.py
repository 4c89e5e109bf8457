"""Parameters that are one and are written twice: the alias map of a config, see methods.warm_start.

Plain transformers reads two copies, and so trains two parameters. Here they are one again, and written as two.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from typing import Any

import torch

from rekindle.anatomy import runtime_names
from rekindle.edit import TIED
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
