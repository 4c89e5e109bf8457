"""Loops in C that were built beside a module, where they can be loaded."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

Loops = TypeVar("Loops")


def native(load: Callable[[Path], Loops], stem: Path, variable: str) -> Loops | None:
    """What `load` makes of a library STEM*; None without one, and where the environment says VARIABLE=numpy."""
    if os.environ.get(variable) != "numpy":
        for library in sorted(stem.parent.glob(f"{stem.name}*")):
            try:
                return load(library)
            except (OSError, AttributeError):  # of another machine, or of another Rekindle
                continue
    return None
