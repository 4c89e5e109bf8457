"""Pipelines that outlive their stages: how soon a death is seen and made up for, and what that costs while nobody dies.

Deaths are SIGKILLs from outside at random moments, of any stage. Beside it is torchrun, which starts all processes
again from what they saved (restarted.py: the same stages and schedule).
"""

from __future__ import annotations

import json
import os
import random
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median, quantiles
from typing import Any

from benchmarks.measure import BIN, Row, drop, record
from benchmarks.restarted import CHUNK, LENGTH, ROWS, SAVE_EVERY
from rekindle import api
from rekindle.recovery.pipeline import Pipeline

SHAPE = {"hidden": 32, "heads": 4, "ffn": 96, "layers": 8, "context": 64, "tokenizer": "bpe:512", "data": "python"}
BATCH, KILLS, APART = ROWS * LENGTH, 12, 1.5  # seconds
ROUNDS, STEPS, EVERY = 4, 52, 10
TRAIN = {"data": "python", "seq_len": LENGTH, "batch_tokens": BATCH, "micro_batch": CHUNK, "lr": 1e-3,
         "eval_tokens": LENGTH, "eval_every": 10**9, "save_every": 10**9, "overwrite": True}  # fmt: skip


def main(work: Path) -> None:
    api.init(work / "pipe", **SHAPE)
    rows: list[Row] = []
    for spares, words, target in ((1, "a warm spare", "<= 0.5 s"), (0, "no spare: a fork", "<= 1 s")):
        seen, made_up = deaths(work, spares)
        if spares:
            rows.append(Row("killed to seen", *_spread(seen), "<= 0.5 s"))
        rows.append(Row(f"killed to the next step done, {words}", *_spread(made_up), target))
    first, caught_up = restarted(work)
    rows.append(Row("torchrun, killed to the first step done", f"{first:.1f} s", "", "", ""))
    rows.append(Row(f"torchrun, to the step that died (saved every {SAVE_EVERY})", f"{caught_up:.1f} s", "", "", ""))
    rows += standing(work) + efficiency(work)
    record(f"Recovery: hidden {SHAPE['hidden']}, {SHAPE['layers']} layers, 4 stages, {BATCH} tokens a step", rows)


def _spread(seconds: list[float]) -> tuple[str, str, str]:
    return f"{median(seconds):.3f} s", f"{len(seconds)} deaths", f"most {max(seconds):.3f} s"


# -- deaths ----------------------------------------------------------------------------------------------------------


def deaths(work: Path, spares: int) -> tuple[list[float], list[float]]:
    """Seconds from each kill until the supervisor knew, and until the step that it fell in was done."""
    out, killed, seen, made_up = work / "out", [], [], []
    ended = threading.Event()

    def kill() -> None:
        rng = random.Random(0)
        while not ended.wait(APART * (0.8 + 0.4 * rng.random())):
            with suppress(OSError, ValueError):
                stages = [row["pid"] for row in json.loads(register.read_text()) if row["role"] == "stage"]
                if len(stages) == 4 and len(killed) == len(made_up) and (work / ".out.training/metrics.jsonl").exists():
                    killed.append(time.perf_counter())
                    os.kill(rng.choice(stages), signal.SIGKILL)

    register = work / "out.workers.json"
    killer = threading.Thread(target=kill)
    killer.start()

    def settled(pipeline: Any) -> None:
        if pipeline._losses:
            made_up.append(time.perf_counter())

    with before("_recover", lambda *_: seen.append(time.perf_counter())), before("_settle", settled):
        steps = int(KILLS * APART / 0.15)
        api.train(work / "pipe", out, **TRAIN, tokens=steps * BATCH, stages=4, recover="shadow", spares=spares)
        ended.set()
    killer.join()
    drop(out)
    pairs = zip(killed, seen, made_up, strict=False)
    return [list(x) for x in zip(*((b - a, c - a) for a, b, c in pairs), strict=True)]


@contextmanager
def before(name: str, does: Callable[..., None]) -> Iterator[None]:
    """A pipeline's method, with something before it."""
    method = getattr(Pipeline, name)

    def both(*arguments: Any) -> Any:
        does(*arguments)
        return method(*arguments)

    setattr(Pipeline, name, both)
    yield
    setattr(Pipeline, name, method)


