"""Steps that fail, or kill their worker, the first time."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from rekindle import progress
from rekindle.train.interrupts import Interrupts


def make(source: Path, out: Path, text: str = "") -> None:
    out.mkdir()
    (out / "text").write_text(text + (source / "text").read_text() if (source / "text").exists() else text)


def shown(source: Path, out: Path) -> None:
    make(source, out, str(progress._mode))


def refuse(source: Path, out: Path) -> None:
    raise ValueError("this cell cannot be")


def die_once(source: Path, out: Path) -> None:
    mark = out.parent.parent / f"{out.name}-began"
    if not mark.exists():
        mark.write_text("")
        os.kill(os.getpid(), signal.SIGKILL)
    make(source, out, "lived")


def slow(source: Path, out: Path) -> None:
    time.sleep(0.3)
    make(source, out, "slow")


def marked(source: Path, out: Path) -> None:
    mark(out)
    make(source, out)


def run(source: Path, out: Path) -> None:
    """Stops after the first signal as a training does; the second one ends it."""
    with Interrupts() as asked:
        mark(out)
        while asked.number is None:
            time.sleep(0.1)
        time.sleep(120)


def wait(source: Path, out: Path) -> None:
    mark(out)
    time.sleep(120)


def mark(out: Path) -> None:
    half = out.parent / f"{out.name}-pid.part"
    half.write_text(str(os.getpid()))
    half.replace(out.parent / f"{out.name}-pid")
