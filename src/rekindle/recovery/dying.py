"""Failures that are asked for: a worker kills itself at a named moment of a step."""

from __future__ import annotations

import os
import signal
from typing import Any, Literal, get_args

Moment = Literal["begin", "forward", "backward", "ready", "commit", "committed"]
MOMENTS = get_args(Moment)
LATE = ("commit", "committed")  # of the second phase of a step


class Dying:
    """Inside `with` this process dies at `moment`, if that is one of the step's, of a module's passes or of `at`."""

    def __init__(self, moment: str | None, stage: Any = None):
        self.moment, self._stage = moment, stage
        self._hooks: list[Any] = []

    def __enter__(self) -> Dying:
        self.at("begin")
        if self.moment == "forward":
            self._hooks.append(self._stage.register_forward_hook(lambda *_: self.at("forward")))
        if self.moment == "backward":
            self._hooks.append(next(self._stage.parameters()).register_hook(lambda grad: self.at("backward")))
        return self

    def __exit__(self, *_: object) -> None:
        for hook in self._hooks:
            hook.remove()

    def at(self, moment: Moment) -> None:
        if self.moment == moment:
            os.kill(os.getpid(), signal.SIGKILL)
