"""Of several processes that torchrun or accelerate started together: how many they are, and which one speaks.

Both set LOCAL_RANK. WORLD_SIZE and RANK alone a cluster may give to whole machines, whose commands are each their own.
"""

from __future__ import annotations

import os


def number_of_ranks() -> int:
    return int(os.environ.get("WORLD_SIZE", "1")) if _launched() else 1


def is_main_rank() -> bool:
    return not _launched() or os.environ.get("RANK", "0") == "0"


def _launched() -> bool:
    return "LOCAL_RANK" in os.environ
