"""Checkpoint folders made by hand: a tiny llama of known bytes, whole or in shards, no torch needed."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import numpy as np
from store.safetensors_bytes import file_of

from rekindle.anatomy import FAMILIES
from rekindle.store.dtypes import from_float

TINY_LLAMA = {
    "architectures": ["LlamaForCausalLM"], "model_type": "llama", "vocab_size": 64, "hidden_size": 32,
    "intermediate_size": 48, "num_hidden_layers": 2, "num_attention_heads": 4, "num_key_value_heads": 2,
    "max_position_embeddings": 64, "rms_norm_eps": 1e-5, "rope_theta": 10000.0, "tie_word_embeddings": False,
    "torch_dtype": "bfloat16", "hidden_act": "silu",
}  # fmt: skip

Tensors = dict[str, tuple[str, tuple[int, ...], bytes]]


def llama_tensors(dtype: str = "BF16", config: dict[str, Any] = TINY_LLAMA) -> Tensors:
    """Random weights under the names of the family's table."""
    rng, family = np.random.default_rng(0), FAMILIES["llama"]
    return {
        name: (dtype, shape, from_float(rng.standard_normal(shape, np.float32), dtype).tobytes())
        for _, (name, shape, _) in family.table(family.settings(config))
    }


def write_llama(folder: Path, shards: int = 1, tensors: Tensors | None = None, **config: Any) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    tensors = llama_tensors(config=TINY_LLAMA | config) if tensors is None else tensors
    (folder / "config.json").write_text(json.dumps(TINY_LLAMA | config))
    if shards == 1:
        (folder / "model.safetensors").write_bytes(file_of(tensors, {"format": "pt"}))
        return folder
    weight_map = {name: f"model-{i % shards + 1:05d}-of-{shards:05d}.safetensors" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        (folder / file).write_bytes(file_of({n: t for n, t in tensors.items() if weight_map[n] == file}))
    write_index(folder, weight_map)
    return folder


def write_index(folder: Path, weight_map: Any) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": weight_map}))


def index_of(folder: Path) -> dict[str, str]:
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


def hashes(folder: Path) -> dict[str, str]:
    """SHA-256 of every weight file."""
    return {
        str(path.relative_to(folder)): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*.safetensors"))
    }
