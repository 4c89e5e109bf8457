"""Sparse upcycling, small: does a dense checkpoint's second life as a mixture beat going on, and starting over?

Source: Komatsuzaki et al. 2023, "Sparse Upcycling", arXiv 2212.05055, figures 2 and 4; drop against copy from
Nakamura et al. 2025, "Drop-Upcycling", arXiv 2502.19261.

A small dense llama is trained at constant learning rate; that is the sunk cost. From it, for 50 % and 100 % of the
sunk FLOPs each: the upcycled model (8 experts, top-2, copied or with half of each expert redrawn), the dense model
continued, and the same mixture from scratch. Every budget is a run of its own, with its own learning-rate decay.
"""

from __future__ import annotations

from pathlib import Path

from rekindle.lab.claims import Claim, judge
from rekindle.lab.figures import Line, ranked
from rekindle.lab.page import Study
from rekindle.lab.study import Size, command, losses, ratio_of_active, seeds_drawn
from rekindle.sweep.steps import Step

SHAPE = {"hidden": 64, "heads": 4, "ffn": 256, "layers": 2, "context": 256}
EXPERTS = {"experts": 8, "top_k": 2}
TRAIN = {"seq_len": 128, "batch_tokens": 4096, "lr": 3e-3, "eval_tokens": 65536}
SUNK = 5_000_000  # tokens of the dense parent
BUDGETS = (50, 100)  # per cent of the sunk FLOPs
COST = 1.38  # FLOPs of a token of the mixture, in tokens of the dense model; checked against the checkpoints

ARMS = {
    "copy": "upcycled, copied",
    "drop": "upcycled, half redrawn",
    "dense": "dense continued",
    "scratch": "mixture from scratch",
}
CLAIMS = (
    Claim("Upcycling beats continuing dense at equal extra cost", "from about 50 % of the sunk cost on",
          "copy", "dense"),
    Claim("Upcycling beats a mixture from scratch given the whole sunk cost", "scratch catches up at about 120 %",
          "copy", "scratch"),
    Claim("Redrawing half of each expert ends below plain copies", "yes, after hundreds of billions of tokens",
          "drop", "copy"),
)  # fmt: skip


def steps(seed: int, size: Size) -> list[Step]:
    sunk = size.tokens(SUNK)
    train = {**TRAIN, "warmup": 0.02}
    made = [
        Step("start", "init", options={**SHAPE, "tokenizer": "bpe:1024", "seed": seed}),
        Step("parent", "train", "start", {**train, "tokens": sunk, "schedule": "constant"}),
        Step("blank", "init", options={**SHAPE, **EXPERTS, "family": "mixtral", "tokenizer": "bpe:1024", "seed": seed}),
        Step("copied", "upcycle", "parent", {**EXPERTS, "seed": seed}),
        Step("dropped", "upcycle", "parent", {**EXPERTS, "init": "drop", "seed": seed}),
    ]
    for percent in BUDGETS:
        dense = size.tokens(SUNK * percent // 100)
        sparse = size.tokens(int(SUNK * percent / 100 / COST))
        made += [
            Step(f"copy-{percent}", "train", "copied", {**train, "tokens": sparse}),
            Step(f"drop-{percent}", "train", "dropped", {**train, "tokens": sparse}),
            Step(f"dense-{percent}", "train", "parent", {**train, "tokens": dense}),
            Step(f"scratch-{percent}", "train", "blank", {**train, "tokens": sparse}),
        ]
    return made


def setting(cost: float, size: Size) -> str:
    return (
        f"A {SHAPE['layers']}-layer llama, hidden size {SHAPE['hidden']}, trained on {size.tokens(SUNK):,} tokens of "
        f"Python's standard library; the mixtures have {EXPERTS['experts']} experts, top-{EXPERTS['top_k']}, and cost "
        f"{cost:.2f} times the FLOPs per token. {seeds_drawn(size)}"
    )


def read(runs: Path, size: Size) -> Study:
    cost = ratio_of_active(runs / "copied-0", runs / "parent-0")
    assert abs(cost / COST - 1) < 0.02, cost  # the budgets would not be equal
    ends: dict[str, dict[float, list[float]]] = {
        arm: {p: losses(runs, f"{arm}-{p}", size.seeds) for p in BUDGETS} for arm in ARMS
    }
    longest = {arm: ends[arm][BUDGETS[-1]] for arm in ARMS}
    findings = [judge(claim, longest) for claim in CLAIMS]
    half = {arm: ends[arm][BUDGETS[0]] for arm in ARMS}
    early = Claim(f"... and already at {BUDGETS[0]} % of it", "about the break-even", "copy", "dense")
    findings.insert(1, judge(early, half))
    return Study(
        title="Sparse upcycling at the size of two cores",
        paper="Komatsuzaki et al. 2023, Sparse Upcycling",
        url="https://arxiv.org/abs/2212.05055",
        setting=setting(cost, size),
        findings=findings,
        charts=[
            ranked(
                "budget",
                "For as much again as was sunk",
                [Line(ARMS[arm], ends[arm]) for arm in ARMS],
                "extra training FLOPs, % of the sunk cost",
            )
        ],
        limits=(
            "A quarter of a million parameters and millions of tokens, against billions of both in the paper: the "
            "direction can be compared, the size of a gain cannot.",
            "The learning rate starts anew in every second stage; the paper continues its inverse square root.",
            "Every layer is upcycled and routing weights are renormalised; the paper's language models do neither.",
        ),
        command=command("sparse-upcycling", size),
    )
