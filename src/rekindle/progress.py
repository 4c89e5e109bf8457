"""How far long work has come, on stderr: a bar where somebody watches, a line every so often where nobody does."""

from __future__ import annotations

import sys
import time
from typing import Literal

Mode = Literal["auto", "bar", "lines", "off"]
FIRST, EVERY = 10.0, 60.0  # seconds to the first line, and between two

_mode: Mode | None = None


def use(mode: Mode | None) -> None:
    """auto: a bar on a terminal, else lines. None, where nobody chose: a bar on a terminal, else nothing."""
    global _mode
    _mode = mode


class Progress:
    """Of `total` units of work, `done` of them behind us; `wanted` is False in a process that is to be silent."""

    def __init__(self, what: str, total: int | None, unit: str, *, done: int = 0, wanted: bool = True):
        from tqdm import tqdm

        shown = _mode or "auto"
        if shown == "auto":
            shown = "bar" if sys.stderr and sys.stderr.isatty() else "lines" if _mode else "off"
        self.what, self.total, self.unit, self.done = what, total, unit, done
        self._lines = wanted and shown == "lines"
        self._start, self._began, self._due = done, time.monotonic(), time.monotonic() + FIRST
        how = {"desc": what, "total": total, "initial": done, "unit": unit, "unit_scale": True, "leave": False}
        self._bar = tqdm(**how, disable=not (wanted and shown == "bar"))

    def update(self, amount: int, told: str = "") -> None:
        """So many units more; `told` is shown beside them."""
        self.done += amount
        if told:
            self._bar.set_postfix_str(told, refresh=False)
        self._bar.update(amount)
        if self._lines and (now := time.monotonic()) >= self._due:
            self._due = now + EVERY
            sys.stderr.write(self._line(told, now - self._began) + "\n")
            sys.stderr.flush()

    def _line(self, told: str, seconds: float) -> str:
        """train: 1.2M of 50.0M tok (2 %), loss 3.41, 12.4k tok/s, 1:02:11 left"""
        size, interval = type(self._bar).format_sizeof, type(self._bar).format_interval
        rate = (self.done - self._start) / seconds
        parts = [f"{size(self.done) if self.done >= 1000 else f'{self.done:g}'} {self.unit}"]
        if self.total:
            percent = 100 * self.done // self.total
            parts = [f"{size(self.done)} of {size(self.total)} {self.unit} ({percent} %)"]
        parts += [told] if told else []
        parts += [f"{size(rate)} {self.unit}/s"]
        if self.total and rate:
            parts += [f"{interval((self.total - self.done) / rate)} left"]
        return f"{self.what}: {', '.join(parts)}"

    def close(self) -> None:
        self._bar.close()

    def __enter__(self) -> Progress:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
