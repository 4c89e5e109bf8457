"""Messages between the supervisor and a worker: a JSON header and tensors, over one socket. Nothing is unpickled.

    8 bytes   length of the header            little endian
    8 bytes   length of the tensors           a safetensors file, or nothing
    header    {"kind": ..., ...}
    tensors

Who connects shows first that he knows the token of the run: the supervisor sends a nonce, he answers with an HMAC of it
and of a nonce of his own, and is answered likewise. Without that a connection is closed.
"""

from __future__ import annotations

import hmac
import json
import secrets
import socket
import struct
import threading
import time
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any, NamedTuple

if TYPE_CHECKING:
    import torch

LENGTHS = struct.Struct("<QQ")
NONCE, DIGEST = 32, "sha256"
LONGEST = 1 << 24  # bytes of a header
KEEPALIVE = {"TCP_KEEPIDLE": 10, "TCP_KEEPINTVL": 5, "TCP_KEEPCNT": 3}  # seconds, seconds, questions
UNTAKEN = 30_000  # milliseconds that a worker may leave what it is sent where it is
PATIENCE = 5.0  # seconds that a stranger has to show who he is, however many bytes come meanwhile


class Gone(Exception):
    """The other side has closed the connection, or was killed."""


class Stranger(Gone):
    """Somebody answers there who does not know the token, or another one."""


class Message(NamedTuple):
    header: dict[str, Any]
    tensors: dict[str, torch.Tensor]

    @property
    def kind(self) -> str:
        return self.header["kind"]


class Link:
    """One side of a connection. Any thread may send; one reads."""

    def __init__(self, sock: socket.socket):
        self.sock = sock
        self.heard = time.monotonic()  # when the last bytes came
        self._sending = threading.Lock()

    def send(self, kind: str, tensors: Mapping[str, torch.Tensor] | None = None, **header: Any) -> None:
        """Raises Gone."""
        from safetensors.torch import save

        text = json.dumps({"kind": kind, **header}).encode()
        body = save({name: x.detach().cpu().contiguous() for name, x in tensors.items()}) if tensors else b""
        try:
            with self._sending:
                self.sock.sendall(LENGTHS.pack(len(text), len(body)) + text)
                if body:
                    self.sock.sendall(body)
        except OSError as error:
            raise Gone from error

    def receive(self) -> Message:
        """Raises Gone."""
        from safetensors import SafetensorError
        from safetensors.torch import load

        size, nbytes = LENGTHS.unpack(self._exactly(LENGTHS.size))
        if size > LONGEST:
            raise Gone
        try:
            header = json.loads(bytes(self._exactly(size)))
            return Message(header, load(bytes(self._exactly(nbytes))) if nbytes else {})
        except (ValueError, SafetensorError, MemoryError, OverflowError) as error:
            raise Gone from error

    def _exactly(self, size: int, until: float | None = None) -> bytearray:
        found = bytearray(size)
        view, at = memoryview(found), 0
        while at < size:
            try:
                if until is not None:
                    _limit(self.sock, until)
                read = self.sock.recv_into(view[at:])
            except OSError as error:
                raise Gone from error
            if not read:
                raise Gone
            at += read
            self.heard = time.monotonic()
        return found

    def close(self) -> None:
        self.sock.close()


def _watch(sock: socket.socket) -> None:
    """A machine that vanishes says nothing: while nothing is sent, the system asks whether it is there."""
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    sock.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for name, value in KEEPALIVE.items():
        if hasattr(socket, name):
            sock.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)


def _limit(sock: socket.socket, until: float) -> None:
    """Whatever it does next ends by then; raises TimeoutError, an OSError, where that is past."""
    if (left := until - time.monotonic()) <= 0:
        raise TimeoutError
    sock.settimeout(left)


def _proof(token: bytes, role: bytes, *nonces: bytes) -> bytes:
    return hmac.digest(token, role + b"".join(nonces), DIGEST)


def admitted(sock: socket.socket, token: bytes) -> Link:
    """The supervisor's side of a new connection; raises Gone for a stranger."""
    until, link, nonce = time.monotonic() + PATIENCE, Link(sock), secrets.token_bytes(NONCE)
    try:
        _watch(sock)
        if hasattr(socket, "TCP_USER_TIMEOUT"):  # and while something is, which nobody takes
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, UNTAKEN)
        _limit(sock, until)
        sock.sendall(nonce)
        answer = bytes(link._exactly(NONCE + 32, until))
        theirs, proof = answer[:NONCE], answer[NONCE:]
        if not hmac.compare_digest(proof, _proof(token, b"worker", nonce, theirs)):
            raise Gone
        sock.sendall(_proof(token, b"supervisor", theirs, nonce))
    except (OSError, Gone) as error:
        sock.close()
        raise Gone from error
    sock.settimeout(None)
    return link


def connect(address: tuple[str, int], token: bytes) -> Link:
    """The side of who comes; raises Gone where the supervisor is not there, Stranger where it is another one."""
    until = time.monotonic() + PATIENCE
    try:
        sock = socket.create_connection(address, timeout=PATIENCE)
    except OSError as error:
        raise Gone from error
    refused: type[Gone] = Gone
    try:
        _watch(sock)
        link, own = Link(sock), secrets.token_bytes(NONCE)
        nonce = bytes(link._exactly(NONCE, until))
        refused = Stranger
        sock.sendall(own + _proof(token, b"worker", nonce, own))
        if not hmac.compare_digest(bytes(link._exactly(32, until)), _proof(token, b"supervisor", own, nonce)):
            raise Gone
    except (OSError, Gone) as error:
        sock.close()
        raise refused from error
    sock.settimeout(None)
    return link
