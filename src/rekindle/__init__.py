"""Recycle trained checkpoints. Every verb of the command line is a function here; see `rekindle.api`.

import rekindle

rekindle.upcycle(rekindle.open("dense"), experts=8, top_k=2).save("moe")
rekindle.verify("moe", against="dense")
"""

from __future__ import annotations

import sys
from types import ModuleType
from typing import TYPE_CHECKING, Any

from rekindle.errors import RekindleError
from rekindle.version import __version__

if TYPE_CHECKING:
    from rekindle.api import (
        Archive,
        Combination,
        Composition,
        Model,
        apply,
        average,
        combine,
        compose,
        evaluate,
        fit,
        gqa,
        grow_depth,
        grow_experts,
        init,
        inspect,
        join,
        laws,
        load,
        merge,
        music_data,
        music_evaluate,
        music_train,
        open,
        pack,
        plan,
        repair,
        report,
        rewrite,
        run,
        simulate,
        sound,
        train,
        unpack,
        upcycle,
        utility,
        verify,
        warm_start,
    )

__all__ = [
    "Archive",
    "Combination",
    "Composition",
    "Model",
    "RekindleError",
    "__version__",
    "apply",
    "average",
    "combine",
    "compose",
    "evaluate",
    "fit",
    "gqa",
    "grow_depth",
    "grow_experts",
    "init",
    "inspect",
    "join",
    "laws",
    "load",
    "merge",
    "music_data",
    "music_evaluate",
    "music_train",
    "open",
    "pack",
    "plan",
    "repair",
    "report",
    "rewrite",
    "run",
    "simulate",
    "sound",
    "train",
    "unpack",
    "upcycle",
    "utility",
    "verify",
    "warm_start",
]


def __getattr__(name: str) -> Any:
    """The verbs, loaded when first used: `import rekindle` alone costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'rekindle' has no attribute {name!r}")
    from rekindle import api

    verb = getattr(api, name)
    if room := sys.modules.get(f"rekindle.{name}"):  # its modules are found through the verb of its name
        vars(room).update(vars(verb))
        verb.__dict__ = vars(room)
    return verb


def __dir__() -> list[str]:
    return sorted(__all__)


class _Face(ModuleType):
    """Where a room has the name of a verb (train, laws, report), importing it must not take the verb away."""

    def __setattr__(self, name: str, value: Any) -> None:
        if not (name in __all__ and isinstance(value, ModuleType)):
            super().__setattr__(name, value)


sys.modules[__name__].__class__ = _Face
