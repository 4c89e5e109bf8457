"""A series of checkpoints to compress: a byte-level GPT of 3.6 M parameters on Python's own library.

AdamW (0.9, 0.999), weight decay 0.1, cosine from 6e-4 to 6e-5 over 640 steps, a save every 40 steps from 240 on, with
the moments. Batches are so small that the loss falls from 2.5 to 2.3 nats meanwhile, as in the series that the targets
were measured on: with larger ones weights move further between saves, and compress less.
"""

from __future__ import annotations

import json
import math
import sysconfig
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file
from transformers import GPT2Config, GPT2LMHeadModel

STEPS, EVERY, FIRST = 640, 40, 240
BATCH, LENGTH = 4, 128
SHAPE = {"n_embd": 240, "n_layer": 5, "n_head": 6, "vocab_size": 256, "n_positions": LENGTH,
         "bos_token_id": 0, "eos_token_id": 0, "embd_pdrop": 0.0, "attn_pdrop": 0.0, "resid_pdrop": 0.0}  # fmt: skip


def make_series(out: Path, say: Callable[[str], object] = print, seed: int = 0) -> list[Path]:
    """Train, and save OUT/step-240 to OUT/step-640, float32 with both moments; what is there already is kept."""
    places = [out / f"step-{step}" for step in range(FIRST, STEPS + 1, EVERY)]
    if all(place.exists() for place in places):
        return places
    torch.manual_seed(seed)
    text, random = _text(), np.random.default_rng(seed)
    model = GPT2LMHeadModel(GPT2Config(**SHAPE))
    optimizer = torch.optim.AdamW(model.parameters(), betas=(0.9, 0.999), weight_decay=0.1)
    for step in range(1, STEPS + 1):
        for group in optimizer.param_groups:
            group["lr"] = 6e-5 + 0.5 * (6e-4 - 6e-5) * (1 + math.cos(math.pi * step / STEPS))
        starts = random.integers(0, len(text) - LENGTH - 1, BATCH)
        batch = torch.from_numpy(np.stack([text[i : i + LENGTH] for i in starts]).astype(np.int64))
        loss = model(input_ids=batch, labels=batch).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad()
        if step % EVERY == 0:
            say(f"step {step}: {loss.item():.3f} nats per byte")
            if step >= FIRST:
                save(model, optimizer, out / f"step-{step}", step)
    return places


def save(model: torch.nn.Module, optimizer: torch.optim.Optimizer, out: Path, step: int) -> None:
    """A folder as `rekindle train` leaves it, as far as an archive is concerned."""
    model.save_pretrained(out)
    moments = {
        f"{name}.{key}": optimizer.state[p][key]
        for name, p in model.named_parameters()
        for key in ("exp_avg", "exp_avg_sq")
    }
    (out / "optimizer").mkdir(exist_ok=True)
    save_file(moments, out / "optimizer" / "optimizer.safetensors")
    described = {"algorithm": "adamw", "steps": {name: step for name, _ in model.named_parameters()}}
    (out / "optimizer" / "optimizer.json").write_text(json.dumps(described), encoding="utf-8")


def _text() -> np.ndarray:
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    return np.frombuffer(b"".join(path.read_bytes() for path in files), np.uint8)
