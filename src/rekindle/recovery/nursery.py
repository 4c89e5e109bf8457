"""Where workers come from: a process that has imported what they need, and makes one for each line that it is told.

So a worker is there in a twentieth of a second, not in five. A line is JSON, its number, the arguments of `worker.main`
and the type of the model; the answer is that number and the worker's. When its standard input ends, its supervisor has:
it ends its workers, and itself.
"""

from __future__ import annotations

import atexit
import json
import os
import select
import signal
import site
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

from rekindle.errors import RekindleError


class Nursery:
    """The supervisor's side. Any thread may ask for a worker."""

    def __init__(self) -> None:
        self._process: subprocess.Popen[str] | None = None
        self._lock = threading.Lock()
        self._told = 0  # lines
        atexit.register(self.close)

    def worker(self, **told: Any) -> int:
        """A new one's number; raises RekindleError where no more are made."""
        with self._lock:
            for _ in range(2):  # another process takes the place of one that was killed
                self._process = self._process or _process()
                if number := self._asked(self._process, told):
                    return number
                self._end()
        raise RekindleError("The process that makes workers died.", hint="--resume goes on from the last saved state")

    def _asked(self, process: subprocess.Popen[str], told: dict[str, Any]) -> int | None:
        """None where the process is dead."""
        assert process.stdin is not None
        assert process.stdout is not None
        self._told += 1
        with suppress(BrokenPipeError):
            process.stdin.write(f"{json.dumps({'line': self._told, 'told': told})}\n")
            process.stdin.flush()
        while answer := process.stdout.readline():
            line, number = map(int, answer.split())
            if line == self._told:  # not one that a signal kept from being read
                return number
        return None

    def _end(self) -> None:
        process, self._process = self._process, None
        if process:
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError):
                process.stdin.close()
            process.wait()
            process.stdout.close()

    def close(self) -> None:
        with self._lock, suppress(KeyboardInterrupt):  # it ends by itself, waited for or not
            self._end()


nursery = Nursery()  # one for all runs of this process


def _process() -> subprocess.Popen[str]:
    words = [sys.executable, "-P", "-m", "rekindle.recovery"]  # nothing of the current folder is imported
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    # What a terminal sends to all of its processes is the supervisor's to hear.
    return subprocess.Popen(words, env=_environment(), start_new_session=True, **pipes)


def _environment() -> dict[str, str]:
    """Of the process and its workers."""
    # Of a member that dies while a group forms the others' C++ would print pages; they tell the supervisor anyway.
    quiet = {"TORCH_CPP_LOG_LEVEL": "ERROR"}
    home = str(Path(__file__).absolute().parents[2])  # which may be in this process's sys.path alone
    path = [] if home in [*site.getsitepackages(), site.getusersitepackages()] else [home]
    path += filter(None, [os.environ.get("PYTHONPATH")])
    return {**quiet, **os.environ, **({"PYTHONPATH": os.pathsep.join(path)} if path else {})}


def serve() -> None:
    """The process itself."""
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the supervisor's to hear; its workers ignore them too
    from rekindle.recovery.worker import main

    children: set[int] = set()
    for line in _lines(children):
        asked = json.loads(line)
        _import(asked["told"].pop("model_type", ""))
        if not (child := os.fork()):
            nothing = os.open(os.devnull, os.O_RDWR)
            os.dup2(nothing, 0)
            os.dup2(nothing, 1)  # else a socket would get these numbers, and whatever is printed
            main(**asked["told"])
            os._exit(0)
        children.add(child)
        os.write(1, f"{asked['line']} {child}\n".encode())
    for child in children:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _import(model_type: str) -> None:
    """What transformers imports when a model of this type is first made: here it is done once for all workers."""
    from transformers import MODEL_FOR_CAUSAL_LM_MAPPING, AutoConfig

    with suppress(Exception):  # which the worker will tell of
        MODEL_FOR_CAUSAL_LM_MAPPING[type(AutoConfig.for_model(model_type))]


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
