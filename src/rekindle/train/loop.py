"""Train a checkpoint: `train`, from a folder to a folder."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager, ExitStack, nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from rekindle.edit import checkpoint_at
from rekindle.errors import RekindleError
from rekindle.store.folder import Folder
from rekindle.store.lock import training_into
from rekindle.store.manifest import Record
from rekindle.store.publish import check_free
from rekindle.train.archive import Archiver
from rekindle.train.averages import averages_of
from rekindle.train.budget import with_tokens
from rekindle.train.config import TrainConfig
from rekindle.train.device import out_of_memory_explained, refuse_sharded, reproducible
from rekindle.train.finish import publish
from rekindle.train.metrics import summarise
from rekindle.train.prepare import accelerator_of, prepare
from rekindle.train.session import Session
from rekindle.train.state import Saved, check_start, disc_explained, work_folder
from rekindle.train.step import Stepper


def train(
    src: Path,
    out: Path,
    config: TrainConfig,
    *,
    command: str,
    options: dict[str, dict[str, Any]],
    recipe: Mapping[str, Any] | None = None,
    source_name: str | None = None,
    resume: bool = False,
    overwrite: bool = False,
    spread: Callable[[Stepper, Folder, int], AbstractContextManager[Any]] = lambda stepper, *_: nullcontext(stepper),
) -> dict[str, Any]:
    """Train the checkpoint in `src` on `config.data` and leave the result, a complete folder, in `out`.

    Returns {"steps", "tokens", "flops", "loss", "val_loss", "val_loss_stderr", "val_loss_before", "seconds",
    "tokens_per_s", "epochs", "peak_memory"}: losses are the language model's alone, in nats per
    token. Of several ranks only the main one gets it, the others an empty dict. `resume` continues an interrupted
    run of the same OUT, bit for bit on a CPU, and starts afresh where there is none. `spread` gives another stepper in
    place of the usual one, such as one whose model is spread over processes.

    Raises RekindleError for options, data and checkpoints that do not fit one another and for lack of memory;
    CheckFailed when the loss is no longer a number; KeyboardInterrupt, with the state saved, on Ctrl-C or SIGTERM.
    """
    src, out = Path(src), Path(os.path.abspath(out))
    refuse_sharded()
    check_start(out, resume=resume, overwrite=overwrite)
    source = checkpoint_at(src).folder
    source.passengers()  # what cannot travel is refused now
    config = with_tokens(config, source)
    lower = "a smaller --micro-batch, --gradient-checkpointing, or a shorter --seq-len"
    summary: dict[str, Any] = {}
    with torch.random.fork_rng(devices=[]), out_of_memory_explained(lower), ExitStack() as stack:
        accelerator = accelerator_of(config, out)
        if accelerator.is_main_process:
            stack.enter_context(training_into(out))
            check_start(out, resume=resume, overwrite=overwrite)  # another run may have just come to its end
        stepper, run, saved = prepare(source, out, config, accelerator, resume=resume, overwrite=overwrite)
        stepper = stack.enter_context(spread(stepper, source, saved.step if saved else 0))
        stack.enter_context(disc_explained(work_folder(out)))
        archived = _archiver(config, source, saved, out, overwrite) if accelerator.is_main_process else nullcontext()
        with archived as archiver:
            record = Record(
                verb="train",
                command=command,
                options=options,
                source=source_name or str(src),
                source_fingerprint=source.fingerprint,
            )
            averages = averages_of(out)
            if accelerator.is_main_process and config.keep_averages and not saved:
                check_free(averages, overwrite)
                shutil.rmtree(averages, ignore_errors=True)
            session = Session(stepper, source, work_folder(out), run, record, archiver, averages)
            with reproducible(accelerator.device):
                session.go(saved)
        if whole := stepper.whole():
            summary = summarise(session.metrics_path)
            told = "; ".join([_sentence(config, summary), *run["changes"]])
            record = replace(record, summary=told, tokens=summary["tokens"], flops=summary["flops"])
            how = {"recipe": recipe, "overwrite": overwrite}
            publish(out, source, stepper.plan, whole, stepper.model, session.work, record, session.parameters, **how)
            shutil.rmtree(session.work, ignore_errors=True)
        accelerator.wait_for_everyone()
    return summary


def _archiver(
    config: TrainConfig, source: Folder, saved: Saved | None, out: Path, overwrite: bool
) -> AbstractContextManager[Archiver | None]:
    if not config.archive:
        return nullcontext()
    path = Path(config.archive).expanduser()
    if path.resolve().is_relative_to(out):
        raise RekindleError(f"{path} lies in {out}, which is written anew.", hint="another --archive")
    return Archiver(path, source, saved, overwrite=overwrite)


def _sentence(config: TrainConfig, summary: dict[str, Any]) -> str:
    target = "image" if "val_accuracy" in summary else "token"
    return (
        f"{summary['tokens']:,} tokens of {config.data}, {config.schedule} schedule, "
        f"validation loss {summary['val_loss_before']:.3f} -> {summary['val_loss']:.3f} nats per {target}"
    )
