"""Ctrl-C and SIGTERM (a scheduler that wants its node back) as a wish to stop at the end of a step."""

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
            for number in (signal.SIGINT, signal.SIGTERM):
                self._before[number] = signal.signal(number, self._heard)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def _heard(self, number: int, frame: FrameType | None) -> None:
        if self.wanted:
            raise KeyboardInterrupt
        self.wanted = True
