"""A run from its first step to its last: metrics, evaluations, saved states, the progress bar, interruptions."""

from __future__ import annotations

import hashlib
import shutil
import signal
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

from rekindle.anatomy import family_of
from rekindle.anatomy.flops import flops_per_token
from rekindle.config import to_dict
from rekindle.edit import open_checkpoint
from rekindle.errors import CheckFailed, Ended
from rekindle.progress import Progress
from rekindle.store.folder import Folder
from rekindle.store.manifest import Record
from rekindle.store.system import explained
from rekindle.train.archive import Archiver
from rekindle.train.device import device_name
from rekindle.train.finish import life_of
from rekindle.train.held import Whole
from rekindle.train.interrupts import Interrupts
from rekindle.train.metrics import NAME as METRICS
from rekindle.train.metrics import Metrics
from rekindle.train.model import not_finite_weights
from rekindle.train.state import Saved, find_state, save_state
from rekindle.train.step import Diverged, Stats, Stepper


class Session:
    """Drives `stepper`; `work` is the run's hidden folder, to which only the main rank writes.

    `record`: the run's in the lineage, but for how far it came. `averages`: the folder of those that it keeps.
    """

    def __init__(
        self,
        stepper: Stepper,
        source: Folder,
        work: Path,
        run: dict[str, Any],
        record: Record,
        archiver: Archiver | None = None,
        averages: Path = Path(),
    ):
        self.stepper, self.source, self.work, self.run, self.archiver = stepper, source, work, run, archiver
        self.record, self.averages = record, averages
        self.plan, self.config, self.accelerator = stepper.plan, stepper.config, stepper.accelerator
        self.main = stepper.accelerator.is_main_process
        family = family_of(source.config)
        settings = family.settings(source.config)
        self.parameters = open_checkpoint(source).parameters()
        self.flops_per_token = flops_per_token(family, settings, self.plan.seq_len, stepper.objective.length)
        self.last = "not yet evaluated"  # here, where a run was resumed
        self.resumed_at: int | None = None
        self.held_out = stepper.objective.sample("validation", self.config.eval_tokens)

    def go(self, saved: Saved | None) -> None:
        """All steps from `saved`, or from the first, to the last, and the evaluations between."""
        start = saved.step if saved else 0
        self.resumed_at = saved.step if saved else None
        with self._opened(saved), Interrupts() as interrupts:
            if saved and (self.config.archive or self.config.keep_averages):
                whole = self.stepper.whole()  # the run may have been cut off before the archive had this state
                if whole:
                    self._archive(whole, start)
                    self._keep_averages(whole, start)
                if whole and self.archiver:
                    self.archiver.steps()
            for step in range(start, self.plan.steps):
                boundary = self.metrics.position  # where a state saved now resumes, evaluating again if it is due
                if step > start and step % self.plan.save_interval == 0:
                    self._save(step, boundary, wait=False)
                if step % self.plan.eval_interval == 0:
                    self._evaluate(step)
                if self._step(step, boundary, lambda: interrupts.number is not None):
                    self._save(step + 1, self.metrics.position)
                    number = interrupts.number or signal.SIGINT  # where another rank was asked
                    raise Ended(number, f"Stopped after step {step + 1} of {self.plan.steps}.")
            if start < self.plan.steps:  # what is left may fail too: a full disc, a scheduler's last word
                self._save(self.plan.steps, self.metrics.position)
            self._evaluate(self.plan.steps)

    @property
    def metrics_path(self) -> Path:
        return self.work / METRICS

    @contextmanager
    def _opened(self, saved: Saved | None) -> Iterator[None]:
        """Metrics, progress bar and trackers; a run that fails before its first saved state leaves nothing behind."""
        with explained(self.work):
            if self.main and saved is None:
                shutil.rmtree(self.work, ignore_errors=True)
                self.work.mkdir(parents=True)
            self.accelerator.wait_for_everyone()
            self.metrics = Metrics(self.metrics_path if self.main else None, saved.position if saved else 0)
        done = (saved.step if saved else 0) * self.plan.batch_tokens
        self.progress = Progress("train", self.plan.tokens, "tokens", done=done, wanted=self.main)
        if self.config.trackers:
            plain = {key: value for key, value in to_dict(self.config).items() if isinstance(value, int | float | str)}
            self.accelerator.init_trackers("rekindle", plain)
        try:
            if saved is None:
                self.metrics.write("run", **self._description())
            yield
            self.metrics.sync()
        except BaseException:
            with suppress(Exception):  # what was being saved is what the run goes on from
                self.stepper.wait()
            with suppress(OSError):  # a full disc, and that is being told
                self.metrics.close()
            if self.main and find_state(self.work) is None:
                shutil.rmtree(self.work, ignore_errors=True)
            raise
        finally:
            self.progress.close()
            self.metrics.close()
            if self.config.trackers:
                self.accelerator.end_training()

    def _step(self, step: int, boundary: int, wanted_to_stop: Callable[[], bool]) -> bool:
        """One step and its row; True when some rank was asked to stop."""
        began = time.perf_counter()
        try:
            stats = self.stepper(step, wanted_to_stop)
        except Diverged as error:
            raise self._diverged(step, boundary, error) from None
        speed = self.plan.batch_tokens / (time.perf_counter() - began)
        self._write_events()
        self._write_step(step, stats, speed)
        return stats.stop

    def _write_events(self) -> None:
        for event in self.stepper.events():
            self.metrics.write("recovery", **event)

    def _write_step(self, step: int, stats: Stats, speed: float) -> None:
        row = {
            **self._place(step + 1),
            **stats.losses,
            "lr": self.plan.learning_rate(step),
            "grad_norm": stats.grad_norm,
            "tokens_per_s": round(speed, 1),
            "peak_memory": self.stepper.peak_memory(),
        }
        self._write("step", row)
        told = f"step {step + 1} of {self.plan.steps}, loss {stats.losses['loss']:.3f}, {self.last}"
        told += f", {more}" if (more := self.stepper.told()) else ""
        self.progress.update(self.plan.batch_tokens, told)

    def _evaluate(self, step: int) -> None:
        result = self.stepper.evaluate(self.held_out)
        self._write_events()
        self._write("eval", {**self._place(step), **result.row(each=step == self.plan.steps)})
        self.last = f"validation {result.loss:.3f}"

    def _write(self, kind: str, row: dict[str, Any]) -> None:
        self.metrics.write(kind, **row)
        if self.config.trackers:
            numbers = {key: value for key, value in row.items() if isinstance(value, int | float)}
            self.accelerator.log(numbers, step=row["step"])

    def _place(self, step: int) -> dict[str, Any]:
        """After `step` updates."""
        tokens = step * self.plan.batch_tokens
        return {"step": step, "tokens": tokens, "flops": self.flops_per_token * tokens}

    def _save(self, step: int, position: int, *, wait: bool = True) -> None:
        """The state after `step` updates, with metrics.jsonl cut at `position` when it resumes; CheckFailed for NaN.

        Without `wait` it may be written while training goes on.
        """
        if not self.stepper.sound():
            what = f"Training diverged in step {step} of {self.plan.steps}: its update made weights NaN or infinite."
            raise self._failed(what, updated=True)
        if whole := self.stepper.whole():
            self.stepper.wait()
            self.metrics.sync()
            self.stepper.behind(lambda: self._keep(whole, step, position))
            if wait:
                self.stepper.wait()
        self.accelerator.wait_for_everyone()

    def _keep(self, whole: Whole, step: int, position: int) -> None:
        archived = self.archiver.steps() if self.archiver else {}  # all before this one, before their states go
        averages = self.stepper.averages.state() if self.stepper.averages else None
        how: dict[str, Any] = {"run": self.run, "archived": archived, "averages": averages}
        save_state(self.work, whole, step=step, position=position, **how)
        self._archive(whole, step)
        self._keep_averages(whole, step)

    def _keep_averages(self, whole: Whole, step: int) -> None:
        if self.stepper.averages:
            self.stepper.averages.save(self.averages, step, self.source, whole.buffers)

    def _archive(self, whole: Whole, step: int) -> None:
        if self.archiver:
            place = self._place(step)
            so_far = replace(self.record, tokens=place["tokens"], flops=place["flops"])
            schedule = self.plan.schedule.at(place["tokens"])
            self.archiver.save(whole, step, schedule, life_of(self.source, so_far, self.parameters))

    def _diverged(self, step: int, boundary: int, error: Diverged) -> CheckFailed:
        """Keep the weights from before the bad step, if they are sound, and say what to type."""
        self.stepper.wait()
        saved, sound = find_state(self.work), self.stepper.sound()
        there = saved is not None and saved.step == step
        if step > 0 and not there and sound:
            self._save(step, boundary)
        what = "Training diverged in" if step else "Training cannot begin with"
        what = f"{what} step {step + 1} of {self.plan.steps}: {error}."
        return self._failed(what, updated=step > 0, again=step == self.resumed_at)

    def _failed(self, what: str, *, updated: bool, again: bool = False) -> CheckFailed:
        """`what` is no number, and why: weights of the source, or, where they were `updated`, what can be lowered.

        `again`: so it was with the weights as they were saved, and no rate from there on changes that.
        """
        self.stepper.wait()
        sick = not_finite_weights(self.source)
        inspect = "rekindle inspect SRC --nan lists them"
        if not updated:
            why = f"the source holds {sick}" if sick else "no weight was changed yet, so it is no matter of --lr"
            hint = f"{inspect}; another source" if sick else "--precision fp32, or other --data"
            return CheckFailed(what, where=self.source.path, why=why, hint=hint)
        saved = find_state(self.work)
        why, begin = None, f"--resume (from step {saved.step}) " if saved else ""
        if again:
            why = "the saved weights themselves lead to it, before any rate is applied"
            begin = "start afresh (--overwrite, without --resume) "
        lr, clip = self.plan.schedule.peak, self.config.clip
        hint = f"{begin}with a lower --lr (now {lr:g}) or a lower --clip (now {clip:g})"
        if sick:
            why, hint = f"the source itself holds {sick}", f"{inspect}; or {hint}"
        return CheckFailed(what, where=saved.path if saved else None, why=why, hint=hint)

    def _description(self) -> dict[str, Any]:
        """The run row of metrics.jsonl."""
        objective = self.stepper.objective
        return {
            "model_type": self.stepper.model.config.model_type,
            "parameters": self.parameters,
            "flops_per_token": self.flops_per_token,
            "tokens_planned": self.plan.tokens,
            "batch_tokens": self.plan.batch_tokens,
            "seq_len": self.plan.seq_len,
            "device": device_name(self.accelerator.device),
            "devices": self.accelerator.num_processes,
            "precision": "bf16" if self.accelerator.mixed_precision == "bf16" else "fp32",
            "data": self.config.data,
            "text": objective.digest,
            "val_set": hashlib.sha256(b"".join(x.numpy().tobytes() for x in self.held_out.values())).hexdigest()[:16],
            **objective.described(),
            "epochs": self.plan.steps * self.plan.batch / objective.rows,
            "schedule": self.plan.schedule.name,
            "lr": self.plan.schedule.peak,
            "seed": self.config.seed,
        }
