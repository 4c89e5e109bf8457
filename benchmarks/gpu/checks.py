"""Is what is trained on a GPU right? Tiny models, through the verbs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
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
# On a CPU, sums in another order were seen to end 1e-4 nats and 7e-3 of the way apart (T5; the others 100 times less),
# and bf16 instead of float32 2e-4 to 9e-4 nats and 2e-2 to 9e-2 of the way.
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
    return subprocess.Popen(command, env=os.environ | {"CUDA_VISIBLE_DEVICES": ""}, stdout=subprocess.DEVNULL)


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
    found: dict[str, dict[str, str]] = {"deterministic": {}, "as it is": {}}
    for kind, told in found.items():
        for name in CHECKED:
            try:
                with deterministic(kind == "deterministic"):
                    told[name] = "the same" if resumes(bench, name, kind) else "other bytes"
            except RuntimeError as error:  # an operation that torch has no deterministic kernel for
                told[name] = f"{error}".splitlines()[0]
        same = [name for name, what in told.items() if what == "the same"]
        target = "all" if kind == "deterministic" else ""
        bench.row(f"resumed bit for bit, bf16, torch {kind}", ", ".join(same) or "none", "", "", target)
    if set(found["deterministic"].values()) != {"the same"}:
        raise RuntimeError(f"resumed runs differ: {found}")
    return found


@contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    torch.use_deterministic_algorithms(wanted)
    try:
        yield
    finally:
        torch.use_deterministic_algorithms(False)


def resumes(bench: Bench, name: str, kind: str) -> bool:
    runs = [bench.work / f"{name}, {kind}, {how}" for how in ("whole", "resumed")]
    for run, stop in zip(runs, (None, 4), strict=True):
        trained(bench.work / name, run, stop, RUN | {"data": bench.text, "precision": "bf16"})
    whole, resumed = ((run / WEIGHTS).read_bytes() for run in runs)
    return whole == resumed


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
    runs = {"llama": "next-token", "mixtral": "next-token", "t5": "span-corruption", "t5 with dropout": "seq2seq"}
    for name, objective in runs.items():
        data = bench.pairs if objective == "seq2seq" else bench.text
        options = RUN | {"data": data, "objective": objective, "precision": "bf16", "tokens": 8192}
        told = api.train(bench.work / name, bench.work / f"{name}, bf16", **options)
        before, after = told["val_loss_before"], told["val_loss"]
        found[name] = {"objective": objective, "before": before, "after": after}
        bench.row(f"{name}, {objective}, bf16", f"loss {after:.3f}", f"before {before:.3f}", "", "lower")
        if not after < before:
            raise RuntimeError(f"nothing was learnt: {found}")
    parent = bench.work / "llama, bf16"
    child = api.upcycle(api.open(parent), experts=4).save(bench.work / "upcycled")
    verdict = api.verify(child, against=parent, data=bench.text).to_dict()
    apart = f"logits {verdict['relative_difference']:.1e} apart"
    bench.row("trained here, upcycled to 4 experts, verified", apart, "", "", "as promised")
    if not verdict["held"]:
        raise RuntimeError(f"the promise was not held: {verdict}")
    return found | {"verify": verdict}
