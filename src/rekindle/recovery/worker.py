"""A worker: a process that is a stage of the pipeline, or a spare that may become one. It does what it is told.

Each command of the supervisor has one answer: `done`, or `broken` where the group was, since a member of it is dead;
then it is told which group to form next. A worker ends when its supervisor does, whatever it is waiting for.
"""

from __future__ import annotations

import os
import queue
import sys
import threading
import time
import traceback
from contextlib import suppress
from typing import Any

import torch

from rekindle.errors import first_line
from rekindle.recovery.door import interface_of, versions
from rekindle.recovery.group import Group
from rekindle.recovery.recovering import Recovering
from rekindle.recovery.seat import Answer
from rekindle.recovery.wire import Gone, Link, Message, connect
from rekindle.train.device import reproducible

STUCK = 1.0  # seconds that a command which was released may do nothing at all
UNCHANGED = ("step", "evaluate", "weights", "sound")  # commands that change no weights
TRIES, PAUSE = 20, 0.25  # at a door where too many stand, and the seconds between them


class Worker:
    def __init__(self, link: Link, group: Group, device: torch.device, beat: float):
        self.link, self.group, self.device, self.beat = link, group, device, beat
        self._told: queue.Queue[Message] = queue.Queue()
        self._seat: Recovering | None = None
        self._commands = 0  # begun and ended
        self._doing = ""
        self._still: tuple[int, float, float] = 0, 0.0, 0.0  # commands, the main thread's seconds of work, since when

    def run(self) -> None:
        threading.Thread(target=self._listen, daemon=True).start()
        threading.Thread(target=self._beat, daemon=True).start()
        with reproducible(self.device):
            while True:
                message = self._told.get()
                self._commands += 1
                self._doing = message.kind
                self._answer(message)
                self._commands += 1

    def _listen(self) -> None:
        while True:
            try:
                message = self.link.receive()
            except Gone:
                os._exit(0)
            if message.kind == "release":
                self.group.release()
                self._end_if_stuck(time.monotonic())
            else:
                self._told.put(message)

    def _end_if_stuck(self, now: float) -> None:
        """gloo (torch 2.13) may forget one who waits for a send when its connection closes: nothing wakes him.

        Another process gets all that this one knows, where it is not in the midst of changing it.
        """
        main = threading.main_thread().ident
        if main is None or not hasattr(time, "pthread_getcpuclockid"):  # macOS
            return
        commands, worked = self._commands, time.clock_gettime(time.pthread_getcpuclockid(main))
        if commands % 2 == 0 or (commands, worked) != self._still[:2]:
            self._still = commands, worked, now
        elif now - self._still[2] > STUCK:
            if self._seat and self._doing in UNCHANGED:
                with suppress(Gone):
                    self.link.send("last", self._seat.left())
            os._exit(1)

    def _beat(self) -> None:
        while True:
            time.sleep(self.beat)
            try:
                self.link.send("beat")
            except Gone:
                return

    def _answer(self, message: Message) -> None:
        if message.kind == "rehearse":  # which nobody waits for
            with suppress(Exception):
                Recovering(message.header, {}, self.device).rehearse()
            return
        try:
            told, tensors = self._done(message)
            kind = "done"
        except Exception as error:
            root: BaseException = error
            while root.__cause__ is not None:
                root = root.__cause__
            kind, tensors = "broken", {}
            told: dict[str, Any] = {"why": f"{type(root).__name__}: {first_line(root)}"}
            traceback.clear_frames(error.__traceback__)  # which hold the group
            error.__traceback__ = None
        try:
            self.link.send(kind, tensors, **told)
        except Gone:
            os._exit(0)

    def _done(self, message: Message) -> Answer:
        header = message.header
        if message.kind == "become":
            if self._seat:
                self._seat.leave()
            self._seat = Recovering(header, message.tensors, self.device)
            return {}, {}
        seat = self._seat
        assert seat is not None, message.kind
        if message.kind == "form":
            seat.leave()
            self.group.form(header["generation"], seat.place, _backend(self.device))
            seat.enter(self.group)
            return {}, {}
        return getattr(seat, message.kind)(header, message.tensors)


def _backend(device: torch.device) -> str:
    return "nccl" if device.type == "cuda" else "gloo"


def _arrive(address: tuple[str, int], token: bytes) -> Link:
    """Raises Gone where the supervisor has."""
    for _ in range(TRIES - 1):
        with suppress(Gone):
            return connect(address, token)
        time.sleep(PAUSE)
    return connect(address, token)


def device_of(number: int) -> torch.device:
    """Of the process of this number among its machine's: each has a GPU of its own, where there are as many."""
    gpus = torch.cuda.device_count()
    return torch.device("cuda", number % gpus) if gpus else torch.device("cpu")


def _stay_there(link: Link) -> None:
    """What stages say to one another goes over the network that this connection to the supervisor goes over."""
    if interface := interface_of(link.sock.getsockname()[0]):
        os.environ |= {"GLOO_SOCKET_IFNAME": interface, "NCCL_SOCKET_IFNAME": f"={interface}"}


def main(*, host: str, port: int, token: str, name: str, number: int, threads: int) -> None:
    """A worker of the supervisor at host:port, called `name`; `number`: of its place among its machine's processes."""
    torch.set_num_threads(threads)
    device = device_of(number)
    if device.type == "cuda":
        torch.cuda.set_device(device)
    try:
        link = _arrive((host, port), bytes.fromhex(token))
        link.send("hello", pid=os.getpid(), name=name, role="worker", versions=versions())
        welcome = link.receive()
    except Gone:
        sys.exit(1)
    if welcome.kind != "welcome":
        sys.exit(1)
    _stay_there(link)
    group = Group((link.sock.getpeername()[0], welcome.header["store"]))
    Worker(link, group, device, welcome.header["beat"]).run()
