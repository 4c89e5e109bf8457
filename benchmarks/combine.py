"""Sums of a series of 50 checkpoints of 10 million values in memory: against a plain read of them, and what others do.

One thread, everything in one process, sides in turn: medians. The loop is one over state dicts, tensor by tensor, as
scripts have it; swa_utils is torch's running average, one checkpoint after the other. mergekit's evolve, deprecated,
merges on disc for each candidate: see `merge`. What `combine` writes in the end is a merge too.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from statistics import median

import numpy as np
import torch
from threadpoolctl import threadpool_limits

from benchmarks.measure import Row, record
from rekindle.search.store import Store
from rekindle.store.window import loops

K, P, TENSORS, MANY, ROUNDS = 50, 10_000_000, 40, 16, 5


def main(work: Path) -> None:
    torch.set_num_threads(1)
    with threadpool_limits(1):
        rows = measured()
    record(f"Combinations: {K} checkpoints of {P / 1e6:g} million values, float32, one thread", rows, __doc__ or "")


def measured() -> list[Row]:
    rng = np.random.default_rng(0)
    thetas = np.empty((K, P), np.float32)
    for row in thetas:
        row[:] = rng.standard_normal(P, np.float32)
    wide = Store(thetas[:-1], thetas[-1])
    narrow = Store(np.stack([loops().round(row, "BF16") for row in thetas[:-1]]), thetas[-1], "bfloat16")
    out, many, g = np.empty(P, np.float32), np.empty((MANY, P), np.float32), rng.standard_normal(P, np.float32)
    alpha, alphas = rng.dirichlet(np.ones(K)), rng.dirichlet(np.ones(K), MANY)
    dicts = [{f"w{i}": part for i, part in enumerate(torch.from_numpy(theta).chunk(TENSORS))} for theta in thetas]
    weights = [float(a) for a in alpha]

    def loop() -> None:
        for name in dicts[0]:
            sum(a * own[name] for a, own in zip(weights, dicts, strict=True))

    models = [_model(own) for own in dicts]

    def swa() -> None:
        averaged = torch.optim.swa_utils.AveragedModel(models[0])
        for model in models:
            averaged.update_parameters(model)

    took = timed({
        "read": lambda: thetas.max(),
        "mix": lambda: wide.mix(alpha, out),
        "mix, bfloat16": lambda: narrow.mix(alpha, out),
        "gradient": lambda: wide.gradient(g),
        "gradient, bfloat16": lambda: narrow.gradient(g),
        "edit": lambda: wide.edit(out, {3: 0.01, 7: -0.01}),
        "many": lambda: wide.mix_many(alphas, many),
        "loop": loop,
        "swa": swa,
    })  # fmt: skip
    each = took["many"] / MANY

    def row(what: str, value: float, against: str, other: float, target: str, slower: bool = False) -> Row:
        ratio = f"{other / value:.1f} x slower" if slower else f"{value / other:.2f}"
        return Row(what, f"{1e3 * value:.1f} ms", f"{against} {1e3 * other:.1f} ms", ratio, target)

    return [
        row("one combination", took["mix"], "plain read", took["read"], "<= 1.4"),
        row("one out of a bfloat16 store", took["mix, bfloat16"], "out of float32", took["mix"], "<= 1"),
        row(f"each of {MANY} at once", each, "one alone", took["mix"], ""),
        row("gradient in the coefficients", took["gradient"], "plain read", took["read"], "<= 1.3"),
        row("the same, bfloat16 store", took["gradient, bfloat16"], "plain read", took["read"], "<= 1.3"),
        row("two coefficients edited", took["edit"], "loop over state dicts", took["loop"], ">= 20 x", slower=True),
        row("loop over state dicts", took["mix"], "loop", took["loop"], "", slower=True),
        row("torch.optim.swa_utils, an average", took["mix"], "swa_utils", took["swa"], "", slower=True),
    ]


def _model(tensors: dict[str, torch.Tensor]) -> torch.nn.Module:
    model = torch.nn.Module()
    for name, tensor in tensors.items():
        model.register_parameter(name, torch.nn.Parameter(tensor, requires_grad=False))
    return model


def timed(sides: dict[str, Callable[[], object]]) -> dict[str, float]:
    """Median seconds of each; one round of all after the other."""
    took: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(ROUNDS):
        for name, side in sides.items():
            start = time.perf_counter()
            side()
            took[name].append(time.perf_counter() - start)
    return {name: median(seconds) for name, seconds in took.items()}
