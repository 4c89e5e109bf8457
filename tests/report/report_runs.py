"""Run folders with realistic curves, written the way the trainer writes them."""

from __future__ import annotations

import json
import math
import random
from dataclasses import dataclass, replace
from pathlib import Path

from rekindle.store.lineage import extended
from rekindle.store.manifest import Manifest, Record

INIT = Record(
    verb="init",
    command="rekindle init work/init --family llama --hidden 96 --layers 3 --data stdlib",
    options={"family": {"value": "llama", "origin": "flag"}, "layers": {"value": 3, "origin": "flag"}},
    summary="a llama of 0.8M parameters",
)
PARENT = Record(
    verb="train",
    command="rekindle train work/init work/parent --data stdlib --tokens 3M --lr 3e-3",
    options={
        "tokens": {"value": 3_000_000, "origin": "flag"},
        "lr": {"value": 0.003, "origin": "flag"},
        "schedule": {"value": "constant", "origin": "default"},
    },
    source="work/init",
    tokens=3_000_000,
    flops=1.44e13,
)
UPCYCLE = Record(
    verb="upcycle",
    command="rekindle upcycle work/parent work/upcycled-start --experts 8 --top-k 2",
    options={"experts": {"value": 8, "origin": "flag"}, "router_std": {"value": 0.02, "origin": "default"}},
    source="work/parent",
    summary="8 experts from 1 feed-forward, top-2",
)


def stage(name: str, tokens: int, flops: float, source: str) -> Record:
    return Record(
        verb="train",
        command=f"rekindle train {source} work/{name} --data stdlib --tokens {tokens / 1e6:.1f}M",
        options={"tokens": {"value": tokens, "origin": "flag"}, "seed": {"value": 0, "origin": "default"}},
        source=source,
        tokens=tokens,
        flops=flops,
    )


@dataclass(frozen=True)
class Curve:
    """loss = end + (start - end) times a power law that reaches 0 at the end; flops = per_token x tokens."""

    start: float
    end: float
    tokens: int = 1_500_000
    per_token: float = 7.2e6
    steps: int = 120
    evaluations: int = 9
    stderr: float = 0.012
    sharpness: float = 40.0
    experts: int = 0
    layers: int = 3
    total: int = 808_000
    active: int = 808_000
    speed: float = 15_000.0

    def loss(self, share: float) -> float:
        floor = 1 / (1 + self.sharpness) ** 0.6
        fall = ((1 + self.sharpness * share) ** -0.6 - floor) / (1 - floor)
        return self.end + (self.start - self.end) * fall


def rows(curve: Curve, seed: int = 0) -> list[dict]:
    """The lines of metrics.jsonl."""
    noise = random.Random(seed)
    header = {
        "kind": "run",
        "model_type": "mixtral" if curve.experts else "llama",
        "parameters": {"total": curve.total, "active": curve.active},
        "tokens_planned": curve.tokens,
        "batch_tokens": curve.tokens // curve.steps,
        "seq_len": 128,
        "device": "cpu",
        "data": "stdlib",
    }
    found = [header, _evaluation(curve, 0, noise)]
    for step in range(1, curve.steps + 1):
        share = step / curve.steps
        tokens = round(curve.tokens * share)
        warm = min(1.0, step / (0.1 * curve.steps)) * min(1.0, (1 - share) / 0.2 + 0.02)
        found.append(
            {"kind": "step", "step": step, "tokens": tokens, "flops": tokens * curve.per_token,
             "loss": curve.loss(share) + noise.gauss(0, 0.06), "aux_loss": None, "z_loss": None,
             "lr": 3e-3 * warm, "grad_norm": 0.5 + 1.6 * math.exp(-9 * share) + abs(noise.gauss(0, 0.06)),
             "tokens_per_s": curve.speed * noise.uniform(0.94, 1.04), "peak_memory": 400_000_000}
        )  # fmt: skip
        if (step * (curve.evaluations - 1)) // curve.steps > ((step - 1) * (curve.evaluations - 1)) // curve.steps:
            found.append(_evaluation(curve, step, noise))
    return found


def _evaluation(curve: Curve, step: int, noise: random.Random) -> dict:
    share = step / curve.steps
    tokens = round(curve.tokens * share)
    row = {"kind": "eval", "step": step, "tokens": tokens, "flops": tokens * curve.per_token,
           "val_loss": curve.loss(share), "val_loss_stderr": curve.stderr,
           "expert_load": None, "expert_entropy": None, "dead_experts": None}  # fmt: skip
    if curve.experts:
        row |= _load(curve, share, noise)
    return row


