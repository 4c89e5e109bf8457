"""The process group of a pipeline's stages: formed anew for each generation, and left at once when a member is dead.

A member that waits for a dead neighbour is told so by the system. Others wait for the living, and `abort` of a gloo
group releases nobody; closing the connections under it does, within milliseconds.
"""

from __future__ import annotations

import os
import socket
import stat
from collections.abc import Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch
import torch.distributed as dist
from torch.distributed import distributed_c10d

from rekindle.recovery.stage import Place

OPERATION, RENDEZVOUS = timedelta(seconds=300), timedelta(seconds=60)


class Group:
    """One worker's part in the groups of a run, one after the other, whose members meet in the store of `address`."""

    def __init__(self, address: tuple[str, int]):
        self._address, self._own = address, _sockets()
        self.replica: Any = None  # the stages of this pipeline, where there are several
        self.alike: Any = None  # this stage in all of them

    def form(self, generation: int, place: Place, backend: str) -> None:
        self.leave()
        store = dist.TCPStore(*self._address, is_master=False, timeout=RENDEZVOUS)
        meeting = dist.PrefixStore(f"generation{generation}", store)
        size = place.replicas * place.stages
        dist.init_process_group(backend, store=meeting, rank=place.rank, world_size=size, timeout=OPERATION)
        if place.replicas > 1:
            ranks = [place.rank_of(stage) for stage in range(place.stages)]
            self.replica = dist.new_group(ranks, timeout=OPERATION, use_local_synchronization=True)
            ranks = [*range(place.stage, size, place.stages)]
            self.alike = dist.new_group(ranks, timeout=OPERATION, use_local_synchronization=True)

    def release(self) -> None:
        """From any thread: whoever waits for a member, or for one to come, gets an error now."""
        for number in _sockets() - self._own:
            with suppress(OSError):
                sock = socket.socket(fileno=os.dup(number))
                with suppress(OSError):
                    sock.getpeername()  # one that listens has none: to shut it would end the process
                    sock.shutdown(socket.SHUT_RDWR)
                sock.close()

    def leave(self) -> None:
        self.replica = self.alike = None
        if dist.is_initialized():
            dist.destroy_process_group()
        distributed_c10d._world.group_count = 0  # torch (2.13) counts one that failed too, and names the next by that


def _sockets() -> set[int]:
    """Descriptors of this process."""
    found = set()
    for name in os.listdir("/dev/fd"):
        with suppress(OSError):
            if stat.S_ISSOCK(os.fstat(int(name)).st_mode):
                found.add(int(name))
    return found


def received(shape: Sequence[int], source: int, device: torch.device) -> torch.Tensor:
    """Float32, from another member."""
    found = torch.empty(shape, device=device)
    dist.recv(found, source)
    return found
