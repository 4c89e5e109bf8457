"""Training speed: a mixture against a dense model of the same active FLOPs, and our loop against a bare torch loop.

Medians over steps of each run, the runs in turn, so that a machine that slows down slows both.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import median
from typing import Any

from benchmarks.measure import Row, drop, record
from rekindle import api

ROUNDS = 3
SHAPE = {"hidden": 64, "layers": 2, "heads": 4, "context": 256, "tokenizer": "bpe:1024"}
MODELS = {
    "dense": SHAPE | {"ffn": 512},  # as many active parameters as two experts of 256
    "MoE, 8 experts, top-2": SHAPE | {"family": "mixtral", "ffn": 256, "experts": 8, "top_k": 2},
}
BATCH, LENGTH, STEPS = 4096, 128, 40


def main(work: Path) -> None:
    import torch

    device = "GPU " + torch.cuda.get_device_name() if torch.cuda.is_available() else "CPU"
    speeds: dict[str, list[float]] = {}
    bare: dict[str, list[float]] = {}
    for name, shape in MODELS.items():
        api.init(work / name, **shape)
    for _ in range(ROUNDS):
        for name in MODELS:
            speeds.setdefault(name, []).append(ours(work / name, work / "run"))
            bare.setdefault(name, []).append(bare_loop(work / name))
    rows = []
    for name in MODELS:
        us, them = median(speeds[name]), median(bare[name])
        overhead = median(b / a - 1 for a, b in zip(speeds[name], bare[name], strict=True))
        against = f"bare loop {them:,.0f} tokens/s"
        rows.append(Row(f"{name}, {device}", f"{us:,.0f} tokens/s", against, f"overhead {overhead:+.1%}", "<= 5 %"))
    dense, sparse = (median(speeds[name]) for name in MODELS)
    rows.append(Row("MoE against dense, same active FLOPs", f"{sparse / dense:.2f}", "1", "", ""))
    record(f"Training: hidden 64, 2 layers, {BATCH} tokens a step of {LENGTH}", rows)


def ours(source: Path, out: Path) -> float:
    """Median tokens per second of our loop over its later steps."""
    drop(out)
    api.train(source, out, tokens=BATCH * STEPS, batch_tokens=BATCH, seq_len=LENGTH, eval_tokens=LENGTH, lr=1e-3)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    drop(out)
    return median(row["tokens_per_s"] for row in rows if row["kind"] == "step" and row["step"] > STEPS // 4)


def bare_loop(source: Path) -> float:
    """The same model, losses and optimizer in the fewest lines of torch; random tokens, no logging."""
    import torch
    from transformers import AutoModelForCausalLM

    from rekindle.apply.load import quietly

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with quietly():
        model = AutoModelForCausalLM.from_pretrained(source).to(device)
    experts: dict[str, Any] = {"output_router_logits": True} if hasattr(model.config, "num_experts_per_tok") else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    ids = torch.randint(0, model.config.vocab_size, (STEPS, BATCH // LENGTH, LENGTH), device=device)
    times = []
    for batch in ids:
        start = time.perf_counter()
        loss = model(input_ids=batch, labels=batch, use_cache=False, **experts).loss
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        times.append(time.perf_counter() - start)
    return BATCH / median(times[STEPS // 4 :])
