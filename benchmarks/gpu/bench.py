"""Parts that are done one after the other, each within its time; one that fails leaves what the others found."""

from __future__ import annotations

import gc
import json
import random
import signal
import subprocess
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from math import nan
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.sizes import Sizes
from benchmarks.measure import Row, machine, section

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
NOTE = "Medians; where there are two sides they take turns, and the device is idle before and after each timing."


class OutOfTime(BaseException):
    """Not an Exception: the compiler would take it for one of its own."""


class Bench:
    """Sizes, places, and what was found so far: OUT/gpu.json, and OUT/gpu.md, a section for results.md."""

    def __init__(self, out: Path, work: Path, sizes: Sizes, budget: float, only: tuple[str, ...]):
        """`only`: the beginnings of the names of the parts that are wanted."""
        self.out, self.work, self.sizes, self.only = out, work, sizes, only
        self.end = time.monotonic() + budget
        self.text, self.pairs = texts(work)
        self.where = described()
        self.rows: list[Row] = []
        self.found: dict[str, Any] = {}
        self.peak = {"flops": nan, "bandwidth": nan}  # the device's, per second
        self.undone: dict[str, str] = {}  # part: why
        print(self.where, flush=True)

    def part(self, name: str, limit: float, do: Callable[[Bench], dict[str, Any]]) -> None:
        """Do a part in at most `limit` seconds of those that are left, and write down what it found."""
        if not name.startswith(self.only):
            return
        began, left = time.monotonic(), self.end - time.monotonic()
        print(f"{name}: {left:.0f} s left", flush=True)
        try:
            if left < 5:
                raise OutOfTime("skipped, no time was left")
            with limited(min(limit, left)):
                self.found[name] = do(self)
            print(f"  {time.monotonic() - began:.0f} s, {json.dumps(self.found[name])}", flush=True)
        except OutOfTime as error:
            self.undone[name] = str(error)
        except Exception as error:
            traceback.print_exc()
            self.undone[name] = f"{type(error).__name__}: {error}".splitlines()[0][:300]
        if name in self.undone:
            print(f"  NOT DONE: {self.undone[name]}", flush=True)
        gc.collect()
        torch.cuda.empty_cache()
        told = {"machine": self.where, "found": self.found, "not done": self.undone}
        (self.out / "gpu.json").write_text(json.dumps(told, indent=2), encoding="utf-8")
        (self.out / "gpu.md").write_text(self.section(), encoding="utf-8")

    def row(self, what: str, value: str, against: str = "", ratio: str = "", target: str = "") -> None:
        self.rows.append(Row(what, value, against, ratio, target))

    def section(self) -> str:
        left = "; ".join(f"{name} ({why})" for name, why in self.undone.items())
        return section("GPU", self.where, self.rows, f"{NOTE} Not done: {left}." if left else NOTE)


@contextmanager
def limited(limit: float) -> Iterator[None]:
    def ring(*_: Any) -> None:
        raise OutOfTime(f"not within {limit:.0f} s")

    signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, limit)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)


def seconds(do: Callable[[], Any]) -> float:
    """Wall clock, from an idle device to an idle device."""
    settle()
    start = time.perf_counter()
    do()
    settle()
    return time.perf_counter() - start


def settle() -> None:
    if DEVICE.type == "cuda":
        torch.cuda.synchronize()


def described() -> str:
    import transformers

    software = f"torch {torch.__version__}, transformers {transformers.__version__}"
    if DEVICE.type == "cpu":
        return f"{machine()}, {software}"
    ask = ["nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader"]
    driver = subprocess.run(ask, capture_output=True, text=True).stdout.strip() or "unknown"
    return f"{torch.cuda.get_device_name()}, driver {driver}, {software}; {machine()}"


def texts(work: Path) -> tuple[str, str]:
    """A text, and pairs of which the target is the source backwards: the same on every machine."""
    rng, words = random.Random(0), [f"{start}{end}" for start in "bdfklmnprst" for end in ("a", "ent", "ill", "oro")]
    lines = [rng.choices(words, k=rng.randint(40, 120)) for _ in range(1500)]
    rows = {
        "text": [{"text": " ".join(line)} for line in lines],
        "pairs": [{"source": " ".join(line[:12]), "target": " ".join(line[11::-1])} for line in lines],
    }
    for name, found in rows.items():
        (work / f"{name}.jsonl").write_text("\n".join(map(json.dumps, found)), encoding="utf-8")
    return str(work / "text.jsonl"), str(work / "pairs.jsonl")
