"""The workers that one process gives to a run: started, replaced where they die, and ended with it."""

from __future__ import annotations

import os
import signal
from contextlib import suppress
from itertools import count
from typing import NamedTuple

from rekindle.recovery.meeting import Meeting
from rekindle.recovery.nursery import nursery

STILLBORN = 3  # new workers in a row that die before they say a word


class Hand(NamedTuple):
    pid: int
    number: int  # of its place among the processes of its machine, which says what its device is


class Crew:
    """Those who go to this meeting. `model_type`: transformers' name for what they will be stages of.

    `threads`: of each.
    """

    def __init__(self, meeting: Meeting, *, threads: int, model_type: str):
        (host, port), token = meeting.address, meeting.token.hex()
        self._told = {"host": host, "port": port, "token": token, "threads": threads, "model_type": model_type}
        self.name, self._first = meeting.name, meeting.first
        self._numbers = count()
        self._hands: dict[str, Hand] = {}
        self._coming: set[str] = set()
        self._stillborn = 0

    def __contains__(self, name: str) -> bool:
        return name in self._hands

    def keep(self, size: int) -> None:
        """As many as that live from now on: those that are missing are started."""
        for name in [name for name, hand in self._hands.items() if not _lives(hand.pid)]:
            self._stillborn += name in self._coming
            self.left(name)
        while len(self._hands) < size:
            taken = {hand.number for hand in self._hands.values()}
            number = next(number for number in count(self._first) if number not in taken)
            name = f"{self.name}/{next(self._numbers)}"
            self._hands[name] = Hand(nursery.worker(**self._told, name=name, number=number), number)
            self._coming.add(name)

    def came(self, name: str) -> None:
        if name in self._coming:
            self._coming.remove(name)
            self._stillborn = 0

    def left(self, name: str) -> None:
        self._hands.pop(name, None)
        self._coming.discard(name)

    def kill(self, name: str) -> None:
        """Where it is one of these."""
        if hand := self._hands.get(name):
            self.left(name)
            with suppress(ProcessLookupError):
                os.kill(hand.pid, signal.SIGKILL)

    def failed(self) -> str | None:
        """What keeps them from coming, where something does."""
        few = self._stillborn < STILLBORN
        return None if few else f"{STILLBORN} workers in a row died before they said a word"

    def close(self) -> None:
        for name in [*self._hands]:
            self.kill(name)


def _lives(pid: int) -> bool:
    import psutil

    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False
