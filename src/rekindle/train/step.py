"""One update of the weights: batch, losses, gradient, AdamW."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from rekindle.train.averages import Averages
from rekindle.train.config import TrainConfig
from rekindle.train.device import peak_memory
from rekindle.train.evaluate import Result, validation_loss
from rekindle.train.freezing import Frozen, frozen_at
from rekindle.train.held import Holder, Whole, replicated
from rekindle.train.losses import expert_grid, experts_per_token, forward, router_logits, router_losses
from rekindle.train.objectives import Batch, Objective, on, rows_of, split_batch
from rekindle.train.plan import Plan

if TYPE_CHECKING:
    from accelerate import Accelerator


class Stats(NamedTuple):
    """Of one step, averaged over all targets; the router losses, over all rows, are None in a dense model."""

    losses: dict[str, float | None]  # by their names in metrics.jsonl
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
    objective: Objective
    plan: Plan
    config: TrainConfig
    micro_batch: int
    hold: Holder = replicated
    averages: Averages | None = None  # on the main rank, where the run keeps some
    frozen: Sequence[Frozen] = ()

    def __post_init__(self) -> None:
        self._parameters = [p for p in self.model.parameters() if p.requires_grad]
        self._sparse = expert_grid(self.model) is not None
        self._top_k = experts_per_token(self.model)

    def __call__(self, step: int, wanted_to_stop: Callable[[], bool] = lambda: False) -> Stats:
        """Do step `step`, a function of the weights, the moments and the step alone. Raises Diverged."""
        self._seed(step)
        for group in self.optimizer.param_groups:
            group["lr"] = self.plan.learning_rate(step)
        batch, shares = self._batch(step)
        parts = split_batch(batch, self.micro_batch)  # where it is: to look at a width costs a wait on a device
        totals: dict[str, torch.Tensor] = {}
        for number, (part, share) in enumerate(zip(parts, shares, strict=True), 1):
            last = number == len(parts)
            with nullcontext() if last else self.accelerator.no_sync(self.wrapped):
                losses = self._losses(on(part, self.accelerator.device), share, rows_of(part) / rows_of(batch))
                self.accelerator.backward(self._sum(losses))
            totals = {name: totals.get(name, 0) + loss.detach() for name, loss in losses.items()}
        for p in frozen_at(self.frozen, step):
            p.grad = None
        norm = torch.nn.utils.clip_grad_norm_(self._parameters, self.config.clip or math.inf)
        flags = torch.stack([norm, torch.tensor(float(wanted_to_stop()), device=norm.device)])
        # One transfer from the device per step; before the update, so that a NaN never reaches the weights.
        told = torch.cat([torch.stack([loss.float() for loss in totals.values()]), flags])
        *means, grad_norm, stopped = self.accelerator.reduce(told, "mean").tolist()
        named = dict(zip(totals, means, strict=True))
        if not (math.isfinite(named["loss"]) and math.isfinite(grad_norm)):
            raise Diverged(f"loss {named['loss']:.4g}, gradient norm {grad_norm:.4g}")
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        if self.averages:
            self.averages.update(step + 1)
        return Stats({"loss": named["loss"], "aux_loss": None, "z_loss": None} | named, grad_norm, stopped > 0)

    def _batch(self, step: int) -> tuple[Batch, list[float]]:
        """This rank's share of the step's rows, and how much the mean loss of each part weighs.

        Ranks are averaged, and so a part weighs as many times its share of all targets of the step as there are ranks.
        """
        objective, ranks = self.objective, self.accelerator.num_processes
        first, share = step * self.plan.batch + self.config.skip // self.plan.seq_len, self.plan.batch // ranks
        batch = objective.batch(first + self.accelerator.process_index * share, share)
        total = objective.total(first, self.plan.batch)
        counts = [int(part.sum()) for part in objective.targets(batch).split(self.micro_batch)]
        return batch, [ranks * count / total for count in counts]

    def _losses(self, part: Batch, share: float, rows: float) -> dict[str, torch.Tensor]:
        """The objective's losses, weighing their `share` of the targets, and the routers', of the `rows`."""
        inputs = self.objective.inputs(self.model, part)
        out = forward(self.wrapped, inputs, self._sparse)
        logits = router_logits(out, self.objective.seen(part)) if self._sparse else ()
        routers = router_losses(logits, self._top_k) if self._sparse else {}
        losses = {name: loss * share for name, loss in self.objective.losses(out, part).items()}
        return losses | {name: loss * rows for name, loss in routers.items()}

    def _sum(self, losses: Mapping[str, torch.Tensor]) -> torch.Tensor:
        """What is lowered: the objective's own losses as they are, and the routers'."""
        coefficients = {"aux_loss": self.config.aux_loss, "z_loss": self.config.z_loss}
        others = (coefficients.get(name, 1.0) * loss for name, loss in losses.items() if name != "loss")
        return sum(others, losses["loss"])

    def evaluate(self, held_out: Batch) -> Result:
        """The validation loss; every rank has to ask."""
        return validation_loss(self.model, self.objective, held_out, self.accelerator, self.micro_batch)

    def sound(self) -> bool:
        """Whether all weights of all ranks are numbers; all ranks ask."""
        sick = sum(not bool(p.isfinite().all()) for p in self.model.parameters())
        return not self.accelerator.reduce(torch.tensor(sick, device=self.accelerator.device), "sum").item()

    def peak_memory(self) -> int:
        """The most that one of its processes has held, bytes; of several ranks this one."""
        return peak_memory(self.accelerator.device)

    def told(self) -> str:
        """What a progress line says of it; nothing here."""
        return ""

    def events(self) -> list[dict[str, Any]]:
        """What else has happened since this was asked last, as rows of metrics: nothing."""
        return []

    def whole(self) -> Whole | None:
        """All weights and moments on the main rank, None on the others; every rank has to ask."""
        return self.hold(self.model, self.optimizer, self.accelerator.is_main_process)

    def behind(self, work: Callable[[], object]) -> None:
        """Do what saves the last `whole`: at once, since training goes on in that memory."""
        work()

    def wait(self) -> None:
        """Until that is done, where it is done while training goes on; raises what went wrong with it."""

    def _seed(self, step: int) -> None:
        """Dropout and router noise, where a model has them, depend on seed, step and rank alone."""
        torch.manual_seed((self.config.seed * 2**32 + step) * 2**10 + self.accelerator.process_index & 2**63 - 1)
