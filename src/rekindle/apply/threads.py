"""Whose the processor's cores are."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

from rekindle.errors import RekindleError

MOST = 1024  # threads; more of them only wait


def cores() -> int:
    """Those that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def check_workers(workers: int) -> int:
    """Refuse a number of workers that is none."""
    if not 1 <= workers <= MOST:
        raise RekindleError(f"workers is {workers}: from 1 to {MOST}, threads that work at once.", hint="--workers 2")
    return workers


def workers_of(workers: int | None) -> int:
    """As many as were asked for, or as there are cores."""
    return cores() if workers is None else check_workers(workers)


def keep_freed() -> None:
    """Have glibc keep memory that is freed: windows come and go, and their pages anew would take longer than the sums.

    It keeps as much as the largest block that it has given back so far, up to 32 MB of each worker's.
    """
    import numpy as np

    np.empty(31 << 20, np.uint8)  # its pages are never touched


@contextmanager
def one_for_each_worker() -> Iterator[None]:
    """Keep numpy's BLAS to one thread: our workers fill the cores, and threads of theirs would wait for one another."""
    import numpy  # noqa: F401  (a library that is not loaded yet cannot be told)
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield
