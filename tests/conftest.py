"""Tiny real models, once a session for each shape of them."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from tiny_models import save_tiny


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny("llama", dtype="bfloat16", tie_word_embeddings=True): the folder of a saved model."""
    made: dict[tuple, Path] = {}

    def make(family: str, dtype: str = "float32", fused: bool = False, **changes: object) -> Path:
        key = (family, dtype, fused, *sorted((k, str(v)) for k, v in changes.items()))
        if key not in made:
            made[key] = save_tiny(tmp_path_factory.mktemp(family), family, dtype, fused, changes)
        return made[key]

    return make
