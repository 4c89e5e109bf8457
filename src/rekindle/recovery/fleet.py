"""The supervisor's side: processes that are stages or spares, what they are told, and who of them is dead.

A worker is dead when its connection closes, which the system does at once where a process is killed; or when it gives
no sign of life for `patience` seconds: then its connection is closed, and whatever it still says is not heard. Whoever
has started it kills it too.
"""

from __future__ import annotations

import json
import logging
import os
import queue
import socket
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rekindle.errors import Ended, RekindleError, counted
from rekindle.recovery.crew import Crew
from rekindle.recovery.door import Member, listening
from rekindle.recovery.meeting import Meeting
from rekindle.recovery.wire import Gone, Message
from rekindle.train.interrupts import Interrupts

if TYPE_CHECKING:
    import torch

log = logging.getLogger(__name__)

BEAT = 1.0  # seconds between a worker's signs of life, or fewer where patience is short
AGAIN = 0.5  # seconds between words to those who wait for the dead
GRACE = 2.0  # seconds between a worker's word that something broke and the news of a death
PAUSE = 0.75  # seconds between two looks for who is silent that nothing is made of
SOON = 10.0  # seconds of waiting after which that is said, and Ctrl-C ends it
COMING, LENT = 120.0, 600.0  # seconds that a new worker has to come up, and one of another machine


class Lost(Exception):
    """Stages whose workers are dead."""

    def __init__(self, stages: Sequence[int], since: float | None = None):
        self.stages = sorted(stages)
        self.since = time.perf_counter() if since is None else since  # the first of these deaths
        super().__init__(self.stages)


@dataclass(frozen=True)
class Command:
    kind: str
    header: Mapping[str, Any] = field(default_factory=dict)
    tensors: Mapping[str, torch.Tensor] = field(default_factory=dict)


