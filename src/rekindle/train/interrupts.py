"""Ctrl-C, SIGTERM (a scheduler wants its node back) and SIGHUP (a terminal closes): a wish to stop after a step."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any, ClassVar

from rekindle.errors import Ended


class Interrupts:
    """Inside `with`, `number` is that of the first signal, None before; a second one raises Ended at once.

    Python delivers signals to the main thread only; elsewhere this changes nothing.
    """

    number: int | None = None
    _open: ClassVar[list[Interrupts]] = []

    @classmethod
    def asked(cls) -> int | None:
        """The signal that a run of this process was asked to stop by."""
        return next((one.number for one in cls._open if one.number is not None), None)

    def __enter__(self) -> Interrupts:
        self._open.append(self)
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if (
                    number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
                ):  # which is what nohup asks for
                    self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        self._open.remove(self)
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.number is not None:
            raise Ended(number)
        self.number = number
