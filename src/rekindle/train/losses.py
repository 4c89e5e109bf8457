"""The language-model loss, the two router losses, and the load of the experts.

The three losses stay apart: what is reported as `loss` is always the language model's cross entropy alone
(transformers adds the load-balance loss to what it returns as `loss`).

B sequences   T tokens   V vocabulary   L MoE layers   E experts   K experts per token
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch.nn import functional as F

IGNORED = -100  # a target without a loss


def inputs_and_targets(windows_BT1: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Tokens to read and tokens to foresee [B, T] of windows in which a token without a loss stands as ~id."""
    tokens, targets = windows_BT1[:, :-1], windows_BT1[:, 1:]
    return torch.where(tokens < 0, ~tokens, tokens), targets.masked_fill(targets < 0, IGNORED)


def cross_entropy(logits_BTV: torch.Tensor, target_BT: torch.Tensor, smoothing: float = 0.0) -> torch.Tensor:
    """Mean over all tokens that have a loss, nats per token."""
    return F.cross_entropy(logits_BTV.flatten(0, 1).float(), target_BT.flatten(), label_smoothing=smoothing)


def expert_grid(model: Any) -> tuple[int, int] | None:
    """(L, E) of a mixture of experts; None of a dense model, and of experts that choose, whose load is even."""
    if getattr(model.config, "routing", None) == "experts":
        return None
    mixtures = [module for name, module in model.named_modules() if name.endswith(".experts")]
    return (len(mixtures), mixtures[0].num_experts) if mixtures else None


def experts_per_token(model: Any) -> int:
    """K of a mixture; a family whose config does not say it sends each token to one."""
    return getattr(model.config, "num_experts_per_tok", 1)


def forward(model: Any, inputs: Mapping[str, Any], routers: bool = False) -> Any:
    """The outputs of a model; with those of its `routers`, where it is a mixture."""
    return model(**inputs, **({"output_router_logits": True} if routers else {}))


def router_logits(out: Any, seen: Mapping[str, torch.Tensor] | None = None) -> tuple[torch.Tensor, ...]:
    """Each MoE layer's router logits [tokens, E]: of an encoder's layers first, then of a decoder's.

    `seen`: which tokens [B, T] of the "encoder" and the "decoder" are no padding; where none is said, all.
    """
    found = []
    for tower in ("", "encoder", "decoder"):
        mask = (seen or {}).get(tower)
        for layer in getattr(out, f"{tower}_router_logits".lstrip("_"), None) or ():
            logits = layer.flatten(0, -2)
            found.append(logits if mask is None else logits[mask.flatten()])
    return tuple(found)


def router_losses(logits: tuple[torch.Tensor, ...], top_k: int) -> dict[str, torch.Tensor]:
    """Load-balance and z loss of a mixture, by the names that metrics.jsonl has for them."""
    return {"aux_loss": load_balance_loss(logits, top_k), "z_loss": router_z_loss(logits)}


def load_balance_loss(router_logits: tuple[torch.Tensor, ...], top_k: int) -> torch.Tensor:
    """E * sum over experts of (share of assignments) * (mean probability), averaged over layers; 1 when balanced.

    Fedus et al. 2021, arXiv 2101.03961, eq. 4-6, with the K assignments of a token counted as K shares of 1 / K.
    transformers' function of this name is K times as large and pools the layers before it multiplies, so that
    imbalances of different layers cancel.
    """
    losses = []
    for logits in router_logits:
        probabilities = logits.float().softmax(-1)
        share = expert_counts(logits, top_k) / (logits.shape[0] * top_k)
        losses.append(logits.shape[-1] * torch.dot(share, probabilities.mean(0)))
    return torch.stack(losses).mean()


def router_z_loss(router_logits: tuple[torch.Tensor, ...]) -> torch.Tensor:
    """Mean squared log-sum-exp of the router logits, averaged over layers.

    Zoph et al. 2022, arXiv 2202.08906, eq. 5.
    """
    return torch.stack([logits.float().logsumexp(-1).square().mean() for logits in router_logits]).mean()


@torch.no_grad()
def expert_counts(logits: torch.Tensor, top_k: int) -> torch.Tensor:
    """How many tokens the router sends to each expert [E], float32."""
    experts = logits.shape[-1]
    chosen = logits.topk(top_k, dim=-1).indices
    return F.one_hot(chosen.flatten(), experts).sum(0).float()


def describe_load(counts_LE: torch.Tensor) -> dict[str, Any]:
    """Rows of metrics.jsonl out of assignment counts [L, E]: load, entropy (1: even, 0: one expert), dead experts.

    A dead expert is one that no token of the evaluation was sent to.
    """
    share = counts_LE / counts_LE.sum(-1, keepdim=True)
    entropy = -torch.special.xlogy(share, share).sum(-1) / math.log(max(2, share.shape[-1]))
    return {
        "expert_load": [[round(x, 6) for x in row] for row in share.tolist()],
        "expert_entropy": [round(x, 6) for x in entropy.tolist()],
        "dead_experts": (counts_LE == 0).sum(-1).tolist(),
    }


NO_LOAD = {"expert_load": None, "expert_entropy": None, "dead_experts": None}
