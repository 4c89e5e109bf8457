"""Where processes come in: those who know the run's token are told `welcome`, and are workers, or lend some.

One who lends keeps workers alive on its machine. It says nothing; its connection tells it when the run has ended.
"""

from __future__ import annotations

import queue
import socket
import threading
import time
from collections.abc import Mapping
from contextlib import closing, suppress
from dataclasses import dataclass
from importlib import metadata
from typing import TYPE_CHECKING, Any

from rekindle.recovery.wire import Gone, Link, Message, admitted
from rekindle.version import __version__

if TYPE_CHECKING:
    import torch

STRANGERS = 32  # connections that have not shown yet who they are; more are closed at once


@dataclass(eq=False)
class Member:
    """A worker: a stage, or a spare where `stage` is None."""

    link: Link
    pid: int
    name: str  # that of its crew, a slash, and a number
    host: str = ""
    stage: int | None = None
    dead: bool = False
    last: Mapping[str, torch.Tensor] | None = None  # its weights and moments, where it has left them
    died: float = 0.0  # time.perf_counter()

    @property
    def crew(self) -> str:
        return self.name.partition("/")[0]


def listening(host: str, port: int = 0) -> socket.socket:
    """Raises OSError where that cannot be."""
    return socket.create_server((host, port), family=socket.AF_INET6 if ":" in host else socket.AF_INET)


def interface_of(address: str) -> str | None:
    """The network interface that has this address of the machine."""
    import psutil

    there = psutil.net_if_addrs().items()
    return next((name for name, own in there if address in [one.address.partition("%")[0] for one in own]), None)


def versions() -> str:
    """Of what must be the same on all machines."""
    return f"rekindle {__version__}, torch {metadata.version('torch').split('+')[0]}"


class Door:
    """Whoever comes in waits for `open`, however long a model is loaded; then workers' messages are in `inbox`.

    A worker's first is its hello, and after its last comes None.
    """

    def __init__(self, listens: socket.socket, token: bytes):
        host, port = listens.getsockname()[:2]
        self.address: tuple[str, int] = host, port
        self.inbox: queue.Queue[tuple[Member, Message | None]] = queue.Queue()
        self._listens, self._token = listens, token
        self._places = threading.BoundedSemaphore(STRANGERS)
        self._lenders: dict[str, Link] = {}  # by the names of their crews
        self._welcome: dict[str, Any] = {}
        self._opened, self._closed = threading.Event(), False
        threading.Thread(target=self._admit, daemon=True).start()

    def open(self, **welcome: Any) -> None:
        self._welcome = welcome
        self._opened.set()

    def tell(self, member: Member, kind: str) -> None:
        """Who has lent this worker, where somebody has."""
        if lender := self._lenders.get(member.crew):
            with suppress(Gone):
                lender.send(kind, name=member.name)

    def close(self) -> None:
        """Nobody comes in any more, and those who have lent workers are told that this is the end."""
        self._closed = True
        with suppress(OSError):
            self._listens.shutdown(socket.SHUT_RDWR)  # which wakes whoever waits at it
        self._listens.close()
        self._opened.set()
        for lender in [*self._lenders.values()]:
            _end(lender)

    def _admit(self) -> None:
        while not self._closed:
            try:
                sock, _ = self._listens.accept()
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
        with closing(sock), suppress(Gone, OSError):
            link = self._admitted(sock)
            hello = link.receive()
            member = _member(link, hello, sock.getpeername()[0])
            lends = hello.header.get("role") == "lender"
            if hello.header.get("versions") != versions():
                link.send("refused", versions=versions())
                return
            if lends:
                self._lenders[member.name] = link
            self._opened.wait()
            if self._closed:
                _end(link)
                return
            link.send("welcome", **self._welcome)
            if lends:
                self._hear_out(link)
                del self._lenders[member.name]
                return
            link.heard = time.monotonic()  # it was to wait
            self.inbox.put((member, hello))
            self._hear_out(link, member)
            self.inbox.put((member, None))

    def _hear_out(self, link: Link, member: Member | None = None) -> None:
        """Until it is gone."""
        with suppress(Gone):
            while True:
                message = link.receive()
                if member and message.kind != "beat":
                    self.inbox.put((member, message))


def _member(link: Link, hello: Message, host: str) -> Member:
    """Raises Gone for a hello that is none."""
    try:
        return Member(link, int(hello.header["pid"]), str(hello.header["name"]), host)
    except (KeyError, TypeError, ValueError) as error:
        raise Gone from error


def _end(link: Link) -> None:
    with suppress(Gone):
        link.send("end")
    with suppress(OSError):
        link.sock.shutdown(socket.SHUT_RDWR)
