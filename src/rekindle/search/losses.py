"""The loss that a model's family is trained by, or another one, as an objective: searched on training text, told on
held-out text.

Each draw of the search is another batch of training text that the run has not read: K numbers cannot learn so much by
heart, while a small validation split is soon overfitted by them. Those that are re-ranked see batches that no search
saw, and the report is of documents that are held out of training, cut into as many parts as it has draws.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import chain
from typing import TYPE_CHECKING, Any

import torch

from rekindle.apply.load import load_model
from rekindle.errors import RekindleError
from rekindle.search.config import CombineConfig
from rekindle.search.copies import Copies
from rekindle.search.draw import Draw
from rekindle.search.judge import REPORTS
from rekindle.search.objective import Objective
from rekindle.search.text import Batches, reading_of
from rekindle.store.folder import Folder
from rekindle.train.config import TrainConfig
from rekindle.train.device import make_accelerator, out_of_memory_explained
from rekindle.train.losses import forward
from rekindle.train.model import check_lengths, model_sizes
from rekindle.train.objectives import Batch, objective_of, on, open_objective, rows_of

if TYPE_CHECKING:
    from accelerate import Accelerator

SEQ2SEQ = ("source_column", "target_column", "target_len")


@dataclass(frozen=True)
class Loss:
    """A family's own loss, or another one."""

    copies: Copies  # of any checkpoint of the series: its tensors are replaced
    names: frozenset[str]  # of these
    objective: Any
    batches: Batches
    held_out: Batch
    accelerator: Accelerator

    def __call__(self, tensors: Mapping[str, torch.Tensor], draw: Draw) -> dict[str, torch.Tensor]:
        device = self.accelerator.device
        batch = on(self.batch(draw), device)
        own = {name: tensor.to(device) for name, tensor in tensors.items() if name in self.names}
        call = _Call(self.copies.own, self.objective)
        with out_of_memory_explained("a smaller --batch-tokens or --seq-len"), self.accelerator.autocast():
            found = torch.func.functional_call(call, {f"model.{name}": x for name, x in own.items()}, (batch,))
        return {"loss": found}

    def batch(self, draw: Draw) -> Batch:
        """The rows that a draw stands for."""
        if draw.split == "report":
            part = torch.arange(draw.number, rows_of(self.held_out), REPORTS)
            return {name: tensor[part] for name, tensor in self.held_out.items()}
        return self.objective.batch(self.batches.first_of(draw), max(1, round(self.batches.rows * draw.share)))


class _Call(torch.nn.Module):
    """A model and its objective as one module, so that a call may replace the model's tensors."""

    def __init__(self, model: Any, objective: Any):
        super().__init__()
        self.model, self.objective = model, objective

    def forward(self, batch: Batch) -> torch.Tensor:
        return self.objective.losses(forward(self.model, self.objective.inputs(self.model, batch)), batch)["loss"]


def loss_of(source: Folder, config: CombineConfig) -> Objective:
    """The loss of models such as that in `source`; raises RekindleError for data that do not fit it."""
    vocab_size, context = model_sizes(source.config)
    options = _options(config)
    kind = objective_of(options, source)
    reading = reading_of(source, config, kind.name, context)
    seq_len = reading.seq_len
    check_lengths(seq_len, source.config, None)
    objective = open_objective(kind, replace(options, seed=reading.seed), seq_len, source)
    there = objective.rows  # or a sentence, where there are none
    batches, notes = reading.batches(there, max(1, config.batch_tokens // seq_len))
    held_out = objective.sample("validation", config.held_out_tokens)
    if rows_of(held_out) < REPORTS:
        what = (
            f"The held-out text is {rows_of(held_out)} sequences of {seq_len} tokens, and {REPORTS} draws are reported."
        )
        few = config.held_out_tokens < REPORTS * seq_len
        hint = f"--held-out-tokens {REPORTS * seq_len} or more" if few else "more text, or a smaller --seq-len"
        raise RekindleError(what, where=config.data, hint=hint)
    opened = replace(source, native=False)  # read as it is opened, out of an archive too
    model = load_model(opened, output=kind.output).eval()
    names = frozenset(name for name, _ in chain(model.named_parameters(), model.named_buffers()))
    accelerator = make_accelerator(config.precision)
    loss = Loss(Copies(model.to(accelerator.device)), names, objective, batches, held_out, accelerator)
    return Objective(loss, True, config.objective, notes, fused=True)


def _options(config: CombineConfig) -> TrainConfig:
    """As a run's: what is read of which data."""
    told = {name: getattr(config, name) for name in ("data", "text_column", *SEQ2SEQ)}
    objective: Any = None if config.objective == "loss" else config.objective
    return TrainConfig(**told, objective=objective)
