"""Recycle trained checkpoints. Every verb of the command line is a function here; see `rekindle.api`.

import rekindle

rekindle.upcycle(rekindle.open("dense"), experts=8, top_k=2).save("moe")
rekindle.verify("moe", against="dense")
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from rekindle.api import (
        Archive,
        Model,
        apply,
        evaluate,
        fit,
        gqa,
        grow_depth,
        grow_experts,
        init,
        inspect,
        join,
        laws,
        open,
        pack,
        plan,
        report,
        rewrite,
        run,
        train,
        unpack,
        upcycle,
        utility,
        verify,
    )

__all__ = [
    "Archive",
    "Model",
    "__version__",
    "apply",
    "evaluate",
    "fit",
    "gqa",
    "grow_depth",
    "grow_experts",
    "init",
    "inspect",
    "join",
    "laws",
    "open",
    "pack",
    "plan",
    "report",
    "rewrite",
    "run",
    "train",
    "unpack",
    "upcycle",
    "utility",
    "verify",
]


def __getattr__(name: str) -> Any:
    """The verbs, loaded when first used: `import rekindle` alone costs nothing."""
    if name not in __all__:
        raise AttributeError(f"module 'rekindle' has no attribute {name!r}")
    from rekindle import api

    return getattr(api, name)
