"""Shadows: the weights of each stage as the next one has them, brought up to date beside steps that go on.

The next stage gets all weights at the start, and where it has another process. From then on, now and then: in one step
a stage copies its weights, and a thread codes what changed since the copy that the next stage has, see codec.change; in
the step after it the message travels beside activations, and a thread decodes it. With that step's update it counts,
since all stages have theirs then.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager, suppress
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.utils import parameters_to_vector

from rekindle.codec.change import change, changed
from rekindle.codec.shrunk import Floats
from rekindle.recovery.group import received
from rekindle.recovery.stage import Place


class Shadows:
    """`held` is that of the stage before, `known` what the next stage holds of this one, each [n]."""

    def __init__(self, place: Place, parameters: Sequence[torch.nn.Parameter], device: torch.device):
        self.held = self.known = np.empty(0, np.float32)
        self._place, self._parameters, self._device = place, parameters, device
        self._threads = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self._coding: Future[tuple[bytes, Floats]] | None = None
        self._coming: Future[Floats] | None = None

    def _copy(self) -> torch.Tensor:
        return parameters_to_vector(self._parameters).detach()  # which is never a view

    def lend(self, givers: Sequence[int]) -> None:
        """All weights as they are, of each of these stages to the next one."""
        place, sent = self._place, []
        if place.rank in givers:
            own = self._copy()
            self.known = own.cpu().numpy()
            size = torch.tensor([own.numel()], device=self._device)
            sent = [dist.isend(x, place.after) for x in (size, own)]
        if place.before in givers:
            size = torch.empty(1, dtype=torch.int64, device=self._device)
            dist.recv(size, place.before)
            self.held = received((int(size),), place.before, self._device).cpu().numpy()
        for work in filter(None, sent):
            work.wait()

    def begin(self) -> None:
        """Copy the weights as they are now, and code what changed."""
        copy, known, sizes = self._copy(), self.known, [p.numel() for p in self._parameters]
        self._coding = self._threads.submit(lambda: change(copy.cpu().numpy(), known, sizes))

    def nbytes(self) -> int:
        """Of the message, once it is there."""
        assert self._coding is not None
        return len(self._coding.result()[0])

    @contextmanager
    def on_their_way(self, nbytes: Sequence[int]) -> Iterator[None]:
        """Inside, messages of so many bytes go from each stage to the next."""
        assert self._coding is not None
        place = self._place
        message = torch.from_numpy(np.frombuffer(bytearray(self._coding.result()[0]), np.uint8)).to(self._device)
        theirs = torch.empty(nbytes[place.before], dtype=torch.uint8, device=self._device)
        sent, coming = dist.isend(message, place.after), dist.irecv(theirs, place.before)
        self._coming = self._threads.submit(_received, coming, theirs, self.held)
        yield
        assert sent is not None
        sent.wait()
        self._coming.result()

    def count(self) -> None:
        """All stages have theirs."""
        assert self._coding is not None
        assert self._coming is not None
        self.known, self.held = self._coding.result()[1], self._coming.result()
        self._coding = self._coming = None

    def forget(self) -> None:
        """What was under way, with the group that it was under way in."""
        for future in filter(None, (self._coding, self._coming)):
            with suppress(Exception):
                future.result()
        self._coding = self._coming = None


def _received(coming: Any, message: torch.Tensor, known: Floats) -> Floats:
    coming.wait()
    return changed(message.cpu().numpy().data, known)
