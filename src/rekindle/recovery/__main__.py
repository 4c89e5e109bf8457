"""Where workers come from: a process that has imported what they need, and makes one by each line that it is told.

It is started with HOST, PORT, STORE and THREADS, and reads first the token and then, for each worker that is wanted, an
empty line; it writes the worker's number. So a worker is there in a twentieth of a second, not in five. When its
standard input ends, its supervisor has: it ends its workers, and itself.
"""

from __future__ import annotations

import os
import signal
import sys

from transformers import AutoConfig, AutoModelForCausalLM

from rekindle.recovery.worker import main

LOADED = (AutoConfig, AutoModelForCausalLM)  # modules that transformers imports when they are first asked for


def serve(host: str, port: int, store: int, threads: int) -> None:
    token, children = bytes.fromhex(sys.stdin.readline()), set[int]()
    while sys.stdin.readline():
        child = os.fork()
        if not child:
            os.close(0)
            os.close(1)
            main(host, port, store, token, threads)
            os._exit(0)
        children = {child, *_living(children)}
        sys.stdout.write(f"{child}\n")
        sys.stdout.flush()
    for child in _living(children):
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)


def _living(children: set[int]) -> set[int]:
    """The dead among them are taken leave of."""
    return {child for child in children if os.waitpid(child, os.WNOHANG) == (0, 0)}


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)  # the supervisor's to hear
    serve(sys.argv[1], *map(int, sys.argv[2:5]))
