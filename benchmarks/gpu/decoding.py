"""Decoding with the key-value heads that a model was made with, and with fewer: `rekindle gqa` of the same checkpoint.

Greedy, by transformers' model and its growing cache. The weights are random: what is measured is time and memory.
"""

from __future__ import annotations

from statistics import median
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.bench import DEVICE, Bench, seconds, settle
from benchmarks.model import make
from rekindle import api
from rekindle.apply.load import load_model


def measure_decoding(bench: Bench, heads: int) -> dict[str, Any]:
    sizes, source = bench.sizes, bench.work / f"served {heads}"
    made, *_ = sizes.kv_heads
    own = {"num_attention_heads": made, "num_key_value_heads": made}
    parent = make(bench.work / f"served {made}", layers=sizes.layers, **own, **(sizes.served or {}))
    if heads != made:
        api.gqa(api.open(parent), kv_heads=heads).save(source)
    model = load_model(source, "bfloat16").to(DEVICE).eval()
    weights, found = sum(p.nbytes for p in model.parameters()), {}
    for batch in sizes.batches:
        prompt = torch.randint(2, 1000, (batch, sizes.prompt), device=DEVICE)
        runs = [decoded(model, prompt, sizes.new) for _ in range(1 + sizes.repeats)][1:]
        wall, (_, cache, peak) = median(run[0] for run in runs), runs[0]
        floor = (weights + cache) / bench.peak["bandwidth"]
        kernels = busy(model, prompt) if DEVICE.type == "cuda" else None
        times = f"{wall * 1e3:.2f} ms a token" + (f", kernels {kernels * 1e3:.2f} ms of it" if kernels else "")
        memory = f"cache {cache / 1e6:,.1f} MB, at most {peak / 1e9:.2f} GB held"
        what = f"decoding, batch {batch}, {heads} key-value heads"
        bench.row(what, times, memory, f"weights and cache read once {floor * 1e3:.2f} ms")
        found[f"batch {batch}"] = {"s_per_token": wall, "kernels_s": kernels, "floor_s": floor, "cache": cache}
        found[f"batch {batch}"] |= {"peak": peak, "runs": [run[0] for run in runs]}
    return found | {"weights": weights}


@torch.inference_mode()
def decoded(model: Any, prompt: torch.Tensor, new: int) -> tuple[float, int, int]:
    """Seconds per token, bytes of the cache at the end, and the most memory held while decoding."""
    cache, token = prefilled(model, prompt)
    if DEVICE.type == "cuda":
        torch.cuda.reset_peak_memory_stats()
    taken = seconds(lambda: written(model, cache, token, new)) / new
    held = sum(layer.keys.nbytes + layer.values.nbytes for layer in cache.layers)
    return taken, held, torch.cuda.max_memory_allocated() if DEVICE.type == "cuda" else 0


@torch.inference_mode()
def busy(model: Any, prompt: torch.Tensor, new: int = 8) -> float:
    """Seconds per token that kernels ran: what is left where they do not wait for Python to launch them."""
    cache, token = prefilled(model, prompt)
    settle()
    with profile(activities=[ProfilerActivity.CUDA]) as kernels:
        written(model, cache, token, new)
        settle()
    return sum(event.self_device_time_total for event in kernels.key_averages()) / 1e6 / new


def prefilled(model: Any, prompt: torch.Tensor) -> tuple[Any, torch.Tensor]:
    """The cache after a prompt [batch, T], and the next token [batch, 1]."""
    out = model(prompt, use_cache=True, logits_to_keep=1)
    return out.past_key_values, out.logits.argmax(-1)


def written(model: Any, cache: Any, token: torch.Tensor, new: int) -> None:
    for _ in range(new):
        token = model(token, past_key_values=cache, use_cache=True).logits.argmax(-1)