def restarted(work: Path) -> tuple[float, float]:
    """Seconds from the kill of a stage until torchrun's processes made a step, and until they are where they were."""
    folder = work / "restarted"
    folder.mkdir()
    words = [BIN / "torchrun", "--standalone", "--nproc-per-node", "4", "--max-restarts", "3",
             Path(__file__).with_name("restarted.py"), work / "pipe", folder]  # fmt: skip
    quiet = {"stdout": subprocess.DEVNULL, "stderr": subprocess.DEVNULL}
    # In the store that is shared by default (torch 2.13) gloo finds the addresses of before, and never comes up.
    own = {"OMP_NUM_THREADS": "1", "TORCH_DISABLE_SHARE_RDZV_TCP_STORE": "1"}
    with subprocess.Popen([*map(str, words)], env=os.environ | own, **quiet) as process:
        try:
            steps = _wait(folder / "log", lambda steps: len(steps) > 2.5 * SAVE_EVERY)
            killed = time.time()
            os.kill(int((folder / "pid-1").read_text()), signal.SIGKILL)
            last = steps[-1][1]
            later = _wait(folder / "log", lambda steps: steps[-1][0] > killed + 1 and steps[-1][1] > last)
            again = [at for at, step in later if at > killed and step <= last and at > killed + 0.5]
            return again[0] - killed, later[-1][0] - killed
        finally:
            process.terminate()


def _wait(log: Path, until: Callable[[list[tuple[float, int]]], bool]) -> list[tuple[float, int]]:
    for _ in range(2400):
        lines = log.read_text().splitlines() if log.exists() else []
        steps = [(float(at), int(step)) for at, step in (line.split() for line in lines)]
        if steps and until(steps):
            return steps
        time.sleep(0.05)
    raise RuntimeError(f"{log} did not come so far")


# -- while nobody dies -----------------------------------------------------------------------------------------------


def standing(work: Path) -> list[Row]:
    """Step times of each policy against none, in turns; `none again` says how much is noise."""
    policies: tuple[str, ...] = ("none", "none again", "checkfree", "shadow", "redundant", "checkfree+")
    plain: dict[str, list[float]] = {}
    busy: dict[str, list[float]] = {}  # steps in which shadows are coded, or sent
    sent: list[int] = []
    for turn in range(ROUNDS):
        for policy in policies if turn % 2 else policies[::-1]:
            with before("_settle", lambda pipeline: sent.append(pipeline._stages.shadow_bytes)):
                times = step_times(work, stages=4, recover=policy.removesuffix(" again"), shadow_every=EVERY)
            for step, seconds in times.items():
                (busy if step % EVERY in (1, 2) else plain).setdefault(policy, []).append(seconds)
    none, rows = fast(plain["none"]), []
    for policy in policies:
        found = fast(plain[policy])
        if policy == "shadow":
            found += (fast(busy[policy]) - found) * 2 / EVERY
        target = {"checkfree": "<= +1 %", "shadow": "<= +2 %"}.get(policy, "")
        rows.append(
            Row(f"step, {policy}", f"{1e3 * found:.1f} ms", f"{1e3 * none:.1f} ms", f"{found / none - 1:+.1%}", target)
        )
    shadows, passed = max(sent) / STEPS, 3 * 2 * 4 * BATCH * SHAPE["hidden"]
    against = f"activations {passed / 1e3:.0f} kB"
    rows.append(Row("shadows, a step", f"{shadows / 1e3:.0f} kB", against, f"{shadows / passed:.1%}", "<= 1 %"))
    return rows


def fast(seconds: list[float]) -> float:
    """The first decile: on a shared machine medians of the very same loop differ by more than is looked for."""
    return quantiles(seconds, n=10)[0]


def efficiency(work: Path) -> list[Row]:
    """Two stages of one thread each, against one process of one thread: (m) / (m + s - 1) of twice as fast at best."""
    import torch

    threads = torch.get_num_threads()
    one, two = [], []
    for _ in range(ROUNDS):
        torch.set_num_threads(1)
        one += step_times(work).values()
        torch.set_num_threads(2)  # shared out
        two += step_times(work, stages=2, recover="none").values()
    torch.set_num_threads(threads)
    chunks = ROWS // CHUNK
    best, found = 2 * chunks / (chunks + 1), fast(one) / fast(two)
    return [Row("two stages against one process", f"{found:.2f} x", f"at best {best:.2f} x", f"{found / best:.2f}", "")]


def step_times(work: Path, **how: Any) -> dict[int, float]:
    """Seconds of the later steps of a run, by their number from 1 on."""
    out = work / "out"
    api.train(work / "pipe", out, **TRAIN | how, tokens=STEPS * BATCH)
    rows = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    drop(out)
    found = {row["step"]: BATCH / row["tokens_per_s"] for row in rows if row["kind"] == "step"}
    return {step: seconds for step, seconds in found.items() if step > STEPS // 5}
