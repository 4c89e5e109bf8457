"""The chunks of a step on their way through a group's stages: a schedule of torch's for each order of these.

Where ends are swapped every second chunk goes the other way, by a second schedule behind the first: the same modules as
a pipeline whose stages stand in another order.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.distributed.pipelining import PipelineStage, Schedule1F1B, ScheduleGPipe

from rekindle.recovery.stage import Stage
from rekindle.train.losses import inputs_and_targets

SCHEDULES = {"gpipe": ScheduleGPipe, "1f1b": Schedule1F1B}


class Passes:
    """`how`: micro_batch (rows of a chunk), chunks of a step, seq_len, bf16, and the pipeline's schedule."""

    def __init__(self, stage: Stage, how: Any, loss_fn: Callable[..., torch.Tensor], device: torch.device, group: Any):
        self._stage, self._how, self._loss_fn, self._device, self._group = stage, how, loss_fn, device, group
        place = stage.place
        orders = [[*range(place.stages)], *([place.order] if place.swapped else [])]
        self._schedules = [self._schedule(order, how.chunks // len(orders)) for order in orders]
        self._turn(place.stage)

    def _schedule(self, order: list[int], chunks: int) -> tuple[int, Any]:
        """This stage's place in an order, and what it does there."""
        how, s, place = self._how, self._stage.settings, self._stage.place
        shape, at = (how.micro_batch, how.seq_len), order.index(place.stage)
        ids = torch.empty(shape, dtype=torch.int64, device="meta")
        h = torch.empty((*shape, s.hidden_size), device="meta", requires_grad=True)
        kind = torch.bfloat16 if how.bf16 else torch.float32
        logits = torch.empty((*shape, s.vocab_size), dtype=kind, device="meta", requires_grad=True)
        ends = {"input_args": (ids if at == 0 else h,), "output_args": (logits if at == place.stages - 1 else h,)}
        pipe = PipelineStage(self._stage, at, place.stages, self._device, group=self._group, **ends)
        pipe.stage_index_to_group_rank = dict(enumerate(order))
        # Gradients are summed as they are: each chunk's loss is its part of the step's.
        return at, SCHEDULES[how.pipeline](pipe, chunks, loss_fn=self._loss_fn, scale_grads=False)

    def _turn(self, at: int) -> None:
        self._stage.first, self._stage.last = at == 0, at == self._stage.place.stages - 1

    def run(self, windows: torch.Tensor | None) -> list[torch.Tensor]:
        """Forward and backward of all chunks of `windows` [rows, T + 1], which stages at ends have; their losses."""
        losses: list[torch.Tensor] = []
        for i, (at, schedule) in enumerate(self._schedules):
            self._turn(at)
            if windows is None or not (self._stage.first or self._stage.last):
                schedule.step()
                continue
            chunks = windows.unflatten(0, (self._how.chunks, -1))[i :: len(self._schedules)].flatten(0, 1)
            if self._stage.first:
                schedule.step(inputs_and_targets(chunks)[0])
            else:
                schedule.step(target=chunks, losses=losses, return_outputs=False)
        self._turn(self._stage.place.stage)
        return losses
