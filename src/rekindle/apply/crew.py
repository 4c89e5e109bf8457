"""Write all shards, with several workers, and keep a journal of the finished ones for `--resume`.

Workers are threads: the kernel copies and numpy's loops run without the interpreter's lock. Each begins shards of its
own, and when there are none left helps with what is computed in the others'.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import FIRST_EXCEPTION, ThreadPoolExecutor, wait
from pathlib import Path
from threading import Event, Lock

from rekindle.apply.shards import Shard
from rekindle.apply.threads import keep_freed
from rekindle.apply.write import ShardWriter, Written
from rekindle.errors import RekindleError
from rekindle.store.files import Files

JOURNAL = ".journal"  # a name that no file of a checkpoint has

Progress = Callable[[int], object]  # called with bytes done


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
    keep_freed()
    workers, stop, turn = max(1, workers), Event(), Lock()
    waiting, begun = iter(todo), list[ShardWriter]()

    def stretches() -> Iterator[tuple[ShardWriter, int]]:
        """What one worker writes: its own shards, then what is computed in others'."""
        for shard in waiting:
            own = ShardWriter(shard, folder, checksum)
            begun.append(own)
            while (index := own.take()) is not None:
                yield own, index
        while helped := next(((w, i) for w in begun if (i := w.take(helping=True)) is not None), None):
            yield helped

    def work() -> None:
        mine = stretches()
        while True:
            with turn:
                writer, index = next(mine, (None, 0))
                if writer is None or stop.is_set():
                    return
            for nbytes in writer.write(index, files, stop):
                with turn:
                    progress(nbytes)
            if writer.follow(index, stop):
                written = writer.seal()
                with turn:
                    begun.remove(writer)
                    done[writer.shard.file] = written
                    _note(folder, digest, done)

    try:
        with Files() as files, ThreadPoolExecutor(workers) as pool:
            jobs = [pool.submit(work) for _ in range(workers)]
            try:
                for job in wait(jobs, return_when=FIRST_EXCEPTION).done:
                    job.result()
            except BaseException:
                stop.set()
                raise
    finally:
        for writer in begun:
            writer.close()
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
