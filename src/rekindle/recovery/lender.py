"""A machine that lends its processes to a run: it keeps so many workers alive until the supervisor says that it ends.

It reads no checkpoint and no data, and writes nothing: what workers are told comes over their own connections.
"""

from __future__ import annotations

import os
import queue
import threading
import time
from collections.abc import Iterator
from contextlib import ExitStack, closing, suppress

import torch

from rekindle.errors import CheckFailed, Ended, RekindleError
from rekindle.recovery.crew import Crew
from rekindle.recovery.door import versions
from rekindle.recovery.meeting import LATE, TOKEN, Meeting
from rekindle.recovery.wire import Gone, Link, Message, Stranger, connect
from rekindle.train.interrupts import Interrupts

AGAIN = 0.5  # seconds between two tries to come to a supervisor
PAUSE = 0.2  # seconds between two looks at who has died


def lend(meeting: Meeting) -> None:
    """Until the run has ended.

    Raises RekindleError where nobody supervises there, or somebody who has another token; CheckFailed where the
    supervisor is gone without a word, or no worker comes to life here; Ended on Ctrl-C or SIGTERM.
    """
    with closing(_connected(meeting)) as link, Interrupts() as asked:
        try:
            _serve(meeting, link, asked)
        except Gone:
            what = f"The supervisor at {_place(meeting)} is gone without a word."
            raise CheckFailed(what, hint="the same command with --resume on all machines") from None


def _serve(meeting: Meeting, link: Link, asked: Interrupts) -> None:
    """Raises Gone where the connection is lost."""
    crew, size = None, meeting.workers or 1
    with ExitStack() as ends:
        link.send("hello", pid=os.getpid(), name=meeting.name, role="lender", versions=versions())
        for message in _messages(link):
            if asked.number is not None and not meeting.launched:  # else the supervisor was asked too, and needs them
                break
            if message and message.kind == "end":
                break
            if message and message.kind == "refused":
                theirs = message.header["versions"]
                what = f"The supervisor at {_place(meeting)} has {theirs}, this machine {versions()}."
                raise RekindleError(what, hint="the same on all machines")
            if message and message.kind == "welcome":
                threads = max(1, torch.get_num_threads() // size)
                crew = Crew(meeting, threads=threads, model_type=message.header["model_type"])
                ends.callback(crew.close)
            elif message and crew:
                {"came": crew.came, "kill": crew.kill}[message.kind](message.header["name"])
            if crew:
                crew.keep(size)
                if failed := crew.failed():
                    raise CheckFailed(f"{failed}.")
    if asked.number is not None:
        raise Ended(asked.number, "No more workers are lent.")


def _messages(link: Link) -> Iterator[Message | None]:
    """None where none has come for a while; raises Gone."""
    told: queue.Queue[Message | None] = queue.Queue()

    def listen() -> None:
        with suppress(Gone):
            while True:
                told.put(link.receive())
        told.put(None)

    threading.Thread(target=listen, daemon=True).start()
    while True:
        try:
            message = told.get(timeout=PAUSE)
        except queue.Empty:
            yield None
            continue
        if message is None:
            raise Gone
        yield message


def _connected(meeting: Meeting) -> Link:
    """The supervisor may come later."""
    until = time.monotonic() + LATE
    while True:
        try:
            return connect(meeting.address, meeting.token)
        except Stranger:
            what = f"Who listens at {_place(meeting)} does not take this token."
            why = "it is another run's supervisor, or no supervisor at all"
            raise RekindleError(what, why=why, hint=f"the same {TOKEN} on all machines, or another port") from None
        except Gone:
            if time.monotonic() > until:
                what = f"Nobody supervises at {_place(meeting)}: no answer within {LATE:g} s."
                hint = "the same command on the machine that has this address, which others must reach"
                raise RekindleError(what, hint=hint) from None
        time.sleep(AGAIN)


def _place(meeting: Meeting) -> str:
    host, port = meeting.address
    return f"{host}:{port}"
