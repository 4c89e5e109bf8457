"""Adam's state of a checkpoint, made by hand: moments whose values tell where they came from."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
from store.safetensors_bytes import file_of

from rekindle.store.folder import open_folder


def moments_of(folder: Path, seed: int = 1) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """exp_avg and exp_avg_sq of each tensor: random, the second positive."""
    rng, made = np.random.default_rng(seed), {}
    for name, tensor in open_folder(folder).tensors.items():
        first = rng.standard_normal(tensor.shape, np.float32)
        made[f"{name}.exp_avg"] = ("F32", tensor.shape, first.tobytes())
        made[f"{name}.exp_avg_sq"] = ("F32", tensor.shape, (first * first).tobytes())
    return made


def write_moments(folder: Path, of: Path, moments: dict | None = None, steps: dict[str, int] | None = None) -> Path:
    folder.mkdir()
    moments = moments_of(of) if moments is None else moments
    names = {name.rsplit(".", 1)[0] for name in moments}
    (folder / "optimizer.safetensors").write_bytes(file_of(moments))
    info = {"kind": "adamw", "steps": dict.fromkeys(sorted(names), 100) | (steps or {})}
    (folder / "optimizer.json").write_text(json.dumps(info))
    return folder
