"""Where the processes of a run meet: an address, and the token that each of them shows there.

On one machine that is a port of the loopback device, and a token that nobody else hears of. With `--join HOST:PORT` the
same command is typed on several: the one whose address HOST is supervises, and listens there; all others lend it their
processes. Of ranks that torchrun or accelerate launch has started the main one supervises, and tells the others where.
"""

from __future__ import annotations

import errno
import json
import os
import secrets
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache
from itertools import count
from typing import Any

from rekindle.errors import RekindleError, first_line, together
from rekindle.ranks import alone, is_main_rank, number_of_ranks
from rekindle.recovery.door import Door, interface_of, listening
from rekindle.train.config import TrainConfig

LOOPBACK = "127.0.0.1"
TOKEN, SHORTEST = "REKINDLE_TOKEN", 16  # characters
LATE = 120.0  # seconds that a supervisor may come after those who lend
SECRET = f"export {TOKEN}=$(openssl rand -hex 16), the same on all machines"


@dataclass(frozen=True)
class Meeting:
    """`door` is there where this process supervises. `workers`: that it gives; None: as many as are wanted.

    `name`: what they are called, with a slash and a number each.
    """

    address: tuple[str, int]
    token: bytes
    door: Door | None = None
    workers: int | None = None
    name: str = field(default_factory=lambda: secrets.token_hex(8))
    first: int = 0  # the number of the first of these among the processes of this machine
    launched: bool = False  # with others, which are asked to end when this one is


@contextmanager
def met(config: TrainConfig) -> Iterator[Meeting | None]:
    """None where there is no pipeline; raises RekindleError with all that is wrong with --join and --workers."""
    check_joining(config)
    if not config.pipelined:
        yield None
        return
    if number_of_ranks() > 1:
        meeting = _of_ranks(config.workers or 1)
    elif config.join:
        meeting = _joined(config.join, workers_of(config))
    else:
        meeting = _supervised(listening(LOOPBACK), secrets.token_bytes(32))
    try:
        with alone():
            yield meeting
    finally:
        if meeting.door:
            meeting.door.close()


def _supervised(listens: socket.socket, token: bytes, **how: Any) -> Meeting:
    door = Door(listens, token)
    return Meeting(door.address, token, door, **how)


# -- machines that were told of one another ----------------------------------------------------------------------------


def check_joining(config: TrainConfig) -> None:
    """Raise RekindleError with all that is wrong with --join and --workers."""
    problems, many = [], number_of_ranks() > 1
    if config.join is not None:
        if not config.pipelined:
            what = "--join is for the stages of a pipeline, and there are none."
            problems.append(RekindleError(what, hint="--stages 4 with it; or no --join"))
        if many:
            what = f"This is one of {number_of_ranks()} processes that were started together; they meet by themselves."
            problems.append(RekindleError(what, hint="no --join; or the command without torchrun or accelerate launch"))
        elif len(os.environ.get(TOKEN, "")) < SHORTEST:
            what = f"{TOKEN} has {len(os.environ.get(TOKEN, ''))} characters, and {SHORTEST} are the least with --join."
            problems.append(RekindleError(what, hint=SECRET))
        try:
            address_of(config.join)
        except RekindleError as error:
            problems.append(error)
    if config.workers is not None:
        if config.workers < 1:
            problems.append(RekindleError(f"workers is {config.workers}: 1 is the least.", hint="--workers 1"))
        if config.join is None and not (many and config.pipelined):
            what = f"workers is {config.workers}, and one machine starts as many as its stages and spares are."
            problems.append(RekindleError(what, hint="--join HOST:PORT with it; or no --workers"))
    if problems:
        raise together(problems)


