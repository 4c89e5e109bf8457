"""Where workers come from: a process that has imported what they need, and makes one for each line that it is told.

So a worker is there in a twentieth of a second, not in five. A line is JSON, the arguments of `worker.main`; the answer
is the worker's number. When its standard input ends, its supervisor has: it ends its workers, and itself.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import suppress
from functools import cache
from typing import Any

from rekindle.errors import RekindleError

INTERFACE = "lo0" if sys.platform == "darwin" else "lo"


class Nursery:
    """The supervisor's side."""

    def __init__(self) -> None:
        words = [sys.executable, "-P", "-m", "rekindle.recovery"]  # nothing of the current folder is imported
        environment = {**os.environ, "GLOO_SOCKET_IFNAME": INTERFACE}
        pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
        self._process: subprocess.Popen[str] = subprocess.Popen(words, env=environment, **pipes)
        atexit.register(self.close)

    def worker(self, **told: Any) -> int:
        """A new one's number; raises RekindleError where no more are made."""
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.write(f"{json.dumps(told)}\n")
            self._process.stdin.flush()
        if answer := self._process.stdout.readline():
            return int(answer)
        nursery.cache_clear()
        raise RekindleError("The process that makes workers died.", hint="--resume goes on from the last saved state")

    def close(self) -> None:
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        with suppress(BrokenPipeError):
            self._process.stdin.close()
        self._process.wait()
        self._process.stdout.close()


@cache
def nursery() -> Nursery:
    """One for all runs of this process."""
    return Nursery()


def serve() -> None:
    """The process itself."""
    from rekindle.recovery.worker import main

    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the supervisor's to hear
    children: set[int] = set()
    for line in _lines(children):
        if not (child := os.fork()):
            signal.signal(signal.SIGTERM, signal.SIG_DFL)
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, 0)
            os.dup2(nothing, 1)  # else a socket would get these numbers, and whatever is printed
            main(**json.loads(line))
            os._exit(0)
        children.add(child)
        os.write(1, f"{child}\n".encode())
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _lines(children: set[int]) -> Iterator[bytes]:
    """Of the standard input, until it ends; between them the dead are taken leave of."""
    told = b""
    while True:
        if select.select([0], [], [], 0.5)[0]:
            if not (more := os.read(0, 1 << 16)):
                return
            *lines, told = (told + more).split(b"\n")
            yield from lines
        children -= {child for child in children if os.waitpid(child, os.WNOHANG) != (0, 0)}
