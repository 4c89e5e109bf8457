"""Of several processes that torchrun or accelerate started together: how many they are, and which one speaks.

Both set LOCAL_RANK. WORLD_SIZE and RANK alone a cluster may give to whole machines, whose commands are each their own.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

SET = ("RANK", "LOCAL_RANK", "GROUP_RANK", "ROLE_RANK", "MASTER_ADDR", "MASTER_PORT")
SET += ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "GROUP_WORLD_SIZE", "ROLE_WORLD_SIZE")


def number_of_ranks() -> int:
    return int(os.environ.get("WORLD_SIZE", "1")) if _launched() else 1


def is_main_rank() -> bool:
    return not _launched() or os.environ.get("RANK", "0") == "0"


@contextmanager
def alone() -> Iterator[None]:
    """Inside `with` this process is the only one, to accelerate too, which else would wait for the others."""
    hidden = {name: os.environ.pop(name) for name in SET if name in os.environ} if _launched() else {}
    try:
        yield
    finally:
        os.environ.update(hidden)


def _launched() -> bool:
    return "LOCAL_RANK" in os.environ