class Fleet:
    """Workers who have come to the `meeting`: those that this process starts, and whoever is lent.

    `spares` of its own stand behind them, where all are its own. `register` is the file that lists them. `model_type`:
    transformers' name for what they will be stages of. `threads`: of each of its own. `describe`: a stage, in the file.
    """

    def __init__(
        self,
        meeting: Meeting,
        spares: int,
        *,
        threads: int,
        patience: float,
        register: Path,
        model_type: str,
        describe: Callable[[int], Mapping[str, Any]] = lambda stage: {"stage": stage},
    ):
        from torch.distributed import TCPStore

        assert meeting.door is not None
        self.spares, self.patience = spares, patience
        self.members: list[Member] = []
        self._register, self._own, self._door = register, meeting.workers, meeting.door
        self._describe = describe
        self._crew = Crew(meeting, threads=threads, model_type=model_type)
        self._rehearsal: Command | None = None
        self._closed = False
        self._looked = self._awake = time.monotonic()  # for who is silent; since when it has been done all the time
        host = meeting.address[0]
        there = listening(host)
        port = there.getsockname()[1]
        how = {"is_master": True, "wait_for_workers": False, "master_listen_fd": there.detach()}
        self._store = TCPStore(host, port, **how)
        self._door.open(store=port, beat=min(BEAT, patience / 5), model_type=model_type)

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
        idle = len(self._idle())
        return f"{idle} of {counted(self.spares, 'spare')}" if self._own is None else counted(idle, "spare")

    def _idle(self) -> list[Member]:
        """Spares, those of one machine one after the other, its own first."""
        found = [one for one in self.members if one.stage is None and not one.dead]
        return sorted(found, key=lambda one: (one.crew != self._crew.name, one.crew))

    def appoint(self, stages: Sequence[int]) -> list[Member]:
        """Spares become these stages; new ones are started behind them. Waits for those who are coming.

        Raises RekindleError where nobody comes, Ended where the run is asked to stop while it waits.
        """
        self._hire(len(stages))
        began, said = time.monotonic(), False
        while len(idle := self._idle()) < len(stages):
            missing, waited = stages[len(idle) :], time.monotonic() - began
            self._give_up(missing, waited)
            if self._own is not None and waited > SOON and not said:
                words = "waiting for %s, up to %g s: the same command on other machines lends them"
                log.warning(words, counted(len(missing), "worker"), LENT)
                said = True
            self._hear(0.1)
            self._hire(len(stages))
        for member, stage in zip(idle, stages):
            member.stage = stage
        self._hire(0)
        self._list()
        return idle[: len(stages)]

    def _give_up(self, missing: Sequence[int], waited: float) -> None:
        """Where there is a reason to; after so many seconds."""
        if waited > SOON and (number := Interrupts.asked()) is not None:  # without all stages no state can be saved
            raise Ended(number, f"Stopped while {self._named(missing[0]).lower()} had no worker.")
        wait = COMING if self._own is None else LENT
        if late := f"No worker came up within {wait:g} s" if waited > wait else self._crew.failed():
            more = "" if self._own is None else ", with more --workers, or on more machines"
            hint = f"--resume goes on from the state that was saved last{more}"
            raise RekindleError(f"{late}, and {self._named(missing[0]).lower()} needs one.", hint=hint)

    def _named(self, stage: int | None) -> str:
        return " of ".join(f"{name} {n}" for name, n in self._describe(stage or 0).items()).capitalize()

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
        """Start as many as are needed, and the spares behind them; or as many as this machine gives."""
        busy = sum(one.stage is not None and not one.dead for one in self.members)
        self._crew.keep(busy + needed + self.spares if self._own is None else self._own)

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
                    raise RekindleError(f"{self._named(member.stage)} failed: {why}.")
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
            member, message = self._door.inbox.get(timeout=seconds)
            while True:
                if message is None:
                    self._bury(member)
                elif message.kind == "hello":
                    self._crew.came(member.name)
                    self._door.tell(member, "came")
                    self.members.append(member)
                    self._rehearse(member)
                    self._list()
                elif message.kind == "last":
                    member.last = message.tensors
                elif not member.dead:
                    found.append((member, message))
                member, message = self._door.inbox.get_nowait()
        self._bury_silent(time.monotonic())
        return found

    def _bury_silent(self, now: float) -> None:
        """Where this process stood still itself (Ctrl-Z), what came meanwhile is not read yet."""
        if now - self._looked > max(self.patience / 2, PAUSE):
            self._awake = now
        self._looked = now
        for member in [*self.members]:
            if not member.dead and now - max(member.link.heard, self._awake) > self.patience:
                self._crew.kill(member.name)
                self._door.tell(member, "kill")
                self._bury(member)

    def _bury(self, member: Member) -> None:
        """Dead, or as good as that: it is not heard any more."""
        if member.dead:
            return
        member.dead, member.died = True, time.perf_counter()
        self._crew.left(member.name)
        with suppress(OSError):
            member.link.sock.shutdown(socket.SHUT_RDWR)
        member.link.close()
        if member.stage is None:
            self.members.remove(member)
        self._list()

    def left(self, stages: Sequence[int]) -> dict[int, Mapping[str, torch.Tensor]]:
        """What the dead of these stages have left."""
        dead = [one for one in self.members if one.dead and one.stage in stages]
        return {one.stage: one.last for one in dead if one.stage is not None and one.last is not None}

    def forget(self, stages: Sequence[int]) -> None:
        """The dead of these stages, whose places are taken."""
        self.members = [one for one in self.members if not (one.dead and one.stage in stages)]

    def _list(self) -> None:
        if self._closed:
            return
        rows = [{"pid": os.getpid(), "role": "supervisor", "stage": None}]
        for one in self.members:
            if not one.dead:
                stage = {"stage": None} if one.stage is None else self._describe(one.stage)
                row = {"pid": one.pid, "role": "spare" if one.stage is None else "stage", **stage}
                rows.append(row if one.crew == self._crew.name else {**row, "host": one.host})
        new = self._register.with_name(f".{self._register.name}.new")
        new.write_text(json.dumps(rows, indent=1) + "\n", encoding="utf-8")
        new.replace(self._register)

    def close(self) -> None:
        """All workers end; whoever cannot wait for that (Ctrl-C again) finds nothing of them in the register."""
        self._closed = True
        self._register.unlink(missing_ok=True)
        self._door.close()
        self._crew.close()
        for member in [*self.members]:
            self._bury(member)
        del self._store  # which listens until then
