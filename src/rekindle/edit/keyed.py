"""The same expressions over the tensors of a source that has a name: how several checkpoints come into one plan.

A checkpoint is opened by itself, and the key of its tensors is empty. Where it becomes one of several, every stored
tensor in it, and every measurement, gets the key that it has there.
"""

from __future__ import annotations

from typing import Any

from rekindle.edit.expressions import Expr, Leaf, fields_of
from rekindle.edit.measure import Found, Measurement
from rekindle.errors import RekindleError


def joint(key: str, inner: str) -> str:
    """The key that source `inner` of a checkpoint has where the checkpoint itself is source `key`."""
    return f"{key}/{inner}" if inner else key


class Keyed:
    """Puts expressions under a key; what they share they go on sharing."""

    def __init__(self, key: str):
        if ":" in key:
            what = f"{key!r} is no name of a source: there is a colon in it."
            raise RekindleError(what, hint="letters, digits, - and _")
        self._key = key
        self._made: dict[int, tuple[Any, Any]] = {}  # by id: the original, which keeps its id, and what it becomes

    def __call__(self, x: Any) -> Any:
        """Of an expression, a measurement, one of its arrays, or several of anything; all else is as it was."""
        if isinstance(x, dict):
            return {key: self(item) for key, item in x.items()}
        if isinstance(x, (tuple, list)):
            return getattr(type(x), "_make", type(x))(self(item) for item in x)
        if isinstance(x, Found):
            return Found(self(x.measurement), x.key, x.by)
        if not isinstance(x, (Expr, Measurement)):
            return x
        if id(x) not in self._made:
            self._made[id(x)] = x, self._under(x)
        return self._made[id(x)][1]

    def _under(self, x: Expr | Measurement) -> Any:
        if isinstance(x, Leaf):
            return Leaf(x.name, x.stored, joint(self._key, x.source))
        made: Any = object.__new__(type(x))
        for name in fields_of(type(x)):
            setattr(made, name, self(getattr(x, name)))
        if isinstance(x, Measurement):
            made.name, made.source = f"{self._key}:{x.name}", joint(self._key, x.source)
        return made
