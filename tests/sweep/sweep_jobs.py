"""Steps that fail, or kill their worker, the first time."""

from __future__ import annotations

import os
import signal
import time
from pathlib import Path

from rekindle import progress


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


def wait(source: Path, out: Path) -> None:
    half = out.parent / f"{out.name}-pid.part"
    half.write_text(str(os.getpid()))
    half.replace(out.parent / f"{out.name}-pid")
    time.sleep(120)
