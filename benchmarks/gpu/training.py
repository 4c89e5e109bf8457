"""Training: tokens per second of Rekindle's step and of the fewest lines of torch, of one model and one text."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn.functional import cross_entropy

from benchmarks.gpu.bench import DEVICE, Bench, seconds
from rekindle import api
from rekindle.anatomy import family_of
from rekindle.anatomy.flops import training_flops
from rekindle.apply.load import load_model
from rekindle.edit import checkpoint_at
from rekindle.train.config import TrainConfig
from rekindle.train.objectives import on, split_batch
from rekindle.train.prepare import accelerator_of, prepare
from rekindle.train.step import Stepper

RATE, BETAS = 3e-4, (0.9, 0.95)
ALIKE = 0.05  # nats between the first losses of both sides: one has router losses beside, all is rounded to bf16


def measure_peak(bench: Bench) -> dict[str, float]:
    """What the device does at best: a large product in bf16, and a large copy, bytes read and written."""
    n = bench.sizes.matrix
    a, b = (torch.randn(n, n, device=DEVICE, dtype=torch.bfloat16) for _ in range(2))
    source = torch.randn(n, n, 4, device=DEVICE)
    target = torch.empty_like(source)
    best = {}
    for name, do in {"product": lambda: a @ b, "copy": lambda: target.copy_(source)}.items():
        best[name] = median(seconds(lambda do=do: [do() for _ in range(10)]) / 10 for _ in range(8))
    found = {"flops": 2 * n**3 / best["product"], "bandwidth": 2 * source.nbytes / best["copy"]}
    bench.row(f"bf16 product of {n} x {n}", f"{found['flops'] / 1e12:,.1f} TFLOP/s")
    bench.row(f"copy of {source.nbytes / 1e6:,.0f} MB", f"{found['bandwidth'] / 1e9:,.0f} GB/s, read and written")
    bench.peak = found
    return found


def measure_training(bench: Bench, family: str, **options: Any) -> dict[str, Any]:
    sizes, source = bench.sizes, bench.work / f"large {family}"
    data = sizes.data or bench.text
    if not source.exists():
        api.init(source, data=data, **sizes.trained[family])
    stepper = stepper_of(bench, source, sizes.length[family], data, options)
    sides = {"ours": lambda step: stepper(step).losses["loss"], "bare": bare_loop(source, stepper)}
    first = [[float(side(step)) for step in range(sizes.warm)] for side in sides.values()]
    taken: dict[str, list[float]] = {name: [] for name in sides}
    for turn in range(sizes.rounds):
        steps = range(sizes.warm + turn * sizes.steps, sizes.warm + (turn + 1) * sizes.steps)
        for name in list(sides)[:: -1 if turn % 2 else 1]:
            taken[name].append(seconds(lambda side=sides[name], steps=steps: [side(step) for step in steps]))
    rows = stepper.plan.batch
    made = seconds(lambda: [stepper.objective.batch(step * rows, rows) for step in range(3)]) / 3
    speed = {name: sizes.batch_tokens * sizes.steps / median(times) for name, times in taken.items()}
    per_token, parameters = cost(stepper, source)
    peak = bench.peak["flops"]
    ours, bare = (f"{x:,.0f} tokens/s, {x * per_token / peak:.1%} of the product's FLOP/s" for x in speed.values())
    how = ["torch.compile" if name == "compile" else f"{name} {value}" for name, value in options.items()]
    what = ", ".join([f"{family}, {parameters / 1e6:.0f} M, {sizes.batch_tokens:,} tokens a step", *how])
    bench.row(what, ours, f"bare loop {bare}", f"overhead {speed['bare'] / speed['ours'] - 1:+.1%}", "<= 5 %")
    apart = max(abs(ours - bare) for ours, bare in zip(*first, strict=True))
    if apart > ALIKE:
        raise RuntimeError(f"the bare loop is of another model: losses {first}")
    told = {"tokens_per_s": speed, "seconds": taken, "flops_per_token": per_token, "parameters": parameters}
    return told | {"micro_batch": stepper.micro_batch, "seconds to make a batch": made, "first losses": first}


def stepper_of(bench: Bench, source: Path, length: int, data: str, options: dict[str, Any]) -> Stepper:
    """Rekindle's, as `train` makes it."""
    sizes, out = bench.sizes, bench.work / "nothing"
    config = TrainConfig(
        data=data,
        tokens=sizes.batch_tokens * (sizes.warm + sizes.steps * sizes.rounds),
        batch_tokens=sizes.batch_tokens,
        seq_len=length,
        lr=RATE,
        schedule="constant",
        warmup=0.0,
        weight_decay=0.0,
        beta2=BETAS[1],
        precision="bf16",
        **options,
    )
    where = accelerator_of(config, out)
    return prepare(checkpoint_at(source).folder, out, config, where, resume=False, overwrite=False)[0]


def cost(stepper: Stepper, source: Path) -> tuple[float, int]:
    """FLOPs of a token, forward and backward, and parameters."""
    config = checkpoint_at(source).folder.config
    family, read, written = family_of(config), stepper.plan.seq_len, stepper.objective.length
    settings = family.settings(config)
    flops = training_flops(family, settings, written / read, written, source=read)
    return flops, family.parameters(settings)["total"]


def bare_loop(source: Path, stepper: Stepper) -> Callable[[int], torch.Tensor]:
    """The same batches, on the device beforehand; nothing is asked of the device in between."""
    objective, rows = stepper.objective, stepper.plan.batch
    model = load_model(source, output=objective.output).to(DEVICE).train()
    if stepper.config.compile:
        model.compile()
    optimizer = torch.optim.AdamW(model.parameters(), lr=RATE, betas=BETAS, weight_decay=0.0, fused=True)
    batches = [on(objective.batch(step * rows, rows), DEVICE) for step in range(stepper.plan.steps)]

    def step(number: int) -> torch.Tensor:
        parts, total = split_batch(batches[number], stepper.micro_batch), torch.zeros((), device=DEVICE)
        for part in parts:
            with torch.autocast(DEVICE.type, torch.bfloat16):
                logits = model(**objective.inputs(model, part)).logits
            labels = part["labels"] if "labels" in part else part["windows"][:, 1:]
            loss = cross_entropy(logits.flatten(0, 1).float(), labels.flatten()) / len(parts)
            loss.backward()
            total += loss.detach()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        return total

    return step
