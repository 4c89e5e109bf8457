"""Adapter folders as peft writes them, without it."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

QKV = ("q_proj", "k_proj", "v_proj")
Pairs = dict[str, tuple[torch.Tensor, torch.Tensor]]


def matrices(
    weights: Mapping[str, torch.Tensor], modules: Iterable[str], *, rank: int, turned: bool = False, seed: int = 0
) -> Pairs:
    """A [rank, in] and B [out, rank] for the weights of these modules, which are `turned` where they are [in, out]."""
    generator, found = torch.Generator().manual_seed(seed), {}
    for module in modules:
        out, into = weights[f"{module}.weight"].shape[:: -1 if turned else 1]
        a, b = torch.randn(rank, into, generator=generator), torch.randn(out, rank, generator=generator)
        found[module] = a * 0.3, b * 0.3
    return found


def write_adapter(folder: Path, pairs: Pairs, more: Mapping[str, torch.Tensor] | None = None, **config: Any) -> Path:
    """alpha is 8; `more`: tensors by their whole names."""
    tensors = dict(more or {})
    for module, (a, b) in pairs.items():
        tensors |= {f"base_model.model.{module}.lora_A.weight": a, f"base_model.model.{module}.lora_B.weight": b}
    folder.mkdir(parents=True)
    described = {"peft_type": "LORA", "base_model_name_or_path": None, "r": 8, "lora_alpha": 8} | config
    (folder / "adapter_config.json").write_text(json.dumps(described))
    save_file({name: x.clone().contiguous() for name, x in tensors.items()}, folder / "adapter_model.safetensors")
    return folder
