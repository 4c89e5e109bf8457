"""A stepper whose model is spread over processes that may die: `train` uses it as it uses any other.

A step has two phases. All stages run forward and backward, hold their gradients, and answer; then the supervisor
decides on the update, with the factor by which gradients are clipped, or against it. Where a stage dies before that,
the step is begun again when another process has its place; where it dies after, the others have taken the step, and it
is made of what they are now. So no stage takes a step twice, and none skips one.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from rekindle.anatomy.adam import MOMENTS
from rekindle.apply.load import load_model
from rekindle.edit import open_checkpoint
from rekindle.errors import CheckFailed, Ended, counted
from rekindle.recovery.fleet import Fleet, Lost
from rekindle.recovery.meeting import Meeting
from rekindle.recovery.policies import Uncovered
from rekindle.recovery.split import Part, chunk_of, parts_of
from rekindle.recovery.stages import MOST, Stages
from rekindle.recovery.wire import Message
from rekindle.store.folder import Folder
from rekindle.train.config import TrainConfig
from rekindle.train.evaluate import Result, result_of
from rekindle.train.held import Whole, untouched, whole_of
from rekindle.train.interrupts import Interrupts
from rekindle.train.objectives import Batch, rows_of
from rekindle.train.optimizer import load_optimizer, make_optimizer
from rekindle.train.state import find_state, load_state, work_folder
from rekindle.train.step import Diverged, Stats, Stepper

ASKED = 3  # recoveries without an update before a signal ends the run; after `MOST` it ends anyway
Begin = Callable[[], tuple[int, Whole]]  # the state that was saved last: its step, and all of it


@contextmanager
def pipelined(stepper: Stepper, source: Folder, out: Path, step: int, meeting: Meeting) -> Iterator[Pipeline]:
    """The same training, from `step` on, in a pipeline; its processes, which OUT.workers.json lists, end with it."""
    config = stepper.config
    parts = parts_of(open_checkpoint(source), config)
    threads = max(1, torch.get_num_threads() // (meeting.workers or len(parts)))
    fleet = Fleet(
        meeting,
        config.spares,
        threads=threads,
        patience=config.patience,
        register=out.with_name(f"{out.name}.workers.json"),
        model_type=parts[0].config["model_type"],
        describe=lambda rank: parts[rank].place.named(),
    )
    with ThreadPoolExecutor(1, thread_name_prefix="saving") as thread:
        try:
            yield Pipeline(stepper, fleet, parts, lambda: _saved_last(source, config, out), step, thread)
        finally:
            fleet.close()


def _saved_last(source: Folder, config: TrainConfig, out: Path) -> tuple[int, Whole]:
    """The run's state on disk, or what it began with."""
    model = load_model(source)
    optimizer = make_optimizer(model, config.weight_decay, config.beta2)
    saved = find_state(work_folder(out))
    if saved:
        load_state(saved, model, optimizer)
    elif config.optimizer_state:
        load_optimizer(model, optimizer, source.config, Path(config.optimizer_state).expanduser())
    return saved.step if saved else 0, whole_of(model, optimizer)


