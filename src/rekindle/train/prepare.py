"""From a folder and options to a model about to take its first step; everything that can be refused is, cheap first."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rekindle.apply.load import load_model
from rekindle.errors import RekindleError
from rekindle.store.folder import Folder
from rekindle.train.averages import Averages
from rekindle.train.config import TrainConfig
from rekindle.train.device import make_accelerator, micro_batch_size
from rekindle.train.freezing import frozen_of
from rekindle.train.losses import expert_grid
from rekindle.train.model import cast_experts, check_lengths, model_sizes
from rekindle.train.objectives import objective_of, open_objective
from rekindle.train.optimizer import load_optimizer, make_optimizer
from rekindle.train.plan import make_plan
from rekindle.train.state import TRACKERS, Saved, describe_run, find_start, load_state, resumed, work_folder
from rekindle.train.step import Stepper
from rekindle.train.ties import share_heads, tie

if TYPE_CHECKING:
    from accelerate import Accelerator

log = logging.getLogger(__name__)


def prepare(
    source: Folder, out: Path, config: TrainConfig, accelerator: Accelerator, *, resume: bool, overwrite: bool
) -> tuple[Stepper, dict[str, Any], Saved | None]:
    """The stepper with its weights and moments loaded, what names the run, and the state it resumes from.

    Raises RekindleError for whatever does not fit.
    """
    kind = objective_of(config, source)
    vocab_size, _ = model_sizes(source.config)
    plan = make_plan(config, accelerator.num_processes, source.path)
    check_lengths(config.seq_len, source.config, config.micro_batch)
    with accelerator.main_process_first():
        objective = open_objective(kind, config, plan.seq_len, source)
    rows = objective.rows
    run = describe_run(config, source.fingerprint, objective)
    saved = find_start(out, run, resume=resume, overwrite=overwrite)
    if saved:
        run, different = resumed(saved, run)
        if accelerator.is_main_process:
            log.warning("%s: %s", out.name, "; ".join([f"goes on from step {saved.step} of {plan.steps}", *different]))

    model = load_model(source, output=kind.output)
    tie(model)
    share_heads(model)
    frozen = frozen_of(model, config.freeze)
    wrapped = _wrapped(model, config, accelerator)
    optimizer = make_optimizer(model, config.weight_decay, config.beta2)
    averages = Averages(model) if config.keep_averages and accelerator.is_main_process else None
    if saved:
        load_state(saved, model, optimizer, averages)
    elif config.optimizer_state:
        load_optimizer(model, optimizer, source.config, Path(config.optimizer_state).expanduser())
    if config.mask_prompt and accelerator.is_main_process:
        text = objective.described()
        log.warning("%s of %s training tokens have a loss", text["train_losses"], text["train_tokens"])
    epochs = plan.steps * plan.batch / rows
    if epochs > 1:
        log.info("%s tokens are %.1f passes over the training text, each in another order", plan.tokens, epochs)
    micro_batch = micro_batch_size(config.micro_batch, max(plan.seq_len, objective.length), vocab_size)
    stepper = Stepper(model, wrapped, optimizer, accelerator, objective, plan, config, micro_batch, averages=averages,
                      frozen=frozen)  # fmt: skip
    return stepper, run, saved


def accelerator_of(config: TrainConfig, out: Path) -> Accelerator:
    """accelerate's view of this process, with the run's trackers; raises RekindleError for those that are not there."""
    from accelerate.tracking import LOGGER_TYPE_TO_CLASS, get_available_trackers

    available = {str(tracker) for tracker in get_available_trackers()}
    for name in config.trackers:
        if name not in available:
            known = ", ".join(sorted(available)) or "none"
            installable = name in {str(tracker) for tracker in LOGGER_TYPE_TO_CLASS}
            raise RekindleError(
                f"There is no tracker {name!r} here; installed: {known}.",
                hint=f"pip install {name}" if installable else "tensorboard, wandb, trackio, ...",
            )
    return make_accelerator(
        config.precision, log_with=list(config.trackers) or None, project_dir=work_folder(out) / TRACKERS
    )


def _wrapped(model: Any, config: TrainConfig, accelerator: Accelerator) -> Any:
    """The model as accelerate, autocast, checkpointing and the compiler want it; `model` keeps its weights."""
    model.train()
    if accelerator.mixed_precision == "bf16" and expert_grid(model):
        cast_experts(model)
    if config.gradient_checkpointing:
        # The second name is that of earlier transformers.
        enable = getattr(model, "activation_checkpointing_enable", None) or model.gradient_checkpointing_enable
        enable({"use_reentrant": False})
    if config.compile:
        model.compile()
    return accelerator.prepare_model(model)
