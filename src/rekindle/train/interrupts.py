"""Ctrl-C, SIGTERM (a scheduler wants its node back) and SIGHUP (a terminal closes): a wish to stop after a step."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any


class Interrupts:
    """Inside `with`, the first signal sets `wanted`; a second one raises KeyboardInterrupt at once.

    Python delivers signals to the main thread only; elsewhere this changes nothing.
    """

    wanted = False

    def __enter__(self) -> Interrupts:
        self._before: dict[int, Any] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
                if (
                    number != signal.SIGHUP or signal.getsignal(number) != signal.SIG_IGN
                ):  # which is what nohup asks for
                    self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True
