"""Named steps from folder to folder, each run once what it reads is there, several at a time.

A step's folder is its result: what was interrupted finds what is finished and goes on from there.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, BrokenExecutor, Future, wait
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, Protocol

from rekindle.errors import RekindleError
from rekindle.store.index import read_json

Say = Callable[[str], object]
FAILED = "failed.json"
_NOTED, _HALF = "steps.json", "steps.part"  # what makes each step
_TRIES = 2  # of a step whose worker died


@dataclass(frozen=True)
class Step:
    """`verb` makes the folder `name` from the folder `source`.

    `verb` is one of the tool's (init, train, upcycle, ...), or "module:function" called with (source, out, **options).
    """

    name: str
    verb: str
    source: str = ""
    options: Mapping[str, Any] = field(default_factory=dict)
    warm: bool = False  # `train` goes on with the source's optimizer state
    seed: int = 0  # of `train`'s data order


class Engine(Protocol):
    """Where steps run; `workers` of them at a time."""

    workers: int

    def submit(self, function: Callable[..., str], *arguments: Any) -> Future[str]: ...

    def stop(self) -> None:
        """No further step begins; those that run are waited for."""

    def __enter__(self) -> Engine: ...

    def __exit__(self, *error: object) -> None:
        """Once all steps have ended."""


def perform(
    steps: Sequence[Step],
    out: Path,
    engine: Engine,
    say: Say,
    *,
    go_on: bool = False,
    ended: Callable[[str], object] = lambda name: None,
) -> dict[str, str]:
    """Run all steps under `out`, each once; finished folders are kept. `ended` hears the name of each that is done.

    Raises what a step raised, once the steps that are running have ended; with `go_on` the steps that read a failed one
    are left out instead, and the failures are returned, and written to OUT/failed.json, name -> message. Ctrl-C reaches
    the workers too: a run saves its state, and goes on from there the next time.
    """
    by_name = {step.name: step for step in steps}
    same_steps(by_name, out)
    done = {name for name in by_name if (out / name).is_dir()}
    if done:
        say(f"{len(done)} of {len(steps)} steps are there already")
    work = _Work(by_name, out, engine, done)
    try:
        while work.start():
            finished, _ = wait(work.running, return_when=FIRST_COMPLETED)
            for job in finished:
                name, text = work.end(job)
                if name in work.done:
                    ended(name)
                say(f"{len(work.done):>3}/{len(steps)}  {name:<32} {text}".rstrip())
                if name in work.failed and not go_on:
                    raise work.errors[name]
    except BaseException:
        engine.stop()
        raise
    if go_on:
        (out / FAILED).write_text(json.dumps(work.failed, indent=1) + "\n", encoding="utf-8")
    return work.failed


class _Work:
    """Which steps run, are done, or failed."""

    def __init__(self, steps: Mapping[str, Step], out: Path, engine: Engine, done: set[str]):
        self.steps, self.out, self.engine, self.done = steps, out, engine, done
        self.running: dict[Future[str], str] = {}
        self.failed: dict[str, str] = {}
        self.errors: dict[str, BaseException] = {}
        self.tries: dict[str, int] = {}

    def start(self) -> bool:
        """Begin what can begin; whether anything runs."""
        for name, step in self.steps.items():
            if len(self.running) == self.engine.workers:
                break
            waiting = name not in self.done and name not in self.failed and name not in self.running.values()
            if waiting and (not step.source or step.source in self.done):
                self.tries[name] = self.tries.get(name, 0) + 1
                self.running[self.engine.submit(run_step, step, self.out)] = name
        return bool(self.running)

    def end(self, job: Future[str]) -> tuple[str, str]:
        """Take a job that ended off the list: its step's name, and what is worth saying of it."""
        name = self.running.pop(job)
        error = job.exception()
        if error is None:
            self.done.add(name)
            return name, job.result()
        error = getattr(error, "cause", None) or error  # Ray wraps what a task raised
        if isinstance(error, BrokenExecutor) and self.tries[name] < _TRIES:
            return name, "its worker died; it is tried again"
        if isinstance(error, KeyboardInterrupt):
            raise error
        self.failed[name], self.errors[name] = str(error) or type(error).__name__, error
        return name, f"failed: {self.failed[name].splitlines()[0]}"


def same_steps(steps: Mapping[str, Step], out: Path) -> None:
    """Note what makes each step: folders that other steps made must not pass for these."""
    noted, half = check_same(steps, out), out / _HALF
    out.mkdir(parents=True, exist_ok=True)
    half.write_text(json.dumps(noted, indent=1) + "\n", encoding="utf-8")
    half.replace(out / _NOTED)


def check_same(steps: Mapping[str, Step], out: Path) -> dict[str, Any]:
    """Name -> what makes it, of these steps and of those that OUT has; raises RekindleError where one is another."""
    now = json.loads(json.dumps({name: [s.verb, s.source, dict(s.options)] for name, s in steps.items()}))
    before: dict[str, Any] = {}
    if (out / _NOTED).exists():
        before = read_json(out / _NOTED, missing="")
        changed = [name for name in before if name in now and before[name] != now[name]]
        if changed:
            what = f"{out} holds other work: its step {changed[0]} was made in another way."
            raise RekindleError(what, hint="another OUT")
    elif out.is_dir() and any(there.name != _HALF for there in out.iterdir()):
        raise RekindleError(f"{out} is not empty and holds no steps.", hint="another OUT")
    return before | now


def run_step(step: Step, out: Path) -> str:
    """One step, in a worker. Returns what is worth saying of it."""
    from rekindle import api
    from rekindle.methods import METHODS

    target, source = out / step.name, out / step.source
    if step.verb == "init":
        api.init(target, **step.options)
    elif step.verb == "train":
        never = 10**12  # but at the start and the end
        how: dict[str, Any] = {"seed": step.seed, "eval_every": never, "save_every": never, "resume": True}
        how |= {"optimizer_state": str(source / "optimizer")} if step.warm else {}
        summary = api.train(source, target, **(how | dict(step.options)))
        return f"{summary['val_loss_before']:.3f} -> {summary['val_loss']:.3f} nats, {summary['seconds']:.0f} s"
    elif step.verb in METHODS:
        api.apply(step.verb, source, **step.options).save(target)
    else:
        module, _, function = step.verb.partition(":")
        getattr(import_module(module), function)(source, target, **step.options)
    return ""
