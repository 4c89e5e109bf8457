"""The supervisor's side: processes that are stages or spares, what they are told, and who of them is dead.

A worker is dead when its connection closes, which the system does at once where a process is killed; or when it gives
no sign of life for `patience` seconds: then it is killed, and whatever it still says is not heard.
"""

from __future__ import annotations

import json
import os
import queue
import secrets
import signal
import socket
import threading
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rekindle.errors import RekindleError, counted
from rekindle.recovery.nursery import nursery
from rekindle.recovery.wire import Gone, Link, Message, admitted

if TYPE_CHECKING:
    import torch

LOOPBACK = "127.0.0.1"
BEAT = 1.0  # seconds between a worker's signs of life, or fewer where patience is short
AGAIN = 0.5  # seconds between words to those who wait for the dead
GRACE = 2.0  # seconds between a worker's word that something broke and the news of a death
PAUSE = 0.75  # seconds between two looks for who is silent that nothing is made of
COMING = 120.0  # seconds that a new worker has to come up
STRANGERS = 32  # connections that have not shown yet who they are; more are closed at once
STILLBORN = 3  # new workers in a row that die before they say a word


class Lost(Exception):
    """Stages whose workers are dead."""

    def __init__(self, stages: Sequence[int], since: float | None = None):
        self.stages = sorted(stages)
        self.since = time.perf_counter() if since is None else since  # the first of these deaths
        super().__init__(self.stages)


@dataclass(eq=False)
class Member:
    """A worker: a stage, or a spare where `stage` is None."""

    link: Link
    pid: int
    stage: int | None = None
    dead: bool = False
    died: float = 0.0  # time.perf_counter()


