"""SIGTERM and SIGHUP, from a scheduler or a terminal that closes, end a verb as Ctrl-C does: in order."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from rekindle.errors import Ended


@contextmanager
def heard() -> Iterator[None]:
    """Raise Ended where SIGTERM or SIGHUP arrives, unless the caller ignores it, as nohup does.

    Once: what comes after the first, while all is cleared away, changes nothing.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    mine = os.getpid()

    def end(number: int, frame: FrameType | None) -> None:
        if os.getpid() == mine:
            for other in numbers:
                signal.signal(other, signal.SIG_IGN)
            raise Ended(number)
        signal.signal(number, signal.SIG_DFL)  # a child that was forked ends as it would without us
        os.kill(os.getpid(), number)

    numbers = [n for n in (signal.SIGTERM, signal.SIGHUP) if signal.getsignal(n) == signal.SIG_DFL]
    for number in numbers:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in numbers:
            if signal.getsignal(number) is end:
                signal.signal(number, signal.SIG_DFL)
