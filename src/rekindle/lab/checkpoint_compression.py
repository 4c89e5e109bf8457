"""Checkpoint compression, small: how small does a series become, and does training go on as if nothing were lost?

Source: Kim and Belyaev 2025, "An Efficient Compression of Deep Neural Network Checkpoints Based on Prediction and
Context Modeling", arXiv 2506.12000; pruning and quantisation from Li et al. 2024, "ExCP", arXiv 2406.11257, section 3.

A small llama saves its state every 40 steps into an archive. The series is packed anew in each mode, the last but one
state, nine links from its keyframe, is restored, and training goes on from it on the same batches. Loss after the
restart shows what loss at the restart hides: a second moment of 0 makes the first updates too large.
"""

from __future__ import annotations

import filecmp
import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from statistics import mean
from typing import Any

from rekindle.lab.claims import LOSS, Claim
from rekindle.lab.figures import Line, lines
from rekindle.lab.page import Page, Table
from rekindle.lab.spent import End
from rekindle.lab.streams import STREAMS, measure
from rekindle.lab.study import Seeded, Size, seeded, seeds_drawn
from rekindle.report.metrics import read_metrics
from rekindle.sweep.steps import Step

SHAPE = {"hidden": 192, "heads": 6, "ffn": 512, "layers": 4, "context": 128, "tokenizer": "bpe:1024"}
BATCH = 2048  # tokens
TRAIN = {"data": "python", "seq_len": 128, "batch_tokens": BATCH, "beta2": 0.999, "eval_tokens": 32768}
INTERVAL = 40 * BATCH  # tokens between saves
FIRST, RESTORED, LAST = 6, 15, 16  # saves: where the packed series begins, what is restored, the end of the run
MODES = ("lossless", "near-lossless", "strong", "excp")
SHOWN = {"near-lossless": "near-lossless", "strong": "strong", "excp": "ExCP's rule"}
AFTER = (0, 1, 5, 15, 40)  # steps after the restart
CLAIMS = (
    Claim("near-lossless-15", "Near-lossless: after 15 steps as low as the exact run", "",
          "near-lossless+15", "lossless+15", alike=True, of="ours"),
    Claim("near-lossless-40", "Near-lossless: after 40 steps too", "",
          "near-lossless+40", "lossless+40", alike=True, of="ours"),
    Claim("strong-15", "Strong: after 15 steps as low", "", "strong+15", "lossless+15", alike=True, of="ours"),
    Claim("strong-40", "Strong: after 40 steps too", "", "strong+40", "lossless+40", alike=True, of="ours"),
    Claim("excp-15", "ExCP's rule: after 15 steps as low", "Li et al.: 42.93 points of 43.11, restarts every 5000 "
          "steps, beta2 0.95", "excp+15", "lossless+15", alike=True, of="another"),
    Claim("second-moments-kept", "Keeping every second moment ends below ExCP's rule, after 15 steps", "",
          "near-lossless+15", "excp+15", of="ours"),
)  # fmt: skip


