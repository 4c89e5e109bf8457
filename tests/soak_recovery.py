"""A pipeline whose processes are killed at random, again and again: every run must come to its end.

    python tests/soak_recovery.py [--kills 200] [--seed N]

A run trains a small model in four stages, or in two replicas of two; policies take turns. Now and then a stage, a
spare, two of them at once, one and another while that is recovered from, or the supervisor is killed (SIGKILL), or a
stage is stopped (SIGSTOP). A run whose supervisor died goes on with --resume. At the end each step must stand once in
metrics.jsonl, OUT must load, and no process may be left. The exit code is 1 where anything was wrong.
"""

from __future__ import annotations

import argparse
import itertools
import json
import os
import random
import signal
import subprocess
import sys
import tempfile
import time
from collections import Counter
from contextlib import suppress
from pathlib import Path

import psutil

TRAIN = ["--tokens", "100k", "--seq-len", "32", "--batch-tokens", "512", "--micro-batch", "4", "--lr", "1e-3",
         "--save-every", "10k", "--patience", "3", "-q"]  # fmt: skip
STEPS, LIMIT = 195, 600  # of a run, and the seconds that one may take
FOUR, REPLICAS = ["--stages", "4"], ["--stages", "2", "--replicas", "2"]
POLICIES = ("shadow", "checkfree", "checkfree+", "redundant", "copy", "random", "checkpoint")
WAYS = [*((FOUR, policy) for policy in POLICIES), *((REPLICAS, policy) for policy in ("shadow", "redundant", "random"))]
KINDS = {"stage": 9, "in recovery": 5, "two stages": 2, "spare": 2, "supervisor": 1, "stopped": 1}  # of twenty
SOON = 0.3  # seconds that a recovery takes


def rekindle(*words: str) -> list[str]:
    return [sys.executable, "-m", "rekindle", *words]


def workers(folder: Path) -> list[dict]:
    """Those that are listed now, once the run has made a step; none before."""
    try:
        metrics = (folder / ".out.training/metrics.jsonl").read_text()
        return json.loads((folder / "out.workers.json").read_text()) if '"kind": "step"' in metrics else []
    except (OSError, ValueError):
        return []


def kill(kind: str, folder: Path, rng: random.Random) -> int:
    """How many were."""
    if kind == "in recovery":
        first = kill("stage", folder, rng)
        time.sleep(rng.uniform(0, SOON))
        return first + kill("stage", folder, rng)
    listed = workers(folder)
    roles = {"supervisor": "supervisor", "spare": "spare"}
    there = [row["pid"] for row in listed if row["role"] == roles.get(kind, "stage")]
    chosen = rng.sample(there, min(len(there), 2 if kind == "two stages" else 1))
    for pid in chosen:
        with suppress(ProcessLookupError):
            os.kill(pid, signal.SIGSTOP if kind == "stopped" else signal.SIGKILL)
    return len(chosen)


def left_behind(folder: Path) -> list[str]:
    return [str(one) for one in psutil.process_iter(["cwd"]) if one.info["cwd"] == str(folder.resolve())]


def soak(folder: Path, rng: random.Random, most: int, how: list[str]) -> tuple[Counter[str], list[str]]:
    """One run, from its first step to its last: who was killed, and what was wrong."""
    killed: Counter[str] = Counter()
    words = rekindle("train", "base", "out", *TRAIN, "--resume", *how)
    began = time.monotonic()
    while not (folder / "out").exists():
        process = subprocess.Popen(words, cwd=folder, stderr=subprocess.PIPE, stdout=subprocess.DEVNULL, text=True)
        while process.poll() is None and time.monotonic() - began < LIMIT:
            time.sleep(rng.uniform(0.2, 2.0))
            if sum(killed.values()) < most and workers(folder):
                kind = rng.choices([*KINDS], [*KINDS.values()])[0]
                killed[kind] += kill(kind, folder, rng)
        if process.poll() is None:
            process.kill()
            return killed, [f"not at its end after {LIMIT} s"]
        said = process.communicate()[1]
        if process.returncode not in (0, -signal.SIGKILL):
            return killed, [f"exit code {process.returncode}: {said[-500:]}"]
    rows = [json.loads(line) for line in (folder / "out/metrics.jsonl").read_text().splitlines()]
    steps = [row["step"] for row in rows if row["kind"] == "step"]
    wrong = [] if steps == [*range(1, STEPS + 1)] else [f"steps {steps}"]
    told = subprocess.run(rekindle("evaluate", "out", "--tokens", "1k"), cwd=folder, capture_output=True, text=True)
    wrong += [told.stderr] if told.returncode else []
    time.sleep(1)
    return killed, wrong + left_behind(folder)


def say(text: str) -> None:
    sys.stdout.write(f"{text}\n")
    sys.stdout.flush()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=200)
    parser.add_argument("--seed", type=int, default=0)
    asked = parser.parse_args()
    rng, total, bad = random.Random(asked.seed), Counter[str](), 0
    of_way: dict[str, Counter[str]] = {}
    for shape, policy in itertools.cycle(WAYS):
        if total.total() >= asked.kills:
            break
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place)
            made = rekindle(
                "init", "base", "--hidden", "32", "--layers", "4", "--heads", "2", "--tokenizer", "bpe:500", "-q"
            )
            subprocess.run(made, cwd=folder, check=True, stdout=subprocess.DEVNULL)
            how = [*shape, "--recover", policy, "--spares", rng.choice("012")]
            killed, wrong = soak(folder, rng, min(25, asked.kills - total.total()), how)
        total += killed
        of_way.setdefault(" ".join([policy, *shape[2:]]), Counter()).update(killed)
        bad += bool(wrong)
        say(f"{total.total():4} killed, of them now {dict(killed)}, {' '.join(how)}: {'; '.join(wrong) or 'well'}")
    say(f"| killed | all | {' | '.join(KINDS)} |\n|{'---|' * (2 + len(KINDS))}")
    for way, killed in {**of_way, "all": total}.items():
        say(f"| {way} | {killed.total()} | {' | '.join(str(killed[kind]) for kind in KINDS)} |")
    say(f"{bad} runs went wrong")
    sys.exit(bad > 0)


if __name__ == "__main__":
    main()
