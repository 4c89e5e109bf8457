"""Messages over a socket, and strangers."""

from __future__ import annotations

import secrets
import socket
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rekindle.recovery import wire
from rekindle.recovery.wire import LENGTHS, Gone, Link, admitted, connect


@contextmanager
def pair():
    one, other = map(Link, socket.socketpair())
    with closing(one), closing(other):
        yield one, other


@given(st.dictionaries(st.text(min_size=1, max_size=5), st.integers(0, 9) | st.text(max_size=9), max_size=4))
@settings(deadline=None)
def test_what_is_sent_arrives(header):
    tensors = {"a": torch.arange(6.0).reshape(2, 3), "b": torch.tensor(3), "c": torch.zeros(0, 4)}
    header = {f"_{name}": x for name, x in header.items()}
    with pair() as (one, other):
        one.send("told", tensors, **header)
        found = other.receive()
    assert found.header == {"kind": "told", **header}
    assert all(torch.equal(found.tensors[name], x) for name, x in tensors.items())


@given(st.binary(max_size=200))
@settings(deadline=None)
def test_bytes_that_are_no_message_are_as_a_closed_connection(data):
    with pair() as (one, other):
        one.sock.sendall(data)
        one.close()
        with pytest.raises(Gone):
            other.receive()


@pytest.mark.parametrize("lengths", [(1 << 60, 0), (2, 1 << 60)])
def test_a_length_that_is_none_is_not_waited_for(lengths):
    with pair() as (one, other):
        one.sock.sendall(LENGTHS.pack(*lengths) + b"{}")
        with pytest.raises(Gone):
            other.receive()


@contextmanager
def door(token: bytes):
    """A supervisor's, who lets one come in: its address, and whom he has let in."""
    found: list[Link | None] = []
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:

        def admit():
            sock, _ = listening.accept()
            try:
                found.append(admitted(sock, token))
            except Gone:
                found.append(None)

        thread = threading.Thread(target=admit)
        thread.start()
        yield listening.getsockname(), found
        thread.join()
    for link in filter(None, found):
        link.close()


def test_who_knows_the_token_is_admitted():
    token = secrets.token_bytes(32)
    with door(token) as (address, found), closing(connect(address, token)) as link:
        link.send("hello", pid=1)
    assert found != [None]


def test_a_stranger_is_not(monkeypatch):
    with door(secrets.token_bytes(32)) as (address, found), pytest.raises(Gone):
        connect(address, secrets.token_bytes(32))
    assert found == [None]
    monkeypatch.setattr(wire, "PATIENCE", 0.2)
    with door(secrets.token_bytes(32)) as (address, found), closing(socket.create_connection(address)) as silent:
        assert silent.recv(32)
        assert silent.recv(1) == b""
    assert found == [None]


def test_a_worker_refuses_a_supervisor_that_does_not_know_the_token():
    with closing(socket.create_server(("127.0.0.1", 0))) as listening:

        def pretend():
            sock, _ = listening.accept()
            with closing(sock):
                sock.sendall(secrets.token_bytes(32))
                sock.recv(64)
                sock.sendall(secrets.token_bytes(32))

        thread = threading.Thread(target=pretend)
        thread.start()
        with pytest.raises(Gone):
            connect(listening.getsockname(), secrets.token_bytes(32))
        thread.join()


@pytest.mark.skipif(not hasattr(socket, "TCP_USER_TIMEOUT"), reason="of Linux")
def test_what_nobody_takes_is_not_sent_for_ever(monkeypatch):
    """A worker that stands still, or whose machine has vanished, in the middle of its weights."""
    monkeypatch.setattr(wire, "UNTAKEN", 500)
    with closing(socket.create_server(("127.0.0.1", 0))) as door, ThreadPoolExecutor(1) as pool:
        coming = pool.submit(connect, door.getsockname(), b"token")
        link = admitted(door.accept()[0], b"token")
        with closing(link), closing(coming.result()), pytest.raises(Gone):
            link.send("become", {"weight": torch.zeros(1 << 24)})
