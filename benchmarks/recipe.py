"""A recipe of three steps in one pass, against the slowest of its steps done one by one through disk."""

from __future__ import annotations

import json
import os
from pathlib import Path

from benchmarks.bytes import ROUNDS
from benchmarks.measure import BIN, Row, Run, drop, middle, record, run, show
from benchmarks.model import make

STEPS = {
    "grow-depth": {"factor": 1.5},
    "gqa": {"kv_heads": 4, "pool": "mean"},
    "upcycle": {"experts": 2, "top_k": 1},
}


def main(work: Path) -> None:
    source, recipe = make(work / "llama2g"), work / "recipe.yaml"
    recipe.write_text(json.dumps({"source": str(source), "steps": [{verb: on} for verb, on in STEPS.items()]}))
    alone: dict[str, list[Run]] = {verb: [] for verb in STEPS}
    together, out = [], work / "out"
    for _ in range(ROUNDS):
        drop(out)
        os.sync()
        together.append(run([BIN / "rekindle", "run", recipe, out]))
        before = source
        for verb, options in STEPS.items():
            flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
            drop(out)
            os.sync()
            alone[verb].append(run([BIN / "rekindle", verb, before, work / verb, *flags]))
            drop(*([before] if before != source else []))
            before = work / verb
        drop(before)
    steps = {verb: middle(runs) for verb, runs in alone.items()}
    us, slowest = middle(together), max(steps, key=lambda verb: steps[verb].wall)
    against = f"{slowest} alone {steps[slowest].wall:.2f} s"
    total = sum(took.wall for took in steps.values())
    rows = [Row(f"{verb} alone", show(took), "", "", "") for verb, took in steps.items()]
    rows += [
        Row("the three in one pass", show(us), against, f"{us.wall / steps[slowest].wall:.2f}", "<= 1.2"),
        Row("", f"{us.wall:.2f} s", f"one by one {total:.2f} s", f"{us.wall / total:.2f}", ""),
    ]
    record("Recipe: depth x 1.5, 4 key-value heads, 2 experts, of a 2.0 GB bf16 llama", rows, "Medians; all flush.")
