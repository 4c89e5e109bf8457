"""Time a command as a whole process: wall seconds, CPU seconds, peak resident memory. And write results down."""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
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


# A process's peak memory counts its parent's at the fork; so a small process starts it and asks.
LAUNCHER = """
import json, os, sys, time
start = time.perf_counter()
pid = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ, file_actions=[(os.POSIX_SPAWN_DUP2, 2, 1)])
_, status, usage = os.wait4(pid, 0)
took = time.perf_counter() - start
print(json.dumps([os.waitstatus_to_exitcode(status), took, usage.ru_utime + usage.ru_stime, usage.ru_maxrss * 1024]))
"""


def run(command: Sequence[str | Path], **environment: str) -> Run:
    """Run a command to its end; raises RuntimeError with its output where it fails."""
    words = [sys.executable, "-S", "-c", LAUNCHER, *map(str, command)]
    done = subprocess.run(words, capture_output=True, text=True, env=os.environ | environment, check=True)
    code, wall, cpu, rss = json.loads(done.stdout)
    if code:
        raise RuntimeError(f"{command}: exit {code}\n{done.stderr[-2000:]}")
    return Run(wall, cpu, rss)


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
    text = section(title, machine(), rows, note)
    print(text, flush=True)
    with RESULTS.open("a", encoding="utf-8") as file:
        file.write("\n" + text)


def section(title: str, where: str, rows: Sequence[Row], note: str = "") -> str:
    """A table as results.md has it, measured on the machine `where`."""
    lines = [f"## {title}, {date.today()}", "", f"Machine: {where}.", ""]
    lines += ["| what | value | against | ratio | target |", "|---|---|---|---|---|"]
    lines += [f"| {r.what} | {r.value} | {r.against} | {r.ratio} | {r.target} |" for r in rows]
    return "\n".join([*lines, "", note, ""] if note else [*lines, ""])


def show(run_: Run) -> str:
    return f"{run_.wall:.2f} s, {run_.rss / 1e6:.0f} MB"


def drop(*paths: Any) -> None:
    import shutil

    for path in paths:
        shutil.rmtree(path, ignore_errors=True)
