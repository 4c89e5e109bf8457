"""Training speed: a mixture against a dense model of the same active FLOPs, and our loop against a bare torch loop.

The runs take turns, and each side is judged by its ninth decile of steps: on a shared machine medians of the very
same loop were seen to differ by 20 %, the fast steps by 2 %.
"""

from __future__ import annotations

import json
import time
from pathlib import Path
from statistics import quantiles
from typing import Any

from benchmarks.measure import Row, drop, record
from rekindle import api

ROUNDS = 5
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
            speeds.setdefault(name, []).extend(ours(work / name, work / "run"))
            bare.setdefault(name, []).extend(bare_loop(work / name))
    rows = []
    for name in MODELS:
        us, them = fast(speeds[name]), fast(bare[name])
        against = f"bare loop {them:,.0f} tokens/s"
        rows.append(
            Row(f"{name}, {device}", f"{us:,.0f} tokens/s", against, f"overhead {them / us - 1:+.1%}", "<= 5 %")
        )
    dense, sparse = (fast(speeds[name]) for name in MODELS)
    rows.append(Row("MoE against dense, same active FLOPs", f"{sparse / dense:.2f}", "1", "", ""))
    record(f"Training: hidden 64, 2 layers, {BATCH} tokens a step of {LENGTH}", rows)


def fast(speeds: list[float]) -> float:
    """The ninth decile."""
    return quantiles(speeds, n=10)[-1]


def ours(source: Path, out: Path) -> list[float]:
    """Tokens per second of our loop's later steps."""
    drop(out)
    whole = BATCH * STEPS
    rare = {"eval_tokens": LENGTH, "eval_every": whole, "save_every": whole}  # by default ten in a run, however short
    api.train(source, out, tokens=whole, batch_tokens=BATCH, seq_len=LENGTH, lr=1e-3, **rare)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    drop(out)
    return [row["tokens_per_s"] for row in rows if row["kind"] == "step" and row["step"] > STEPS // 4]


def bare_loop(source: Path) -> list[float]:
    """The same model, losses and optimizer in the fewest lines of torch; the same kind of text, no logging."""
    import torch
    from transformers import AutoModelForCausalLM

    from rekindle.apply.load import quietly
    from rekindle.train.tokens import sample_tokens

    device = "cuda" if torch.cuda.is_available() else "cpu"
    with quietly():
        model = AutoModelForCausalLM.from_pretrained(source).to(device)
    experts: dict[str, Any] = {"output_router_logits": True} if hasattr(model.config, "num_experts_per_tok") else {}
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, fused=True)
    windows = sample_tokens(source, "stdlib", BATCH * STEPS, LENGTH)[: STEPS * BATCH // LENGTH]
    ids = torch.from_numpy(windows).to(device).split(BATCH // LENGTH)
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
    return [BATCH / seconds for seconds in times[STEPS // 4 : -1]]