def _load(curve: Curve, share: float, noise: random.Random) -> dict:
    load, entropy = [], []
    for layer in range(curve.layers):
        raw = [math.exp(noise.gauss(0, 0.18 + 0.25 * (layer + 1) * math.exp(-4 * share))) for _ in range(curve.experts)]
        shares = [x / sum(raw) for x in raw]
        load.append(shares)
        entropy.append(-sum(x * math.log(x) for x in shares) / math.log(curve.experts))
    return {"expert_load": load, "expert_entropy": entropy, "dead_experts": [0] * curve.layers}


def write_run(folder: Path, curve: Curve, lineage: list[Record] | None = None, seed: int = 0) -> Path:
    folder.mkdir(parents=True)
    write_rows(folder, rows(curve, seed))
    if lineage is not None:
        Manifest(version="0.1.0", lineage=lineage, parameters={"total": curve.total, "active": curve.active}).write(
            folder
        )
    return folder


def write_rows(folder: Path, lines: list[dict]) -> None:
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in lines), encoding="utf-8")


MOE = {"experts": 8, "total": 3_950_000, "active": 1_260_000, "per_token": 1.06e7, "speed": 8_500.0}


def demo(folder: Path) -> list[Path]:
    """The three runs of the demonstration: upcycled, dense continued, and the same MoE from scratch."""
    upcycled = Curve(3.465, 3.111, tokens=1_500_000, **MOE)
    dense = Curve(3.465, 3.041, tokens=2_200_000)
    scratch = Curve(7.62, 3.64, tokens=1_500_000, **MOE)
    paths = [
        write_run(folder / "upcycled", upcycled,
                  [INIT, PARENT, UPCYCLE, stage("upcycled", 1_500_000, 1.59e13, "work/upcycled-start")], 1),
        write_run(folder / "dense-continued", dense,
                  [INIT, PARENT, stage("dense-continued", 2_200_000, 1.584e13, "work/parent")], 2),
        write_run(folder / "moe-from-scratch", scratch,
                  [INIT, stage("moe-from-scratch", 1_500_000, 1.59e13, "work/init")], 3),
    ]  # fmt: skip
    verify = {"promise": "exact", "held": True, "relative_difference": 3.1e-7, "loss_parent": 3.465,
              "loss_child": 3.465, "tokens": 8192, "dtype": "float32"}  # fmt: skip
    (paths[0] / "verify.json").write_text(json.dumps(verify))
    return paths


MERGE = Record(
    verb="merge",
    command="rekindle merge work/code work/math org/some-model-7b work/merged --how ties --base work/parent",
    options={"how": {"value": "ties", "origin": "flag"}},
    summary="3 checkpoints by TIES",
)


def merged() -> list[Record]:
    """Two runs that go on from one parent, and a stranger, merged on the parent."""
    whole = {
        "a": ("work/code", "mark-a", [INIT, PARENT, stage("code", 1_500_000, 7.2e12, "work/parent")]),
        "b": ("work/math", "mark-b", [INIT, PARENT, stage("math", 900_000, 4.2e12, "work/parent")]),
        "c": ("org/some-model-7b", "mark-c", []),
        "base": ("work/parent", "mark-p", [INIT, PARENT]),
    }
    made_of = {key: (name, mark, Manifest(version="1", lineage=life)) for key, (name, mark, life) in whole.items()}
    return extended(made_of, MERGE)


def averaged(states: int = 40, *, twice: bool = False) -> list[Record]:
    """The mean of states of one run; `twice`: and of another one's end, whose record differs in what it found alone."""
    last = stage("long", 100_000 * states, 4.8e11 * states, "work/init")
    runs = [replace(last, tokens=100_000 * k, flops=4.8e11 * k, summary=f"{k}") for k in range(1, states + 1)]
    runs += [replace(last, summary="another")] * twice
    given = {f"{k}": (f"long.rk@{k}", "mark", Manifest(version="1", lineage=[INIT, run])) for k, run in enumerate(runs)}
    return extended(given, replace(MERGE, command="rekindle merge 'long.rk@*' work/mean --how mean", summary="mean"))
