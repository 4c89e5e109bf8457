"""Validation loss during training, and `evaluate`: loss and perplexity of a checkpoint."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from rekindle.apply.load import load_model
from rekindle.edit import checkpoint_at
from rekindle.errors import CheckFailed, RekindleError
from rekindle.train.config import EvaluateConfig
from rekindle.train.device import make_accelerator, micro_batch_size, out_of_memory_explained
from rekindle.train.losses import (
    NO_LOAD,
    describe_load,
    expert_counts,
    expert_grid,
    experts_per_token,
    forward,
    router_logits,
)
from rekindle.train.model import cast_experts, check_lengths, model_sizes, not_finite_weights, tokenizers_of
from rekindle.train.objectives import Batch, Objective, narrowed, objective_of, on, open_objective, rows_of
from rekindle.train.writing import check_writing, save, scores, written_by

if TYPE_CHECKING:
    from accelerate import Accelerator

_DEFAULT_SEQ_LEN = 1024


@dataclass(frozen=True)
class Result:
    """`loss` in nats per token; `stderr` its standard error over sequences; `counts` of assignments [L, E].

    `tokens` are those that have a loss. The loss is the mean of `losses`: of a sequence with fewer than others it is
    the sum over them, divided by the number that sequences have on average.
    """

    loss: float
    stderr: float
    tokens: int
    counts: torch.Tensor | None
    losses: tuple[float, ...]  # of each sequence
    others: dict[str, float] = field(default_factory=dict)  # what else the objective measures

    def row(self, each: bool = False) -> dict[str, Any]:
        """A row of metrics; with `each` the loss of every sequence, so that runs can be compared pair by pair."""
        load = NO_LOAD if self.counts is None else describe_load(self.counts)
        pairs = {"val_losses": [round(loss, 6) for loss in self.losses]} if each else {}
        others = {f"val_{name}": value for name, value in self.others.items()}
        return {"val_loss": self.loss, "val_loss_stderr": self.stderr, **load, **others, **pairs}


@torch.no_grad()
def validation_loss(
    model: Any, objective: Objective, held_out: Batch, accelerator: Accelerator, micro_batch: int
) -> Result:
    """The objective's own loss over held-out rows, without those of routers; each rank takes every W-th row.

    The mean over all targets; its error is that of a ratio of two means over rows.
    """
    grid, training, n = expert_grid(model), model.training, rows_of(held_out)
    model.eval()
    each: dict[str, torch.Tensor] = defaultdict(lambda: torch.zeros(n, device=accelerator.device))
    counts = torch.zeros(grid, device=accelerator.device) if grid else None
    mine = torch.arange(accelerator.process_index, n, accelerator.num_processes)
    for rows in mine.split(micro_batch) if len(mine) else ():
        batch = on(narrowed({name: tensor[rows] for name, tensor in held_out.items()}), accelerator.device)
        out = forward(model, objective.inputs(model, batch), routers=grid is not None)
        for name, values in objective.each(out, batch).items():
            each[name][rows] = values.float()
        if counts is not None:
            layers = router_logits(out, objective.seen(batch))
            counts += torch.stack([expert_counts(layer, experts_per_token(model)) for layer in layers])
    model.train(training)
    told = {name: accelerator.reduce(each[name], "sum").cpu() for name in objective.measures}
    counts = None if counts is None else accelerator.reduce(counts, "sum").cpu()
    return result_of(objective, held_out, told, counts)


def result_of(
    objective: Objective, held_out: Batch, each: Mapping[str, torch.Tensor], counts: torch.Tensor | None
) -> Result:
    """Out of what the objective measures of each row [n], and the `counts` [L, E] of a mixture."""
    n, targets = rows_of(held_out), objective.targets(held_out)
    tokens = int(targets.sum())
    whole = {name: values.double() * (n * objective.length / tokens) for name, values in each.items()}
    losses = whole.pop("loss")
    apart = losses - losses.mean() * (targets.double() * n / tokens - 1)
    stderr = apart.std().item() / math.sqrt(n) if n > 1 else 0.0
    others = {name: values.mean().item() for name, values in whole.items()}
    return Result(losses.mean().item(), stderr, tokens, counts, tuple(losses.tolist()), others)


def evaluate(folder: Path, config: EvaluateConfig) -> dict[str, Any]:
    """Loss in nats per token and perplexity of a checkpoint, with standard errors over sequences; of images accuracy.

    {"loss", "loss_stderr", "perplexity", "perplexity_stderr", "objective", "tokens", "sequences", "seq_len", "data",
    "split", "tasks": {task: {metric: value}} or None}. The perplexity's error is the loss's, to first order; of one
    sequence there is none. Raises RekindleError for data or options that do not fit the model, CheckFailed for a loss
    that is no number.
    """
    if config.tasks:
        _harness()  # before the loss takes its time
    if config.beams is not None:
        check_writing(config.beams, config.predictions)
    elif config.predictions:
        raise RekindleError("Texts are written with --beams alone.", where="option predictions", hint="--beams 4")
    source = checkpoint_at(folder).folder
    if config.tasks and not source.native:
        raise RekindleError(
            "lm-eval loads the folder itself, and transformers cannot read this one as it is.",
            where=folder,
            hint=f"rekindle rewrite {folder} OUT, then OUT",
        )
    kind = objective_of(config, source)
    vocab_size, context = model_sizes(source.config)
    most = context if kind.output == "labels" else _DEFAULT_SEQ_LEN  # an image is as long as it is
    seq_len = config.seq_len or min(context, most)
    check_lengths(seq_len, source.config, config.micro_batch)
    objective = open_objective(kind, config, seq_len, source)
    held_out = objective.sample(config.split, config.tokens)
    accelerator = make_accelerator(config.precision)
    model = load_model(source, output=kind.output)
    if accelerator.mixed_precision == "bf16" and expert_grid(model):
        cast_experts(model)
    with out_of_memory_explained("a smaller --micro-batch or --seq-len"):
        model = accelerator.prepare_model(model, evaluation_mode=True)
        size = micro_batch_size(config.micro_batch, max(seq_len, objective.length), vocab_size)
        result = validation_loss(model, objective, held_out, accelerator, size)
    if not math.isfinite(result.loss):
        sick = not_finite_weights(source)
        raise CheckFailed(
            f"The loss is no number: {result.loss}.",
            where=folder,
            why=sick and f"the checkpoint holds {sick}",
            hint="rekindle inspect CKPT --nan lists them" if sick else "--precision fp32",
        )
    written = None
    if config.beams is not None:
        how = {"beams": config.beams, "at_once": max(1, size // config.beams)}
        with out_of_memory_explained("a smaller --micro-batch or --beams"):
            written = written_by(model, objective, held_out, *tokenizers_of(source), device=accelerator.device, **how)
        if config.predictions:
            save(written, Path(config.predictions))
    stderr = result.stderr if rows_of(held_out) > 1 else None  # one sequence tells nothing of others
    return {
        "loss": result.loss,
        "loss_stderr": stderr,
        **(result.others if kind.output == "labels" else _perplexity(result.loss, stderr)),
        "objective": kind.name,
        "tokens": result.tokens,
        "sequences": rows_of(held_out),
        "seq_len": seq_len,
        "data": config.data,
        "split": config.split,
        "tasks": run_tasks(folder, config.tasks) if config.tasks else None,
        **(scores(written) if written else {}),
    }


def _perplexity(loss: float, stderr: float | None) -> dict[str, float | None]:
    """Its error is the loss's, to first order."""
    perplexity = math.exp(min(loss, 700.0))
    return {"perplexity": perplexity, "perplexity_stderr": None if stderr is None else perplexity * stderr}


def run_tasks(folder: Path, tasks: Sequence[str]) -> dict[str, Any]:
    """{task: {metric: value}} by lm-eval; raises RekindleError where it is not installed or knows no such task."""
    lm_eval = _harness()
    try:
        results = lm_eval.simple_evaluate(
            model="hf", model_args=f"pretrained={folder},trust_remote_code=False", tasks=list(tasks)
        )
    except (KeyError, ValueError, OSError, RuntimeError) as error:
        raise RekindleError(f"lm-eval cannot run {', '.join(tasks)}: {error}.", hint="lm-eval ls tasks") from None
    return {
        task: {name: value for name, value in row.items() if isinstance(value, int | float)}
        for task, row in results["results"].items()
    }


def _harness() -> Any:
    try:
        import lm_eval  # pyrefly: ignore[missing-import]
    except ImportError:
        raise RekindleError(
            "Tasks need lm-eval, which is not installed.", hint="pip install 'rekindle[lm-eval]'"
        ) from None
    return lm_eval