class Pipeline:
    """See Stepper, whose interface this has."""

    averages = None

    def __init__(self, stepper: Stepper, fleet: Fleet, parts: Sequence[Part], begin: Begin, at: int, thread: Executor):
        self.model, self.objective, self.accelerator = stepper.model, stepper.objective, stepper.accelerator
        self.plan, self.config = stepper.plan, stepper.config
        self.micro_batch = chunk_of(stepper.plan.batch, stepper.micro_batch, parts[0].place, stepper.plan.seq_len)
        self._begin, self._thread = begin, thread
        self._saving: Future[Any] | None = None
        self._tries = 0  # recoveries since the last update
        self._at = at  # updates that were made
        self._stats = Stats({}, 0.0, False)
        self._losses: list[tuple[float, dict[str, Any]]] = []  # since when, and what of
        self._recovered = self._peak = 0  # stages so far; bytes that one of them has held
        self._events: list[dict[str, Any]] = []
        start = whole_of(stepper.model, stepper.optimizer)
        self._names = [*start.parameters]
        self._stages = Stages(fleet, parts, self.config, self._how(), start)
        stepper.model.to("meta")
        stepper.optimizer.state.clear()

    def _how(self) -> dict[str, Any]:
        c, plan = self.config, self.plan
        chunks = plan.batch // (c.replicas * self.micro_batch)
        return {"micro_batch": self.micro_batch, "chunks": chunks, "seq_len": plan.seq_len,
                "pipeline": c.pipeline, "weight_decay": c.weight_decay, "beta2": c.beta2,
                "gradient_checkpointing": c.gradient_checkpointing,
                "bf16": self.accelerator.mixed_precision == "bf16"}  # fmt: skip

    # -- what Session asks -------------------------------------------------------------------------------------------

    def __call__(self, step: int, wanted_to_stop: Callable[[], bool] = lambda: False) -> Stats:
        if self._saving and self._saving.done():
            self.wait()  # a disc may be full
        self._reach(step + 1)
        return self._stats._replace(stop=wanted_to_stop())

    def peak_memory(self) -> int:
        return self._peak

    def told(self) -> str:
        many = f" in {self.config.replicas} replicas" if self.config.replicas > 1 else ""
        return f"{counted(self.config.stages, 'stage')}{many}, {self._stages.fleet.told()}, recovered {self._recovered}"

    def events(self) -> list[dict[str, Any]]:
        found, self._events = self._events, []
        return found

    def evaluate(self, held_out: Batch) -> Result:
        answers = self._survived("evaluate", {"rows": rows_of(held_out)}, held_out, of_first=True)
        counts = [answer.tensors["counts"] for answer in answers if "counts" in answer.tensors]
        each = {"loss": answers[-1].tensors["each"]}
        return result_of(self.objective, held_out, each, torch.cat(counts) if counts else None)

    def sound(self) -> bool:
        return all(answer.header["sound"] for answer in self._survived("sound"))

    def whole(self) -> Whole:
        answers = self._survived("weights", of_first=True)
        found: dict[str, torch.Tensor] = {}
        for answer in reversed(answers):  # of what two have the first's
            found |= answer.tensors
        self.model.load_state_dict({name: found[name] for name in self._names}, strict=False, assign=True)
        self.model.tie_weights()
        return Whole(
            parameters={name: found[name] for name in self._names},
            buffers={name: found.get(name, x) for name, x in self._stages.buffers.items()},
            moments={name: self._moments(name, found) for name in self._names},
            betas=(0.9, self.config.beta2),
        )

    def behind(self, work: Callable[[], object]) -> None:
        """While training goes on: what stages have told of themselves is a copy."""
        self._saving = self._thread.submit(work)

    def wait(self) -> None:
        saving, self._saving = self._saving, None
        if saving:
            saving.result()

    def _moments(self, name: str, found: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        if f"{name}.step" in found:
            return {key: found[f"{name}.{key}"] for key in ("step", *MOMENTS)}
        return untouched(found[name])

    # -- steps -------------------------------------------------------------------------------------------------------

    def _reach(self, step: int) -> None:
        """So many updates, whoever dies on the way."""
        while self._at < step:
            try:
                self._step(self._at)
            except Lost as lost:
                self._recover(lost)
        self._settle()

    def _settle(self) -> None:
        """Whatever was lost has been made up for: the step that it fell in, and those that were done again, too."""
        ends = sorted({began for began, _ in self._losses})[1:] + [time.perf_counter()]  # or the next death
        for began, event in self._losses:
            seconds = next(end for end in ends if end > began) - began
            self._events.append({**event, "seconds": round(seconds, 4)})
        self._losses = []

    def _step(self, step: int) -> None:
        c, plan, stages = self.config, self.plan, self._stages
        first = step * plan.batch + c.skip // plan.seq_len
        told = {
            "targets": self.objective.total(first, plan.batch),
            "seed": (c.seed * 2**32 + step) * 2**10 & 2**63 - 1,
            "weighing": {"aux_loss": c.aux_loss, "z_loss": c.z_loss},
            "shading": stages.shading(step),
        }
        batch = self.objective.batch(first, plan.batch)
        answers = [answer.header for answer in stages.ask("step", told, batch, step)]
        losses: dict[str, float | None] = {"loss": None, "aux_loss": None, "z_loss": None}
        for answer in answers:
            for name, value in answer["losses"].items():
                losses[name] = (losses[name] or 0.0) + value
        of_all = answers[: stages.stages]  # replicas have the same gradients
        stages.norms = [math.sqrt(answer["layers"]) for answer in of_all]
        norm = math.sqrt(sum(answer["square"] for answer in of_all))
        loss = losses["loss"]
        assert loss is not None
        if not (math.isfinite(loss) and math.isfinite(norm)):
            stages.ask("drop")
            raise Diverged(f"loss {loss:.4g}, gradient norm {norm:.4g}")
        self._stats, self._at, self._tries = Stats(losses, norm, False), step + 1, 0
        scale = min(1.0, c.clip / (norm + 1e-6)) if c.clip else 1.0
        shadowed = stages.shaded(told["shading"], [answer["shadow"] for answer in answers])
        told = {"scale": scale, "lr": plan.learning_rate(step), "shadowed": shadowed}
        answers = stages.ask("commit", told, step=step)
        self._peak = max(self._peak, *(answer.header["peak_memory"] for answer in answers))

    # -- recovery ----------------------------------------------------------------------------------------------------

    def _recover(self, lost: Lost) -> None:
        """Others take the places of lost stages, and what these knew is made again."""
        self._give_up(lost.stages)
        at, gone, stages = self._at, set(lost.stages), self._stages
        seed = (self.config.seed * 2**32 + at) * 2**10 & 2**63 - 1
        left: dict[int, Mapping[str, torch.Tensor]] = {}
        self._refuse(lost.stages)
        while True:
            try:
                left |= stages.fleet.left(sorted(gone))
                stages.replace(sorted(gone), left)
                try:
                    done = stages.mend(sorted(gone), left, seed)
                except Uncovered as why:
                    self._go_back(sorted(gone), str(why))
                    done = dict.fromkeys(gone, {"policy": "checkpoint"})
                break
            except Lost as more:
                gone |= set(more.stages)
        self._recovered += len(gone)
        for rank in sorted(gone):
            row = {"step": at, **stages.parts[rank].place.named(), **done[rank]}
            self._losses.append((lost.since, row))

    def _give_up(self, lost: Sequence[int]) -> None:
        """Where no step comes to its end, since somebody always dies in it."""
        self._tries += 1
        if self._tries > ASKED and (number := Interrupts.asked()) is not None:
            raise Ended(number, f"Stopped in step {self._at + 1}, in which a stage died {self._tries} times.")
        if self._tries > MOST:
            what = f"Stage {self._named(lost)} died, and in step {self._at + 1} a stage has died {MOST} times already."
            raise CheckFailed(what, hint="less memory for each: a smaller --micro-batch; --resume goes on from there")

    def _refuse(self, lost: Sequence[int]) -> None:
        if self.config.recover == "none":
            left = self._stages.fleet.left(lost)  # by those that ended since another was dead
            what = f"The process of stage {self._named([one for one in lost if one not in left] or lost)} died."
            raise CheckFailed(what, hint="--resume goes on from the state saved last; --recover shadow outlives it")

    def _named(self, ranks: Sequence[int]) -> str:
        return ", ".join(map(str, sorted({rank % self.config.stages for rank in ranks})))

    def _go_back(self, lost: Sequence[int], why: str) -> None:
        """All stages, to the state that was saved last; raises CheckFailed where that is not wanted."""
        if self.config.on_adjacent == "stop" and self.config.recover != "checkpoint":
            what = f"Stage {self._named(lost)} died, and nothing is left to make it of: {why}."
            raise CheckFailed(
                what, hint="--resume goes on from the state that was saved last; --on-adjacent checkpoint"
            )
        self.wait()  # the state that is being saved is the last one, however long that takes
        self._at, whole = self._begin()
        self._stages.fill(whole)

    # -- words to all stages -----------------------------------------------------------------------------------------

    def _survived(
        self, kind: str, told: Mapping[str, Any] | None = None, rows: Batch | None = None, *, of_first: bool = False
    ) -> list[Message]:
        """Answers after as many updates as were made, whoever dies on the way."""
        target, ask = self._at, self._stages.ask_first if of_first else self._stages.ask
        while True:
            try:
                self._reach(target)
                return ask(kind, told, rows)
            except Lost as lost:
                self._recover(lost)
