"""What training and serving cost: GPU-hours, money, memory. Dense bf16 peaks, as the makers print them."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any, Literal, get_args

from rekindle.errors import RekindleError, together
from rekindle.laws.question import FLOPS, Question

Gpu = Literal["a100", "h100", "h200", "b200", "mi300x", "l40s", "rtx4090"]
# FLOP/s in bf16 without sparsity
PEAK: dict[str, float] = {
    "a100": 312e12,
    "h100": 989e12,
    "h200": 989e12,
    "b200": 2250e12,
    "mi300x": 1307e12,
    "l40s": 362e12,
    "rtx4090": 165e12,
}
assert set(get_args(Gpu)) == set(PEAK)


@dataclass(frozen=True)
class Machines:
    """`gpus` of a kind, at `mfu` of their peak, for `price` an hour each."""

    gpus: int = 8
    gpu: Gpu = "h100"
    mfu: float = 0.4
    price: float | None = None

    def __post_init__(self) -> None:
        problems = []
        if self.gpus < 1:
            problems.append(RekindleError(f"gpus is {self.gpus}.", hint="--gpus 8"))
        if not 0 < self.mfu <= 1:
            problems.append(RekindleError(f"mfu is {self.mfu:g}: a share of the peak.", hint="--mfu 0.4"))
        if self.price is not None and not 0 <= self.price < float("inf"):
            problems.append(RekindleError(f"price is {self.price:g}.", hint="--price 2.5"))
        if problems:
            raise together(problems)

    def flops(self, days: float) -> float:
        """What they compute in that time."""
        return self.gpus * PEAK[self.gpu] * self.mfu * days * 86400

    def cost(self, flops: float) -> dict[str, float | None]:
        """Of that many FLOPs: GPU-hours, days on all GPUs, and money where there is a price."""
        hours = flops / (PEAK[self.gpu] * self.mfu * 3600)
        return {
            "flops": flops,
            "gpu_hours": hours,
            "days": hours / self.gpus / 24,
            "money": None if self.price is None else hours * self.price,
        }


@dataclass(frozen=True)
class Serving:
    """What a model costs to serve; bytes in bf16."""

    total: float  # parameters
    active: float
    flops_per_token: float
    weight_bytes: float
    kv_bytes_per_token: float
    kv_estimated: bool  # from the size alone


def serving(q: Question, kv_bytes: float | None) -> dict[str, dict[str, Any]]:
    """Of the dense model and of the mixture, which has the same attention."""
    kv = typical_kv_bytes(q.params) if kv_bytes is None else kv_bytes
    sizes = {"dense": (q.params, q.params), "mixture": (q.total, q.active)}
    return {
        name: asdict(Serving(total, active, FLOPS / 3 * active, 2 * total, kv, kv_bytes is None))
        for name, (total, active) in sizes.items()
    }


def typical_kv_bytes(params: float) -> float:
    """KV cache of a token, bytes: of 12 L h^2 parameters with h = 128 L, a key and a value for each head."""
    layers = (params / (12 * 128**2)) ** (1 / 3)
    return 2 * 2 * layers * 128 * layers
