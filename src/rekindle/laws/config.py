"""The options of `plan`."""

from __future__ import annotations

from dataclasses import dataclass

from rekindle.config import Count, option
from rekindle.laws.cost import Gpu


@dataclass(frozen=True, kw_only=True)
class PlanConfig:
    params: Count | None = option(None, help="N1, all parameters of the dense checkpoint; --ckpt knows")
    sunk: Count | None = option(None, help="D1, tokens it was trained on, its anneal included; --ckpt may know")
    tokens: Count | None = option(None, help="D2, tokens of the second stage")
    experts: int = option(8, help="E, experts of the mixture")
    top_k: int = option(2, help="K, experts of a token; active parameters N2 = N1 (1 + (K - 1) feed-forward share)")
    law: str = option("upcycling-2025", help="a law's name, see `rekindle laws`, or a file of your own")
    ckpt: str | None = option(None, help="checkpoint to read size, shape and lineage from")
    budget_flops: float | None = option(None, help="FLOPs of the second stage, 6 x N2 x D2")
    days: float | None = option(None, help="time of the second stage on all GPUs: another way to give the FLOPs")
    gpus: int = option(8, help="how many")
    gpu: Gpu = option("h100", help="which kind, for its bf16 peak")
    mfu: float = option(0.4, help="share of the peak that training reaches")
    price: float | None = option(None, help="of a GPU-hour, in any currency")
