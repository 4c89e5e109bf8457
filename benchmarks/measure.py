"""Time a command as a whole process: wall seconds, CPU seconds, peak resident memory. And write results down."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from statistics import median
from typing import Any

RESULTS = Path(__file__).parent / "results.md"
BIN = Path(sys.executable).parent


@dataclass(frozen=True)
class Run:
    wall: float  # seconds
    cpu: float  # seconds, user + system
    rss: int  # bytes, peak


@dataclass(frozen=True)
class Row:
    """One line of results: what, its value, what it is held against, and the ratio in the same run."""

    what: str
    value: str
    against: str
    ratio: str
    target: str


def run(command: Sequence[str | Path], **environment: str) -> Run:
    """Run a command to its end; raises RuntimeError with its output where it fails."""
    start = time.perf_counter()
    process = subprocess.Popen(
        list(map(str, command)), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, env=os.environ | environment
    )
    assert process.stderr
    said = process.stderr.read()
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise RuntimeError(f"{command}: exit {process.returncode}\n{said.decode()[-2000:]}")
    return Run(time.perf_counter() - start, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024)


def middle(runs: Sequence[Run]) -> Run:
    return Run(median(r.wall for r in runs), median(r.cpu for r in runs), max(r.rss for r in runs))


def machine() -> str:
    import psutil

    memory = psutil.virtual_memory().total / 2**30
    model = next((ln.split(":")[1].strip() for ln in _cpuinfo() if ln.startswith("model name")), platform.machine())
    return f"{len(os.sched_getaffinity(0))} cores ({model}), {memory:.0f} GiB, load {os.getloadavg()[0]:.1f}"


def _cpuinfo() -> list[str]:
    try:
        return Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return []


def record(title: str, rows: Sequence[Row], note: str = "") -> None:
    """Print a table and append it to results.md with machine and date."""
    lines = [f"## {title}, {date.today()}", "", f"Machine: {machine()}.", ""]
    lines += ["| what | value | against | ratio | target |", "|---|---|---|---|---|"]
    lines += [f"| {r.what} | {r.value} | {r.against} | {r.ratio} | {r.target} |" for r in rows]
    text = "\n".join([*lines, "", note, ""] if note else [*lines, ""])
    print(text, flush=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write("\n" + text)


def show(run_: Run) -> str:
    return f"{run_.wall:.2f} s, {run_.rss / 1e6:.0f} MB"


def drop(*paths: Any) -> None:
    import shutil

    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
