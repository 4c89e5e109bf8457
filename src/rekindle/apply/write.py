"""Write shards: plain copies file to file in the kernel, the rest through a bounded window, by several threads.

Threads suffice: the kernel copies and numpy's loops run without the interpreter's lock. A shard is written under a
temporary name, flushed, and renamed; `--resume` keeps the shards that have their name.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from dataclasses import dataclass
from pathlib import Path
from threading import Event

import numpy as np

from rekindle.apply.shards import Shard
from rekindle.edit.arithmetic import Fill, Normal
from rekindle.edit.expressions import Expr, Span
from rekindle.errors import RekindleError
from rekindle.store.dtypes import BITS, count_not_finite
from rekindle.store.files import Files, begin_writeback

WINDOW = 1 << 21  # bytes of output made at once by one worker: fits the cache, and memory stays small
WRITEBACK = 1 << 25  # bytes after which the disc is set to work
JOURNAL = "journal.json"

Progress = Callable[[int], object]  # called with bytes done


@dataclass(frozen=True)
class Written:
    bytes: int
    sha256: str | None
    not_finite: int  # NaN and infinite values among the computed ones
    where: str | None = None  # the first tensor that has some


class Stopped(Exception):
    """Another worker failed."""


def write_shards(
    shards: Sequence[Shard],
    folder: Path,
    *,
    checksum: bool,
    workers: int,
    digest: str,
    resume: bool,
    progress: Progress,
) -> dict[str, Written]:
    """Write all shards into `folder`, finished ones first looked up in its journal. Returns {file: Written}."""
    done = finished(folder, digest) if resume else {}
    for written in done.values():
        progress(written.bytes)
    todo = [shard for shard in shards if shard.file not in done]
    _reserve(todo, folder)
    stop = Event()
    with Files() as files, ThreadPoolExecutor(max(1, min(workers, len(todo) or 1))) as pool:
        jobs = {pool.submit(_write_shard, s, folder, files, checksum, progress, stop): s for s in todo}
        try:
            pending = set(jobs)
            while pending:
                ended, pending = wait(pending, timeout=0.2, return_when=FIRST_EXCEPTION)
                for job in sorted(ended, key=lambda job: job.exception() is not None):  # note what is whole first
                    done[jobs[job].file] = job.result()
                    _note(folder, digest, done)
        except BaseException:
            stop.set()
            pool.shutdown(wait=False, cancel_futures=True)
            raise
    return {shard.file: done[shard.file] for shard in shards}


def _reserve(shards: Sequence[Shard], folder: Path) -> None:
    """Refuse before the first byte where the disc cannot hold the plan."""
    needed = sum(shard.header()[1] for shard in shards)
    stat = os.statvfs(folder)
    free = stat.f_bavail * stat.f_frsize
    if needed > free:
        raise RekindleError(
            f"The result needs {needed / 1e9:.2f} GB, but the disc has {free / 1e9:.2f} GB free.",
            where=folder.parent,
            hint="free some space, or another OUT",
        )


def _write_shard(shard: Shard, folder: Path, files: Files, checksum: bool, progress: Progress, stop: Event) -> Written:
    head, size = shard.header()
    part = folder / f"{shard.file}.part"
    not_finite: dict[str, int] = {}
    hasher = hashlib.sha256(head) if checksum else None
    out = os.open(part, os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o644)
    try:
        _write_all(out, head, 0)
        at = flushed = len(head)
        for name, expr in shard.tensors.items():
            for bad in _write_tensor(expr, out, at, files):
                if stop.is_set():
                    raise Stopped
                if bad:
                    not_finite[name] = not_finite.get(name, 0) + bad
            if hasher:
                _hash_back(hasher, out, at, expr.nbytes)
            at += expr.nbytes
            if at - flushed >= WRITEBACK:
                begin_writeback(out, flushed, at - flushed)
                flushed = at
            progress(expr.nbytes)
        assert at == size == os.fstat(out).st_size, (at, size)
        os.fsync(out)
    finally:
        os.close(out)
    os.replace(part, folder / shard.file)
    digest = hasher.hexdigest() if hasher else None
    return Written(size, digest, sum(not_finite.values()), next(iter(not_finite), None))


def _write_tensor(expr: Expr, out: int, at: int, files: Files) -> Iterator[int]:
    """Write one tensor at byte `at`; yields the NaN and infinite values of each block that was computed."""
    spans = expr.spans()
    if spans is not None:
        for span in merged(spans):
            files.copy(span.path, span.offset, span.nbytes, out, at)
            at += span.nbytes
            yield 0
        return
    rows = max(1, WINDOW * 8 // max(1, expr.row_size * BITS[expr.dtype]))
    for lo in range(0, expr.num_rows, rows):
        block = np.ascontiguousarray(expr.raw(lo, min(lo + rows, expr.num_rows), files))
        _write_all(out, block.view(np.uint8).reshape(-1).data if block.size else b"", at)
        at += block.nbytes
        yield 0 if isinstance(expr, (Fill, Normal)) else count_not_finite(block, expr.dtype)


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


# -- the journal of an interrupted write -----------------------------------------------------------------------


def _note(folder: Path, digest: str, done: dict[str, Written]) -> None:
    state = {"plan": digest, "done": {file: vars(written) for file, written in done.items()}}
    temporary = folder / f"{JOURNAL}.part"
    temporary.write_text(json.dumps(state), encoding="utf-8")
    os.replace(temporary, folder / JOURNAL)


def finished(folder: Path, digest: str) -> dict[str, Written]:
    """Shards of the same plan that an earlier attempt finished; {} where there is nothing to resume."""
    try:
        state = json.loads((folder / JOURNAL).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    if not isinstance(state, dict) or state.get("plan") != digest:
        return {}
    done = {file: Written(**written) for file, written in state["done"].items()}
    return {f: w for f, w in done.items() if (folder / f).is_file() and (folder / f).stat().st_size == w.bytes}
