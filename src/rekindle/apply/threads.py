"""Whose the processor's cores are."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


@contextmanager
def one_for_each_worker() -> Iterator[None]:
    """Keep numpy's BLAS to one thread: our workers fill the cores, and threads of theirs would wait for one another."""
    import numpy  # noqa: F401  (a library that is not loaded yet cannot be told)
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield
