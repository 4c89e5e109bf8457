"""Parameters and training FLOPs of a transformers model.

Training costs 6 FLOPs per active parameter and token (Kaplan et al. 2020, arXiv 2001.08361, section 2.1: 2 for the
forward pass, 4 for the backward). *Active* leaves out the experts that a token is not sent to: of a routed expert
tensor with E experts, (E - K) / E is idle. Shared experts and routers are always active; a tied embedding counts
once; attention over the sequence is left out, as is usual, so that the cost does not depend on its length.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import torch


def count_parameters(model: Any) -> dict[str, int]:
    """{"total", "active"} of a causal language model, on any device (the meta device too)."""
    total = active = 0
    top_k = getattr(model.config, "num_experts_per_tok", 0)
    for name, parameter in model.named_parameters():
        size = parameter.numel()
        total += size
        active += size
        if is_routed(name, parameter):
            experts = parameter.shape[0]
            active -= size // experts * (experts - min(top_k, experts))
    return {"total": total, "active": active}


def is_routed(name: str, parameter: torch.Tensor) -> bool:
    """Whether a parameter holds all the routed experts of a layer: transformers' [E, out, in] stacks."""
    return ".experts." in name and parameter.ndim == 3


def training_flops(active: int, tokens: int) -> float:
    return 6.0 * active * tokens
