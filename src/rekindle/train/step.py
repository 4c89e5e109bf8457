"""One update of the weights: batch, losses, gradient, AdamW.

b sequences of this rank   T tokens per sequence
"""

from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from rekindle.train.config import TrainConfig
from rekindle.train.losses import (
    cross_entropy,
    expert_grid,
    forward,
    inputs_and_targets,
    load_balance_loss,
    router_z_loss,
)
from rekindle.train.plan import Plan
from rekindle.train.tokens import Corpus

if TYPE_CHECKING:
    from accelerate import Accelerator


class Stats(NamedTuple):
    """Of one step, averaged over all sequences; the router losses are None in a dense model."""

    loss: float
    aux_loss: float | None
    z_loss: float | None
    grad_norm: float
    stop: bool  # some rank was asked to stop


class Diverged(Exception):
    """A loss or gradient that is no number; the weights were not updated with it."""


@dataclass
class Stepper:
    """Trains `model` (which accelerate wrapped as `wrapped`) by `plan`."""

    model: Any
    wrapped: Any
    optimizer: torch.optim.AdamW
    accelerator: Accelerator
    corpus: Corpus
    plan: Plan
    config: TrainConfig
    micro_batch: int

    def __post_init__(self) -> None:
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        self._sparse = expert_grid(self.model) is not None
        self._top_k = getattr(self.model.config, "num_experts_per_tok", 0)

    def __call__(self, step: int, wanted_to_stop: Callable[[], bool] = lambda: False) -> Stats:
        """Do step `step`, a function of the weights, the moments and the step alone. Raises Diverged."""
        self._seed(step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate(step)
        batch, shares = self._batch(step)
        totals = torch.zeros(3, device=batch.device)
        parts = batch.split(self.micro_batch)
        for number, (part, share) in enumerate(zip(parts, shares, strict=True), 1):
            last = number == len(parts)
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                loss, *routers = self._losses(part)
                losses = torch.stack([loss * share, *(router * (len(part) / len(batch)) for router in routers)])
                self.accelerator.backward(losses[0] + self.config.aux_loss * losses[1] + self.config.z_loss * losses[2])
            totals += losses.detach()
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self.config.clip or math.inf)
        flags = torch.stack([norm, torch.tensor(float(wanted_to_stop()), device=norm.device)])
        # One transfer from the device per step; before the update, so that a NaN never reaches the weights.
        loss, aux, z, grad_norm, stopped = self.accelerator.reduce(torch.cat([totals, flags]), "mean").tolist()
        if not (math.isfinite(loss) and math.isfinite(grad_norm)):
            raise Diverged(f"loss {loss:.4g}, gradient norm {grad_norm:.4g}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        return Stats(loss, aux if self._sparse else None, z if self._sparse else None, grad_norm, stopped > 0)

    def _batch(self, step: int) -> tuple[torch.Tensor, list[float]]:
        """This rank's share of the step's sequences [b, T + 1], and how much the mean loss of each part weighs.

        Ranks are averaged, and so a part weighs as many times its share of all targets of the step as there are ranks.
        """
        ranks, seq_len = self.accelerator.num_processes, self.plan.seq_len
        first, share = step * self.plan.batch + self.config.skip // seq_len, self.plan.batch // ranks
        mine = first + self.accelerator.process_index * share
        tokens = torch.from_numpy(self.corpus.batch(mine, share, seq_len, self.config.seed))
        total = self.plan.batch * seq_len
        if self.corpus.losses:
            total = int((self.corpus.batch(first, self.plan.batch, seq_len, self.config.seed)[:, 1:] >= 0).sum())
        targets = [int((part[:, 1:] >= 0).sum()) for part in tokens.split(self.micro_batch)]
        return tokens.to(self.accelerator.device), [ranks * count / total for count in targets]

    def _losses(self, tokens_bT: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Language-model, load-balance and router z loss; the latter are 0 in a dense model."""
        inputs, targets = inputs_and_targets(tokens_bT)
        logits, router_logits = forward(self.wrapped, inputs, self._sparse)
        loss = cross_entropy(logits, targets)
        if not self._sparse:
            return loss, loss.new_zeros(()), loss.new_zeros(())
        return loss, load_balance_loss(router_logits, self._top_k), router_z_loss(router_logits)

    def _seed(self, step: int) -> None:
        """Dropout and router noise, where a model has them, depend on seed, step and rank alone."""
        torch.manual_seed((self.config.seed * 2**32 + step) * 2**10 + self.accelerator.process_index & 2**63 - 1)
