"""Write one shard: plain copies file to file in the kernel, the rest through a bounded window.

Every byte has its place before the first is written, so several workers write one shard, each its own *stretches*.
A shard is written under a temporary name, flushed, and renamed.
"""

from __future__ import annotations

import hashlib
import math
import os
from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from threading import Event, Lock
from typing import NamedTuple

import numpy as np

from rekindle.apply.shards import Shard
from rekindle.edit.expressions import Expr, Rows, Span
from rekindle.store.dtypes import BITS, count_not_finite
from rekindle.store.files import Files, begin_writeback
from rekindle.store.header import PAGE

WINDOW = 1 << 19  # bytes of output made at once by one worker: fits its own cache with what it is made of
LARGE = 1 << 21  # the same where a window costs more than its rows, such as a pass over a matrix that is turned
STRETCH = 1 << 24  # bytes that one worker writes before it takes up the next; then the disc is set to work


@dataclass(frozen=True)
class Written:
    bytes: int
    sha256: str | None
    not_finite: int  # NaN and infinite values among the computed ones
    where: str | None = None  # the first tensor that has some

    @property
    def entry(self) -> dict[str, int | str]:
        """As the manifest lists a shard."""
        return {"bytes": self.bytes} | ({"sha256": self.sha256} if self.sha256 else {})


class Stopped(Exception):
    """Another worker failed."""


class Stretch(NamedTuple):
    """Neighbouring tensors, or rows of one, and the byte of the file where they begin."""

    at: int
    tensors: list[tuple[str, Expr]]

    @property
    def nbytes(self) -> int:
        return sum(expr.nbytes for _, expr in self.tensors)

    @property
    def copied(self) -> bool:
        return all(expr.spans() is not None for _, expr in self.tensors)


def stretches(shard: Shard, at: int) -> Iterator[Stretch]:
    """A shard in stretches of about STRETCH bytes, in order; its first tensor begins at byte `at`."""
    tensors: list[tuple[str, Expr]] = []
    size = 0
    for name, whole in shard.tensors.items():
        for expr in _pieces(whole):
            if tensors and size + expr.nbytes > STRETCH:
                yield Stretch(at, tensors)
                at, tensors, size = at + size, [], 0
            tensors.append((name, expr))
            size += expr.nbytes
    yield Stretch(at, tensors)


