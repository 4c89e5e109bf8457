"""Is what is trained on a GPU right? Tiny models, through the verbs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import torch

from benchmarks.gpu.bench import Bench
from benchmarks.gpu.sizes import CHECKED
from rekindle import api
from rekindle.train.metrics import read_rows
from rekindle.train.step import Stepper

RUN = {"tokens": 4096, "batch_tokens": 512, "seq_len": 64, "lr": 1e-3, "eval_tokens": 256}
LOSS_APART = 1e-3  # nats, in any step
WEIGHTS_APART = 2e-2  # of the way that the weights have gone
WEIGHTS = "model.safetensors"


def processors(bench: Bench) -> dict[str, Any]:
    """Runs of the same options in float32: here, and in processes that see no GPU."""
    for name, shape in CHECKED.items():
        api.init(bench.work / name, data=bench.text, **shape)
    options = RUN | {"data": bench.text, "precision": "fp32"}
    flags = [word for name, value in options.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    names = [name for name in CHECKED if "dropout" not in name]
    there = {name: unseeing("train", bench.work / name, bench.work / f"{name}, CPU", *flags) for name in names}
    found, wrong = {}, []
    for name in names:
        source, here, other = (bench.work / f"{name}{where}" for where in ("", ", GPU", ", CPU"))
        api.train(source, here, **options)
        if there[name].wait():
            raise RuntimeError(f"training {name} on the CPU failed")
        ours, theirs = losses(here), losses(other)
        loss, way = max(abs(a - b) for a, b in zip(ours, theirs, strict=True)), distance(here, source)
        weights = distance(here, other) / way
        found[name] = {"nats apart": loss, "weights apart": weights, "losses": ours}
        against = f"weights {weights:.1e} of the way they went"
        target = f"<= {LOSS_APART:g}, <= {WEIGHTS_APART:g}"
        bench.row(f"{name}, fp32, {len(ours)} steps, GPU against CPU", f"{loss:.1e} nats", against, "", target)
        if loss > LOSS_APART or weights > WEIGHTS_APART or ours[-1] >= ours[0]:
            wrong.append(name)
    if wrong:
        raise RuntimeError(f"GPU and CPU differ in {', '.join(wrong)}: {found}")
    return found


def unseeing(*words: str | Path) -> subprocess.Popen:
    command = [sys.executable, "-m", "rekindle", *map(str, words), "--quiet"]
    return subprocess.Popen(command, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""})


def losses(run: Path) -> list[float]:
    return [row["loss"] for row in read_rows(run / "metrics.jsonl") if row["kind"] == "step"]


def distance(folder: Path, other: Path) -> float:
    from safetensors.torch import load_file

    a, b = load_file(folder / WEIGHTS), load_file(other / WEIGHTS)
    return sum((a[name].double() - b[name].double()).square().sum().item() for name in b) ** 0.5


def resume(bench: Bench) -> dict[str, Any]:
    """Stopped after its fifth step and resumed, against never stopped: the same bytes of weights, in bf16.

    They must be where torch is told to be deterministic; what comes of it as it is is only told.
    """
    found: dict[str, list[str]] = {}
    for kind in ("deterministic", "as it is"):
        torch.use_deterministic_algorithms(kind == "deterministic")
        for name in CHECKED:
            runs = [bench.work / f"{name}, {kind}, {how}" for how in ("whole", "resumed")]
            for run, stop in zip(runs, (None, 4), strict=True):
                trained(bench.work / name, run, stop, RUN | {"data": bench.text, "precision": "bf16"})
            whole, resumed = ((run / WEIGHTS).read_bytes() for run in runs)
            found.setdefault(kind, []).extend([name] * (whole == resumed))
        target = "all" if kind == "deterministic" else ""
        bench.row(f"resumed bit for bit, bf16, torch {kind}", ", ".join(found[kind]) or "none", "", "", target)
    torch.use_deterministic_algorithms(False)
    if set(found["deterministic"]) != set(CHECKED):
        raise RuntimeError(f"resumed runs differ: {found}")
    return found


def trained(source: Path, out: Path, stop: int | None, options: dict[str, Any]) -> None:
    """A run that is asked to stop in step `stop`, and then resumed."""
    step = Stepper.__call__

    def stopping(self: Stepper, number: int, *more: Any) -> Any:
        if number == stop:
            signal.raise_signal(signal.SIGINT)
        return step(self, number, *more)

    try:
        with patch.object(Stepper, "__call__", stopping):
            api.train(source, out, **options)
    except KeyboardInterrupt:
        api.train(source, out, resume=True, **options)


def bf16(bench: Bench) -> dict[str, Any]:
    """Every objective learns, and `verify` holds a child of what was trained here to its promise."""
    found: dict[str, Any] = {}
    runs = {"mixtral": "next-token", "t5": "span-corruption", "t5 with dropout": "seq2seq"}
    for name, objective in runs.items():
        data = bench.pairs if objective == "seq2seq" else bench.text
        options = RUN | {"data": data, "objective": objective, "precision": "bf16", "tokens": 8192}
        told = api.train(bench.work / name, bench.work / f"{name}, {objective}", **options)
        before, after = found[objective] = told["val_loss_before"], told["val_loss"]
        bench.row(f"{name}, {objective}, bf16", f"loss {after:.3f}", f"before {before:.3f}", "", "lower")
        if not after < before:
            raise RuntimeError(f"nothing was learnt: {found}")
    parent = bench.work / "llama, as it is, whole"
    child = api.upcycle(api.open(parent), experts=4).save(bench.work / "upcycled")
    verdict = api.verify(child, against=parent, data=bench.text).to_dict()
    bench.row("trained here, upcycled to 4 experts, verified", f"{verdict['relative_difference']:.1e}", "", "", "held")
    if not verdict["held"]:
        raise RuntimeError(f"the promise was not held: {verdict}")
    return found | {"verify": verdict}
