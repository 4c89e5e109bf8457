"""Where steps run: processes of this machine, or a Ray cluster that shares OUT's file system."""

from __future__ import annotations

import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Future, ProcessPoolExecutor
from contextlib import suppress
from importlib.util import find_spec
from typing import Any

from rekindle import progress
from rekindle.apply.threads import cores
from rekindle.errors import Ended, RekindleError, nearest
from rekindle.sweep.steps import Engine

ENGINES = ("local", "ray")
_GRACE = 20.0  # seconds a worker has to save its state once its parent is gone


def check_engine(name: str, workers: int | None) -> None:
    """Raises RekindleError for an engine that is not there."""
    if name not in ENGINES:
        raise RekindleError(f"There is no engine {name!r}.", hint=nearest(name, ENGINES) or " or ".join(ENGINES))
    if workers is not None and workers < 1:
        raise RekindleError(f"{workers} workers do nothing.", hint="--workers 2")
    if name == "ray" and find_spec("ray") is None:
        raise RekindleError("Ray is not installed.", hint="pip install 'rekindle[ray]', or --engine local")


def engine_named(name: str, workers: int | None = None) -> Engine:
    """Raises RekindleError for an engine that is not there."""
    check_engine(name, workers)
    return Ray(workers) if name == "ray" else Local(workers)


class Local:
    """Processes, one thread each: tiny models run fastest so. With a GPU one process, unless told otherwise."""

    def __init__(self, workers: int | None = None):
        import torch

        self.workers = workers or (1 if torch.cuda.is_available() else cores())
        self._threads = max(1, cores() // self.workers)
        self._pool: ProcessPoolExecutor | None = None
        self._before: Any = None  # what a SIGTERM did

    def submit(self, function: Callable[..., str], *arguments: Any) -> Future[str]:
        if self._pool is None:
            context = multiprocessing.get_context("spawn")
            self._pool = ProcessPoolExecutor(
                self.workers, mp_context=context, initializer=_begin, initargs=(self._threads,)
            )
        try:
            return self._pool.submit(function, *arguments)
        except BrokenExecutor:  # a worker died and took the pool with it
            self._pool = None
            return self.submit(function, *arguments)

    def stop(self) -> None:
        if self._pool is not None:
            self._pool.shutdown(cancel_futures=True)
        self._pool = None

    def __enter__(self) -> Local:
        """From here on a SIGTERM reaches the workers too, as Ctrl-C does."""
        import psutil  # noqa: F401  (loaded before a signal comes, and a second while it loads)

        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGTERM, _terminated)
        return self

    def __exit__(self, *error: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGTERM, self._before)
        self.stop()


class Ray:
    """Tasks of a Ray cluster: RAY_ADDRESS's, or one started here. A task whose worker dies is begun again by Ray.

    OUT must lie on a file system that all machines share; a step goes on where its run last saved its state.
    """

    def __init__(self, workers: int | None = None):
        import ray

        self._own = not ray.is_initialized()
        if self._own:
            there = os.environ.get("RAY_ADDRESS")
            settings: dict[str, Any] = {} if there else {"num_cpus": workers, "include_dashboard": False}
            ray.init(log_to_driver=False, logging_level=logging.WARNING, **settings)
        self._ray, self._tasks = ray, []
        self.workers = workers or int(ray.cluster_resources().get("CPU", 1))

    def submit(self, function: Callable[..., str], *arguments: Any) -> Future[str]:
        options = {"num_cpus": 1, "max_retries": 3, "runtime_env": {"env_vars": {"OMP_NUM_THREADS": "1"}}}
        task = self._ray.remote(function).options(**options).remote(*arguments)
        self._tasks.append(task)
        return task.future()

    def stop(self) -> None:
        for task in self._tasks:
            self._ray.cancel(task, force=True)

    def __enter__(self) -> Ray:
        return self

    def __exit__(self, *error: object) -> None:
        if self._own:
            self._ray.shutdown()


def _terminated(number: int, frame: object) -> None:
    import psutil

    workers = psutil.Process().children(recursive=True)
    for worker in workers:
        worker.terminate()  # a run saves its state
    threading.Thread(target=_kill_what_stays, args=(workers,), daemon=True).start()
    raise Ended(number)


def _kill_what_stays(workers: list[Any]) -> None:
    """A pool that lost a worker waits for the others, and one whose run was just stopped waits for the next step."""
    import psutil

    for worker in psutil.wait_procs(workers, timeout=_GRACE)[1]:
        with suppress(psutil.NoSuchProcess):
            worker.kill()


def _end_with_parent() -> None:
    """A worker whose parent was killed without a word ends too: first as if asked to, so that a run saves its state."""
    parent = multiprocessing.parent_process()
    assert parent is not None

    def watch() -> None:
        parent.join()  # the pipe that the parent held closes with it, on every system
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(_GRACE)
        os._exit(1)

    threading.Thread(target=watch, daemon=True).start()


def _begin(threads: int) -> None:
    _end_with_parent()
    progress.use("off")  # the sweep tells of its steps; what each of many says of its own would run together
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    import torch

    torch.set_num_threads(threads)