def address_of(text: str) -> tuple[str, int]:
    """HOST:PORT, or [HOST]:PORT; raises RekindleError for what is no address that others can come to."""
    host, _, port = text.rpartition(":")
    host = host.removeprefix("[").removesuffix("]")
    hint = "--join HOST:PORT, as in --join 10.0.0.5:29500"
    if not host or not (port.isascii() and port.isdigit() and 0 < int(port) < 2**16):
        raise RekindleError(f"join is {text!r}, and no HOST:PORT.", hint=hint)
    if host in ("0.0.0.0", "::", "*"):
        raise RekindleError(f"join is {text!r}, which names all machines.", hint=f"{hint}, an address of one of them")
    return host, int(port)


def lends(config: TrainConfig) -> bool:
    """Whether this process would lend its workers, and so reads no checkpoint; raises RekindleError as `met` does."""
    check_joining(config)
    if number_of_ranks() > 1:
        return config.pipelined and not is_main_rank()
    if config.join is None:
        return False
    if listens := _listening(config.join):
        listens.close()
    return listens is None


def workers_of(config: TrainConfig) -> int:
    """That this machine gives with --join."""
    import torch

    return config.workers or torch.cuda.device_count() or 1


def _joined(join: str, workers: int) -> Meeting:
    token = os.fsencode(os.environ[TOKEN])
    if listens := _listening(join):
        return _supervised(listens, token, workers=workers)
    return Meeting(address_of(join), token, workers=workers)


def _listening(join: str) -> socket.socket | None:
    """At HOST:PORT where that is this machine's and free: none else listens there, and so all others lend."""
    host, port = address_of(join)
    try:
        found = [str(at[0]) for *_, at in socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)]
    except (OSError, UnicodeError) as error:
        raise RekindleError(f"{host} has no address here: {first_line(error)}.", hint="its number") from None
    if host not in (*found, "localhost") and all(one.startswith("127.") or one == "::1" for one in found):
        what = f"{host} is {found[0]} on this machine, where no other can come to it."
        raise RekindleError(what, hint="its address in the network, on all machines")
    own = next((one for one in found if interface_of(one)), None)
    if own is None:
        return None
    try:
        return listening(own, port)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            return None
        what = f"Nothing can listen at {join}: {error.strerror}."
        raise RekindleError(what, hint="another port, 1024 or above") from None


# -- ranks -------------------------------------------------------------------------------------------------------------

_times = count()


def _of_ranks(workers: int) -> Meeting:
    again = os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")  # torchrun keeps the store, and what was said in it
    store, key = _store(), f"rekindle/{again}/{next(_times)}"
    how = {"workers": workers, "first": int(os.environ["LOCAL_RANK"]) * workers, "launched": True}
    if is_main_rank():
        meeting = _supervised(listening(_reachable()), secrets.token_bytes(32), **how)
        store.set(key, json.dumps([*meeting.address, meeting.token.hex()]))
        return meeting
    until = time.monotonic() + LATE
    while not store.check([key]):
        if time.monotonic() > until:
            raise RekindleError(f"The main rank has not said within {LATE:g} s where it listens.")
        time.sleep(0.1)
    host, port, token = json.loads(store.get(key))
    return Meeting((host, port), bytes.fromhex(token), **how)


@cache
def _store() -> Any:
    """What torchrun's ranks share; it is there as long as this process."""
    from torch.distributed import rendezvous

    return next(iter(rendezvous("env://")))[0]


def _reachable() -> str:
    """An address of this machine that all ranks can come to: the one that it has towards where they met."""
    if os.environ.get("LOCAL_WORLD_SIZE") == os.environ["WORLD_SIZE"]:
        return LOOPBACK
    master = os.environ["MASTER_ADDR"]
    family, kind, _, _, at = socket.getaddrinfo(master, int(os.environ["MASTER_PORT"]), type=socket.SOCK_DGRAM)[0]
    with socket.socket(family, kind) as sock:
        sock.connect(at)  # which sends nothing
        found = str(sock.getsockname()[0])
    if found.startswith("127.") or found == "::1":
        what = f"The ranks meet at {master}, and that is {found} on the main one's machine."
        raise RekindleError(what, why="no other machine can come to it there", hint="torchrun --local-addr ADDRESS")
    return found
