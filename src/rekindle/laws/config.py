"""The options of `plan` and `fit`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rekindle.config import Count, option
from rekindle.laws.cost import Gpu

Objective = Literal["huber", "squares"]
DELTA = 1e-3  # of Huber's loss, in ln nats


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


@dataclass(frozen=True, kw_only=True)
class FitConfig:
    form: str | None = option(
        None,
        help="upcycling, upcycling-data, no-interaction, additive, chinchilla, one-stage, moe-...; by default "
        "upcycling where runs have sunk tokens, else chinchilla",
    )
    objective: Objective = option("huber", help="huber: of log residuals, summed; squares: of residuals in nats")
    delta: float = option(DELTA, help="where Huber's loss turns linear, in ln nats")
    bootstrap: int = option(4000, help="fits of resampled runs, or of trunks where runs share one")
    seed: int = option(42, help="of the bootstrap")
    columns: tuple[str, ...] = option((), help="the file's names for ours, such as params=N,tokens=D2")
    max_loss: float | None = option(None, help="leave out points above this loss, nats per token")
    next: tuple[str, ...] = option((), help="suggest the next run to decide at params=1B,sunk=100B,tokens=50B")
