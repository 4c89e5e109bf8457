"""The bench every study works on: named steps from folder to folder, run for each seed, several at a time.

A step's folder is its result: a study that was interrupted finds what is finished and goes on from there.
"""

from __future__ import annotations

import json
import multiprocessing
import os
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

from rekindle.errors import RekindleError
from rekindle.report.metrics import read_metrics

Say = Callable[[str], object]


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


@dataclass(frozen=True)
class Size:
    """How much a study does: seeds, and a factor on all its tokens."""

    seeds: int
    scale: float = 1.0
    quick: bool = False

    def tokens(self, full: int) -> int:
        """`full` tokens at full size, in whole steps of 4096."""
        return max(4096, int(full * self.scale) // 4096 * 4096)


def losses(runs: Path, name: str, seeds: int, *, start: bool = False) -> list[float]:
    """The last validation loss of a `train` step, for each seed; with `start` the first, before any training."""
    found = [read_metrics(runs / seeded(name, seed)).evaluations for seed in range(seeds)]
    return [rows[0 if start else -1].loss for rows in found]


def ratio_of_active(one: Path, other: Path) -> float:
    """How many times the FLOPs per token of `other` does `one` cost? By active parameters."""
    from rekindle import api

    active = [api.inspect(folder)["parameters"]["active"] for folder in (one, other)]
    return active[0] / active[1]


def command(study: str, size: Size) -> str:
    """What to type to do it again."""
    return f"rekindle lab {study} --seeds {size.seeds}" + (" --quick" if size.quick else "")


def seeds_drawn(size: Size) -> str:
    return (
        f"{size.seeds} seed{'s' * (size.seeds > 1)}: each draws the parent, the order of its text and all that follows."
    )


def seeded(name: str, seed: int) -> str:
    """The folder of a step for one seed."""
    return f"{name}-{seed}"


def perform(steps_of_seed: Callable[[int], Sequence[Step]], seeds: int, out: Path, say: Say) -> None:
    """Run all steps of all seeds under `out`, each once what it reads is there; finished folders are kept.

    Raises what a step raised, once the steps that are running have ended. Ctrl-C reaches the workers too: a run
    saves its state, and goes on from there the next time.
    """
    steps = {
        seeded(step.name, seed): (step, seed, {seeded(step.source, seed)} if step.source else set())
        for seed in range(seeds)
        for step in steps_of_seed(seed)
    }
    _same_study({name: step for name, (step, _, _) in steps.items()}, out)
    done = {name for name in steps if (out / name).is_dir()}
    if done:
        say(f"{len(done)} of {len(steps)} steps are there already")
    workers, threads = _workers()
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(workers, mp_context=context, initializer=_few_threads, initargs=(threads,)) as pool:
        running: dict[Future[str], str] = {}
        try:
            while len(done) < len(steps):
                for name, (step, seed, needs) in steps.items():
                    if name not in done and name not in running.values() and needs <= done:
                        if len(running) == workers:
                            break
                        running[pool.submit(_do, step, seed, out)] = name
                ended, _ = wait(running, return_when=FIRST_COMPLETED)
                for job in ended:
                    name = running.pop(job)
                    done.add(name)
                    say(f"{len(done):>3}/{len(steps)}  {name:<32} {job.result()}".rstrip())
        except BaseException:
            pool.shutdown(wait=False, cancel_futures=True)
            raise


def _same_study(steps: Mapping[str, Step], out: Path) -> None:
    """Folders of a study with other steps must not pass for this one's."""
    text = json.dumps({name: [s.verb, s.source, dict(s.options)] for name, s in steps.items()}, indent=1)
    path = out / "steps.json"
    out.mkdir(parents=True, exist_ok=True)
    if path.exists():
        before, now = json.loads(path.read_text(encoding="utf-8")), json.loads(text)
        changed = [name for name in before if name in now and before[name] != now[name]]
        if changed:
            raise RekindleError(
                f"{out} holds another study: its step {changed[0]} was made in another way.", hint="another --out"
            )
    elif any(out.iterdir()):
        raise RekindleError(f"{out} is not empty and holds no study.", hint="another --out")
    path.write_text(text + "\n", encoding="utf-8")


def _workers() -> tuple[int, int]:
    """Processes and threads of each: tiny models run fastest on one thread each, a GPU with one process."""
    import torch

    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    if torch.cuda.is_available():
        return 1, cores
    return cores, 1


def _few_threads(threads: int) -> None:
    os.environ["OMP_NUM_THREADS"] = str(threads)
    os.environ["TOKENIZERS_PARALLELISM"] = "true" if threads > 1 else "false"
    import torch

    torch.set_num_threads(threads)


def _do(step: Step, seed: int, out: Path) -> str:
    """One step, in a worker. Returns what is worth saying of it."""
    from rekindle import api
    from rekindle.methods import METHODS

    target, source = out / seeded(step.name, seed), out / seeded(step.source, seed)
    if step.verb == "init":
        api.init(target, **step.options)
    elif step.verb == "train":
        never = 10**12  # but at the start and the end
        how: dict[str, Any] = {"seed": seed, "eval_every": never, "save_every": never, "resume": True}
        how |= {"optimizer_state": str(source / "optimizer")} if step.warm else {}
        summary = api.train(source, target, **how, **step.options)
        return f"{summary['val_loss_before']:.3f} -> {summary['val_loss']:.3f} nats, {summary['seconds']:.0f} s"
    elif step.verb in METHODS:
        api.apply(step.verb, source, **step.options).save(target)
    else:
        module, _, function = step.verb.partition(":")
        getattr(import_module(module), function)(source, target, **step.options)
    return ""