@dataclass(frozen=True)
class Command:
    kind: str
    header: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Fleet:
    """Workers on this machine, and `spares` behind them; `register` is the file that lists them.

    `model_type`: transformers' name for what they will be stages of.
    """

    def __init__(self, spares: int, *, threads: int, patience: float, register: Path, model_type: str):
        from torch.distributed import TCPStore

        self.spares, self.threads, self.patience, self.model_type = spares, threads, patience, model_type
        self.members: list[Member] = []
        self._register, self._token = register, secrets.token_bytes(32)
        self._inbox: queue.Queue[tuple[Member, Message | None]] = queue.Queue()
        self._coming: set[int] = set()
        self._rehearsal: Command | None = None
        self._stillborn = 0
        self._closed = False
        self._looked = self._awake = time.monotonic()  # for who is silent; since when it has been done all the time
        meeting = socket.create_server((LOOPBACK, 0))
        self._store = TCPStore(
            LOOPBACK,
            meeting.getsockname()[1],
            is_master=True,
            wait_for_workers=False,
            master_listen_fd=meeting.detach(),
        )
        self._door = socket.create_server((LOOPBACK, 0))
        self._places = threading.BoundedSemaphore(STRANGERS)
        threading.Thread(target=self._admit, daemon=True).start()

    # -- who is there ------------------------------------------------------------------------------------------------

    def stage(self, number: int) -> Member:
        """Raises Lost where it has none."""
        for member in self.members:
            if member.stage == number and not member.dead:
                return member
        raise Lost([number])

    def present(self) -> list[int]:
        return sorted(member.stage for member in self.members if member.stage is not None and not member.dead)

    def told(self) -> str:
        """What a progress line says of it."""
        idle = sum(one.stage is None and not one.dead for one in self.members)
        return f"{idle} of {counted(self.spares, 'spare')}"

    def appoint(self, stages: Sequence[int]) -> list[Member]:
        """Spares become these stages; new ones are started behind them. Waits for those who are coming."""
        self._hire(len(stages))
        found, until = [], time.monotonic() + COMING
        while len(found) < len(stages):
            if spare := next((one for one in self.members if one.stage is None and not one.dead), None):
                spare.stage = stages[len(found)]
                found.append(spare)
                continue
            late = f"No worker came up within {COMING:g} s" if time.monotonic() > until else None
            if self._stillborn >= STILLBORN:
                late = f"{STILLBORN} workers in a row died before they said a word"
            if late:
                what = f"{late}, and stage {stages[len(found)]} needs one."
                raise RekindleError(what, hint="--resume goes on from the state that was saved last")
            self._hear(0.1)
            self._hire(len(stages) - len(found))
        self._hire(0)
        self._list()
        return found

    def rehearse(self, command: Command) -> None:
        """Spares, and all that come, do this by themselves: what they do for the first time takes long."""
        self._rehearsal = command
        for member in self.members:
            if member.stage is None:
                self._rehearse(member)

    def _rehearse(self, member: Member) -> None:
        if command := self._rehearsal:
            with suppress(Gone):  # which is heard of
                member.link.send(command.kind, command.tensors, **command.header)

    def _hire(self, needed: int) -> None:
        """Start as many as are needed, and the spares behind them."""
        idle = sum(one.stage is None and not one.dead for one in self.members)
        gone = {pid for pid in self._coming if not _lives(pid)}  # before it said a word
        self._coming -= gone
        self._stillborn += len(gone)
        where = {"host": LOOPBACK, "port": self._door.getsockname()[1], "store": self._store.port}
        how = {"threads": self.threads, "beat": min(BEAT, self.patience / 5), "model_type": self.model_type}
        for _ in range(needed + self.spares - idle - len(self._coming)):
            self._coming.add(nursery.worker(**where, **how, token=self._token.hex()))

    def _admit(self) -> None:
        """Whoever knows the token becomes a spare."""
        while not self._closed:
            try:
                sock, _ = self._door.accept()
            except OSError:  # of one who has gone again, or of too many at once
                time.sleep(0.05)
                continue
            if self._places.acquire(blocking=False):
                threading.Thread(target=self._receive, args=(sock,), daemon=True).start()
            else:
                sock.close()

    def _admitted(self, sock: socket.socket) -> Link:
        try:
            return admitted(sock, self._token)
        finally:
            self._places.release()

    def _receive(self, sock: socket.socket) -> None:
        try:
            link = self._admitted(sock)
            hello = link.receive()
        except Gone:
            sock.close()
            return
        member = Member(link, int(hello.header["pid"]))
        self._inbox.put((member, hello))
        while True:
            try:
                message = link.receive()
            except Gone:
                self._inbox.put((member, None))
                return
            if message.kind != "beat":
                self._inbox.put((member, message))

    # -- what they are told ------------------------------------------------------------------------------------------

    def ask(self, commands: Mapping[Member, Command]) -> dict[Member, Message]:
        """Each one's answer to its own command. Raises Lost where any stage is dead, once all others have answered."""
        waiting, answers, broken = set(commands), {}, {}
        for member, command in commands.items():
            with suppress(Gone):  # which is heard of below
                member.link.send(command.kind, command.tensors, **command.header)
        again, patience = 0.0, None
        while True:
            lost = [one.stage for one in self.members if one.dead and one.stage is not None]
            waiting = {one for one in waiting if not one.dead}
            if (lost or broken) and time.monotonic() > again:  # who forms a group may not have begun to wait
                self._tell(waiting, "release")
                again = time.monotonic() + AGAIN
            if not waiting:
                if lost:
                    raise Lost(lost, min(one.died for one in self.members if one.dead))
                if not broken:
                    return answers
                patience = patience or time.monotonic() + GRACE
                if time.monotonic() > patience:
                    member, why = next(iter(broken.items()))
                    raise RekindleError(f"Stage {member.stage} failed: {why}.")
            for member, message in self._hear(0.05 if broken else 0.5):
                if message.kind == "broken" and member in waiting:
                    broken[member] = message.header["why"]
                elif member in waiting:
                    answers[member] = message
                waiting.discard(member)

    def _tell(self, members: Sequence[Member] | set[Member], kind: str) -> None:
        for member in members:
            with suppress(Gone):
                member.link.send(kind)

    def _hear(self, seconds: float) -> list[tuple[Member, Message]]:
        """Answers that have come; who has come or gone is noted."""
        found = []
        with suppress(queue.Empty):
            member, message = self._inbox.get(timeout=seconds)
            while True:
                if message is None:
                    self._bury(member)
                elif message.kind == "hello":
                    self._coming.discard(member.pid)
                    self._stillborn = 0
                    self.members.append(member)
                    self._rehearse(member)
                    self._list()
                elif not member.dead:
                    found.append((member, message))
                member, message = self._inbox.get_nowait()
        self._bury_silent(time.monotonic())
        return found

    def _bury_silent(self, now: float) -> None:
        """Where this process stood still itself (Ctrl-Z), what came meanwhile is not read yet."""
        if now - self._looked > max(self.patience / 2, PAUSE):
            self._awake = now
        self._looked = now
        for member in [*self.members]:
            if not member.dead and now - max(member.link.heard, self._awake) > self.patience:
                _kill(member.pid)
                self._bury(member)

    def _bury(self, member: Member) -> None:
        """Dead, or as good as that: it is not heard any more."""
        if member.dead:
            return
        member.dead, member.died = True, time.perf_counter()
        with suppress(OSError):
            member.link.sock.shutdown(socket.SHUT_RDWR)
        member.link.close()
        if member.stage is None:
            self.members.remove(member)
        self._list()

    def forget(self, stages: Sequence[int]) -> None:
        """The dead of these stages, whose places are taken."""
        self.members = [one for one in self.members if not (one.dead and one.stage in stages)]

    def _list(self) -> None:
        if self._closed:
            return
        rows = [{"pid": os.getpid(), "role": "supervisor", "stage": None}]
        rows += [
            {"pid": one.pid, "role": "spare" if one.stage is None else "stage", "stage": one.stage}
            for one in self.members
            if not one.dead
        ]
        new = self._register.with_name(f".{self._register.name}.new")
        new.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        new.replace(self._register)

    def close(self) -> None:
        """All workers end; whoever cannot wait for that (Ctrl-C again) finds nothing of them in the register."""
        self._closed = True
        self._register.unlink(missing_ok=True)
        with suppress(OSError):
            self._door.shutdown(socket.SHUT_RDWR)  # which wakes whoever waits at it
        self._door.close()
        for pid in [*self._coming, *(member.pid for member in self.members if not member.dead)]:
            _kill(pid)
        for member in [*self.members]:
            self._bury(member)
        del self._store  # which listens until then


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError):
        os.kill(pid, signal.SIGKILL)


def _lives(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
