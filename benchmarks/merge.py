"""Merging: 2 and 4 bf16 llamas of 2 GB, and 40 checkpoints of 2 GB in all, against `cp` of what is written.

Beside it the plain loop over safetensors (torch, float32, one tensor at a time) and mergekit 0.1.5, in an environment
of its own; see bytes.py. All sides flush.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.bytes import ROUNDS, cp, flushed, mergekit
from benchmarks.measure import BIN, Row, Run, drop, middle, record, run, show
from benchmarks.model import make

STEPS = 40  # checkpoints of a series
SMALL = {"layers": 5, "hidden_size": 512, "intermediate_size": 1536, "vocab_size": 8000}  # 50 MB

LOOP = """
import sys
from pathlib import Path
import torch
from safetensors import safe_open
from safetensors.torch import save_file
*sources, out = map(Path, sys.argv[1:])
out.mkdir()
for file in sorted(sources[0].glob("*.safetensors")):
    opened, merged = [safe_open(source / file.name, "pt") for source in sources], {}
    for name in opened[0].keys():
        merged[name] = sum(x.get_tensor(name).float() / len(sources) for x in opened).to(torch.bfloat16)
    save_file(merged, out / file.name, {"format": "pt"})
"""

Command = Sequence[str | Path]
Sides = dict[str, Callable[[], Run]]


def main(work: Path) -> None:
    models = [changed(make(work / f"llama2g-{i}"), i) for i in range(4)]
    rows = []
    for count, target in ((2, "<= 1.5"), (4, "<= 2.2")):
        rows += linear(models[:count], target, work)
    for how, (words, recipe) in peers(models).items():
        rows += against_mergekit(how, words, recipe, work)
    drop(*models)
    rows += series(work)
    note = "Medians of interleaved runs of ours and cp, one of the others, which take minutes; all sides flush."
    record("Merge: 2.0 GB bf16 llamas, 4 shards, page cache warm where it holds them", rows, note)


def changed(folder: Path, seed: int) -> Path:
    """The same model with other low bits, as a fine-tune would have."""
    rng = np.random.default_rng(seed)
    noise = rng.integers(0, 1 << 7, 1 << 22, dtype=np.uint16)
    for file in sorted(folder.glob("*.safetensors")) if seed else ():
        head = 8 + int.from_bytes(file.open("rb").read(8), "little")
        words = np.memmap(file, np.uint16, "r+", head)
        for lo in range(0, words.size, noise.size):
            words[lo : lo + noise.size] ^= noise[: words.size - lo]
    return folder


def linear(models: list[Path], target: str, work: Path) -> list[Row]:
    """The mean of some models: ours, cp, the plain loop and mergekit in turn."""
    out, copy, made, count = work / "out", work / "copy", work / "made", len(models)
    ours: Command = [BIN / "rekindle", "merge", *models]
    run([*ours, made])
    recipe = {"merge_method": "linear", "models": [_weighed(m, 1 / count) for m in models], "dtype": "bfloat16"}
    us_and_cp: Sides = {"ours": lambda: run([*ours, out]), "cp": lambda: cp(made, copy)}
    others: Sides = {
        "loop": lambda: flushed([BIN / "python", "-c", LOOP, *models, out], out),
        "mergekit": lambda: theirs(recipe, out, work),
    }
    found = interleaved(us_and_cp, out, copy) | interleaved(others, out, rounds=1)
    drop(made)
    us, copied = middle(found["ours"]), middle(found["cp"])
    ratio = median(a.wall / b.wall for a, b in zip(found["ours"], found["cp"], strict=True))
    rows = [
        Row(f"linear merge of {count}", show(us), f"cp and sync {copied.wall:.2f} s", f"{ratio:.2f}", target),
        Row(f"linear merge of {count}, peak memory", f"{us.rss / 1e6:.0f} MB", "", "", "<= 300 MB"),
    ]
    for name in ("loop", "mergekit"):
        them = middle(found[name])
        what = "plain loop over safetensors" if name == "loop" else "mergekit 0.1.5"
        rows.append(Row(f"{what}, of {count}", show(them), f"rekindle {show(us)}", _slower(them, us), ""))
    return rows


def peers(models: list[Path]) -> dict[str, tuple[Command, dict]]:
    """How -> (our words, mergekit's recipe) for the merges of two."""
    base, *two = models[:3]
    over = {"base_model": str(base), "dtype": "bfloat16"}
    half = [_weighed(m, 0.5) for m in two]
    cut = [{**m, "parameters": {**m["parameters"], "density": 0.5}} for m in half]
    plain = [{"model": str(m)} for m in models[:2]]
    ours = ["--base", base, "--weights", "0.5,0.5", "--density", "0.5", *two]
    return {
        "slerp": (models[:2], {"merge_method": "slerp", "models": plain, "parameters": {"t": 0.5}, **over}),
        "dare": (ours, {"merge_method": "dare_linear", "models": cut, **over}),
        "ties": (ours, {"merge_method": "ties", "models": cut, **over}),
    }


def against_mergekit(how: str, words: Command, recipe: dict, work: Path) -> list[Row]:
    out = work / "out"
    verb = [BIN / "rekindle", "merge", "--how", how, *words, out]
    found = interleaved({"ours": lambda: run(verb), "theirs": lambda: theirs(recipe, out, work)}, out, rounds=1)
    us, them = middle(found["ours"]), middle(found["theirs"])
    return [Row(f"{how} of 2", show(us), f"mergekit 0.1.5 {show(them)}", _slower(them, us), ">= 3 x")]


def series(work: Path) -> list[Row]:
    """40 checkpoints on disk and in an archive; half as many, to see whether memory grows."""
    run_, mean = work / "run", [BIN / "rekindle", "merge", "--how", "mean"]
    for step in range(1, STEPS + 1):
        changed(make(run_ / f"checkpoint-{step}", shards=2, **SMALL), step)
    archive, out, copy = work / "run.rk", work / "out", work / "copy"
    run([BIN / "rekindle", "pack", run_, archive])
    size = sum(f.stat().st_size for f in run_.rglob("*.safetensors"))
    sides = {
        "disk": lambda: run([*mean, f"{run_}/checkpoint-*", out]),
        "half of disk": lambda: run([*mean, f"{run_}/checkpoint-[12]?", out]),
        "archive": lambda: run([*mean, f"{archive}@*", out]),
        "half of archive": lambda: run([*mean, f"{archive}@10:29", out]),
        "cp": lambda: _copied(run_, copy),
    }
    found = {name: middle(runs) for name, runs in interleaved(sides, out, copy).items()}
    drop(run_)
    archive.unlink()
    rows = []
    for where in ("disk", "archive"):
        us, less, copied = found[where], found[f"half of {where}"], found["cp"]
        what, against = f"mean of {STEPS} checkpoints, {size / 1e9:.2f} GB in all, {where}", f"{copied.wall:.2f} s"
        ratio = f"{us.wall / copied.wall:.2f}"
        rows.append(Row(what, show(us), f"cp and sync of all of them {against}", ratio, ""))
        rows.append(Row("its peak memory", f"{us.rss / 1e6:.0f} MB", f"of 20 {less.rss / 1e6:.0f} MB", "", "alike"))
    return rows


def interleaved(sides: Sides, *made: Path, rounds: int = ROUNDS) -> dict[str, list[Run]]:
    """Each side in turn, in another order each time; what it made is removed first, and all else is flushed."""
    found: dict[str, list[Run]] = {name: [] for name in sides}
    names = list(sides)
    for turn in range(rounds):
        for name in names[turn % len(names) :] + names[: turn % len(names)]:
            drop(*made)
            os.sync()
            found[name].append(sides[name]())
    drop(*made)
    return found


def theirs(recipe: dict, out: Path, work: Path) -> Run:
    path = work / "merge.yaml"
    path.write_text(json.dumps(recipe))
    return flushed([mergekit("mergekit-yaml"), path, out], out, HF_HUB_OFFLINE="1")


def _copied(source: Path, to: Path) -> Run:
    to.mkdir()
    return flushed(["cp", "-r", "--reflink=never", source, to], to)


def _weighed(model: Path, weight: float) -> dict:
    return {"model": str(model), "parameters": {"weight": weight}}


def _slower(them: Run, us: Run) -> str:
    return f"{them.wall / us.wall:.1f} x slower"
