"""Tiny models made untidy, and what transformers computes with them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from rekindle.apply.load import quietly


def edit_config(folder: Path, **changes: Any) -> None:
    """Set keys of config.json; None takes one out."""
    path = folder / "config.json"
    config = {key: value for key, value in json.loads(path.read_text()).items() if key not in changes}
    path.write_text(json.dumps(config | {key: value for key, value in changes.items() if value is not None}))


def rename_all(folder: Path, renamed: Callable[[str], str]) -> None:
    path = folder / "model.safetensors"
    save_file({renamed(name): tensor for name, tensor in load_file(path).items()}, path, metadata={"format": "pt"})


def retie(folder: Path, *, head: str) -> Path:
    """Store the head of a tied model too ("equal", "random"), or in place of the embeddings ("alone")."""
    tensors = load_file(folder / "model.safetensors")
    name = next(n for n in tensors if n.endswith(("embed_tokens.weight", "wte.weight")))
    embed = tensors[name]
    tensors["lm_head.weight"] = embed.clone()
    if head == "random":
        tensors["lm_head.weight"] = torch.randn(embed.shape, generator=torch.Generator().manual_seed(1)).to(embed.dtype)
    if head == "alone":
        del tensors[name]
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    return folder


def logits(folder: Path) -> torch.Tensor:
    """What the causal model of a folder computes on fixed ids, as transformers alone loads it."""
    from transformers import AutoModelForCausalLM

    with quietly():
        model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    ids = torch.randint(0, model.config.vocab_size, (2, 24), generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        return model(input_ids=ids, use_cache=False).logits