def steps(seed: int, size: Size) -> list[Step]:
    interval = size.tokens(INTERVAL)
    made = [
        Step("start", "init", options={**SHAPE, "seed": seed}),
        Step("series", f"{__name__}:train_series", "start", {"interval": interval, "seed": seed}),
    ]
    for mode in MODES:
        made += [
            Step(f"packed-{mode}", f"{__name__}:repack", "series", {"mode": mode, "interval": interval // BATCH}),
            Step(mode, f"{__name__}:restore", f"packed-{mode}"),
        ]
        for n in (1, AFTER[-1]):
            goes_on = {"tokens": n * BATCH, "schedule": "continue", "warmup": 0.0, "skip": RESTORED * interval}
            every = {"eval_every": min(5, n) * BATCH}
            made.append(Step(f"{mode}-{n}", "train", mode, {**TRAIN, **goes_on, **every}, warm=True))
    return made


def train_series(source: Path, out: Path, interval: int, seed: int) -> None:
    """OUT/series.rk, a state every `interval` tokens, and OUT/end, the run that was never stopped."""
    from rekindle import api

    part = out.with_name(f"{out.name}.part")  # a run that is cut off goes on in there
    part.mkdir(exist_ok=True)
    if not (part / "end").exists():
        api.train(
            source, part / "end", **TRAIN, tokens=LAST * interval, schedule="cosine", lr=6e-4, seed=seed,
            save_every=interval, eval_every=LAST * interval, archive=str(part / "series.rk"), resume=True,
        )  # fmt: skip
    part.rename(out)


def repack(source: Path, out: Path, mode: str, interval: int) -> None:
    """OUT/series.rk in another mode, up to the state that is restored, and what its streams take."""
    from rekindle import api

    part = out.with_name(f"{out.name}.part")
    shutil.rmtree(part, ignore_errors=True)  # of one that was cut off
    folders = [part / f"step-{interval * save}" for save in range(FIRST, RESTORED + 1)]
    for folder in folders:
        api.unpack(f"{source / 'series.rk'}@{folder.name.removeprefix('step-')}", folder)
    api.pack(folders, part / "series.rk", mode=mode, tier="max")
    for folder in folders:
        shutil.rmtree(folder)
    (part / "streams.json").write_text(json.dumps(measure(part / "series.rk"), indent=1), encoding="utf-8")
    part.rename(out)


def restore(source: Path, out: Path) -> None:
    from rekindle import api

    api.unpack(source / "series.rk", out)


def read(runs: Path, size: Size) -> Page:
    found = {f"{mode}+{n}": [_loss(runs, mode, n, s) for s in range(size.seeds)] for mode in MODES for n in AFTER}
    apart = {
        mode: Line(words, {float(n): [a - b for a, b in zip(found[f"{mode}+{n}"], found[f"lossless+{n}"], strict=True)]
                           for n in AFTER})
        for mode, words in SHOWN.items()
    }  # fmt: skip
    taken = {mode: [json.loads((runs / seeded(f"packed-{mode}", s) / "streams.json").read_text(encoding="utf-8"))
                    for s in range(size.seeds)] for mode in MODES}  # fmt: skip
    same = sum(_same_end(runs, seed) for seed in range(size.seeds))
    ended = (
        f" From the lossless archive, {same} of {size.seeds} ended on the very bits of the run that was never stopped."
    )
    saves = size.tokens(INTERVAL) // BATCH
    return Page(
        title="A series of checkpoints, and what is lost with the bytes",
        paper="Kim and Belyaev 2025, Prediction and Context Modeling",
        url="https://arxiv.org/abs/2506.12000",
        setting=(
            f"A {SHAPE['layers']}-layer llama, hidden size {SHAPE['hidden']}, on Python's libraries: "
            f"{LAST} saves, {saves} steps apart, beta2 0.999. The {RESTORED}th is restored "
            f"from an archive that begins with the {FIRST}th, and trained on, on the batches that the run itself read. "
            f"{seeds_drawn(size)}{ended if saves == AFTER[-1] else ''}"
        ),
        values={LOSS: found},
        charts=[
            lines("resumed", _resumed(apart), list(apart.values()), "steps after the restart",
                  "Validation loss − the exact run's, nats per token"),
        ],
        tables=[_losses(found, taken), _gains(taken)],
        limits=(
            "Two million parameters: thresholds found from larger tensors, and trained longer, prune more or less.",
            "Forty steps after one restart; ten restarts of one run add up to more.",
            "Kim and Belyaev drive their coder by a small LSTM; this one counts, in whole numbers, so that every "
            "machine decodes the same bits. Their own figures were not at hand to compare with.",
        ),
    )  # fmt: skip


def _resumed(apart: Mapping[str, Line]) -> str:
    worst = {mode: max(abs(mean(values)) for values in line.points.values()) for mode, line in apart.items()}
    return (
        "Furthest from the exact run: " + ", ".join(f"{SHOWN[mode]} {gap:.4f}" for mode, gap in worst.items()) + " nats"
    )


def _loss(runs: Path, mode: str, after: int, seed: int) -> float:
    """So many steps after the restart."""
    run = f"{mode}-1" if after == 1 else f"{mode}-{AFTER[-1]}"
    return next(e.loss for e in read_metrics(runs / seeded(run, seed)).evaluations if e.step == after)


def _same_end(runs: Path, seed: int) -> bool:
    ends = runs / seeded(f"lossless-{AFTER[-1]}", seed), runs / seeded("series", seed) / "end"
    return filecmp.cmp(*(end / "model.safetensors" for end in ends), shallow=False)


def _losses(found: Mapping[str, list[float]], taken: Mapping[str, list[dict[str, Any]]]) -> Table:
    rows = []
    for mode in MODES:
        ratio = mean(t["raw"] / t["bytes"] for t in taken[mode])
        rows.append((SHOWN.get(mode, mode), f"{ratio:.3g} ×", *(f"{mean(found[f'{mode}+{n}']):.4f}" for n in AFTER)))
    columns = ("mode", "smaller, per link", *(f"+{n}" for n in AFTER))
    return Table(
        "Loss after the restart", columns, rows, "Validation loss, nats per token, means over seeds; tier max."
    )


def _gains(taken: Mapping[str, list[dict[str, Any]]]) -> Table:
    rows = []
    for mode in MODES:
        for stream in STREAMS:
            sums = [sum(t["streams"][stream][key] for t in taken[mode]) for key in ("values", "order0", "coded")]
            values, order0, coded = sums
            gain = f"{100 * (1 - coded / order0):.1f} %"
            rows.append((f"{SHOWN.get(mode, mode)}, {stream}", f"{order0 / values:.3f}", f"{coded / values:.3f}", gain))
    note = (
        "Bits per value over all links; order 0: the entropy of each tensor's own symbols, tables free of charge. "
        "Coded: bytes in the archive, tables and block heads included. Small tensors, which share blocks, are left out."
    )
    return Table("What context is worth", ("stream", "order 0", "coded", "saved"), rows, note)


def ends_in(arm: str) -> End:
    """A mode so many steps after its restart: read off the longest run from there."""
    mode, _, after = arm.partition("+")
    return End(f"{mode}-{AFTER[-1]}", int(after))


STUDY = Seeded("checkpoint-compression", CLAIMS, steps, read, ends_in)