def _pieces(expr: Expr) -> Iterator[Expr]:
    """A tensor's rows, about STRETCH bytes at a time; cut on pages where rows allow, as a shared block must be."""
    row = expr.row_size * BITS[expr.dtype] // 8
    if expr.nbytes <= STRETCH or BITS[expr.dtype] % 8:
        yield expr
        return
    rows, page = max(1, STRETCH // row), PAGE // math.gcd(PAGE, row)
    rows -= rows % page if rows > page else 0
    for lo in range(0, expr.num_rows, rows):
        n = min(rows, expr.num_rows - lo)
        yield Rows(expr, lo, lo + n, (n, expr.row_size) if len(expr.shape) > 1 else (n,))


class ShardWriter:
    """A shard while it is written: stretches in any order, by several threads; the hash follows in file order."""

    def __init__(self, shard: Shard, folder: Path, checksum: bool):
        self.shard, self._folder = shard, folder
        head, self._size = shard.header()
        self.stretches = list(stretches(shard, len(head)))
        self._copies: deque[int] = deque()  # stretches that no worker has taken
        self._computed: deque[int] = deque()
        for index, stretch in enumerate(self.stretches):
            (self._copies if stretch.copied else self._computed).append(index)
        self._hasher = hashlib.sha256(head) if checksum else None
        self._lock = Lock()
        self._whole: set[int] = set()  # stretches that are written
        self._next = 0  # the stretch up to which the hash has come
        self._following = False  # whether a worker is at the hash
        self._not_finite: dict[str, int] = {}
        self._part = folder / f"{shard.file}.part"
        self._out = os.open(self._part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
        _write_all(self._out, head, 0)

    def take(self, helping: bool = False) -> int | None:
        """The next stretch to write, or None; for a helper one that is computed. Not for several threads at once.

        File systems let one at a time write to a file, so there is nothing to gain from a second one that copies.
        """
        heads = [queue for queue in ([self._computed] if helping else [self._copies, self._computed]) if queue]
        return min(heads, key=lambda queue: queue[0]).popleft() if heads else None

    def write(self, index: int, files: Files, stop: Event) -> Iterator[int]:
        """Write one stretch; yields the bytes of each tensor, or part of one, that is done. Raises Stopped."""
        stretch = self.stretches[index]
        at = stretch.at
        for name, expr in stretch.tensors:
            for bad in _write_tensor(expr, self._out, at, files):
                if stop.is_set():
                    raise Stopped
                if bad:
                    with self._lock:
                        self._not_finite[name] = self._not_finite.get(name, 0) + bad
            at += expr.nbytes
            yield expr.nbytes
        begin_writeback(self._out, stretch.at, stretch.nbytes)

    def follow(self, index: int, stop: Event) -> bool:
        """Hash what is whole from the start on, unless another worker is at it. True once, where all is."""
        with self._lock:
            self._whole.add(index)
            if self._following:
                return False  # that worker will find this stretch too
            self._following = True
        while True:
            with self._lock:
                if self._next not in self._whole:
                    self._following = False
                    return self._next == len(self.stretches)
                stretch = self.stretches[self._next]
                self._next += 1
            if stop.is_set():
                raise Stopped
            if self._hasher:
                _hash_back(self._hasher, self._out, stretch.at, stretch.nbytes)

    def seal(self) -> Written:
        """Flush it and give it its name."""
        assert os.fstat(self._out).st_size == self._size, (self.shard.file, self._size)
        os.fsync(self._out)
        self.close()
        os.replace(self._part, self._folder / self.shard.file)
        bad = self._not_finite
        first = next((name for name in self.shard.tensors if name in bad), None)
        return Written(self._size, self._hasher.hexdigest() if self._hasher else None, sum(bad.values()), first)

    def close(self) -> None:
        if self._out >= 0:
            os.close(self._out)
            self._out = -1


def _write_tensor(expr: Expr, out: int, at: int, files: Files) -> Iterator[int]:
    """Write one tensor at byte `at`; yields the NaN and infinite values of each block that was computed."""
    spans = expr.spans()
    if spans is not None:
        for span in merged(spans):
            files.copy(span.path, span.offset, span.nbytes, out, at)
            at += span.nbytes
            yield 0
        return
    window = WINDOW if expr.streams() else LARGE
    rows = max(1, window * 8 // max(1, expr.row_size * BITS[expr.dtype]))
    for lo in range(0, expr.num_rows, rows):
        block = np.ascontiguousarray(expr.raw(lo, min(lo + rows, expr.num_rows), files))
        _write_all(out, block.view(np.uint8).reshape(-1).data if block.size else b"", at)
        at += block.nbytes
        yield count_not_finite(block, expr.dtype)


def _write_all(out: int, data: bytes | memoryview, at: int) -> None:
    written = 0
    while written < len(data):
        written += os.pwrite(out, data[written:], at + written)


def merged(spans: Sequence[Span]) -> Iterator[Span]:
    """Neighbouring runs of one file as one: fewer calls into the kernel."""
    last: Span | None = None
    for span in spans:
        if last and span.path == last.path and span.offset == last.offset + last.nbytes:
            last = Span(last.path, last.offset, last.nbytes + span.nbytes)
            continue
        if last and last.nbytes:
            yield last
        last = span
    if last and last.nbytes:
        yield last


def _hash_back(hasher, out: int, at: int, nbytes: int) -> None:
    """Hash what was just written: it is still in the page cache, copies included."""
    while nbytes:
        data = os.pread(out, min(nbytes, 1 << 22), at)
        hasher.update(data)
        at, nbytes = at + len(data), nbytes - len(data)
