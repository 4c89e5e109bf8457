"""Sparse upcycling, small: does a dense checkpoint's second life as a mixture beat going on, and starting over?

Source: Komatsuzaki et al. 2023, "Sparse Upcycling", arXiv 2212.05055, figures 2 and 4; drop against copy from
Nakamura et al. 2025, "Drop-Upcycling", arXiv 2502.19261.

A small dense llama is trained at constant learning rate; that is the sunk cost. From it, for 50 % and 100 % of the
sunk FLOPs each: the upcycled model (8 experts, top-2, copied or with half of each expert redrawn), the dense model
continued, and the same mixture from scratch. Every budget is a run of its own, with its own learning-rate decay; all
read the text that follows the parent's.
"""

from __future__ import annotations

from pathlib import Path

from rekindle.lab.claims import LOSS, Claim
from rekindle.lab.cost import times
from rekindle.lab.figures import Line, ranked
from rekindle.lab.page import Page
from rekindle.lab.study import Seeded, Size, losses, seeds_drawn
from rekindle.sweep.steps import Step

SHAPE = {"hidden": 64, "heads": 4, "ffn": 256, "layers": 2, "context": 256}
EXPERTS = {"experts": 8, "top_k": 2}
TRAIN = {"data": "python", "seq_len": 128, "batch_tokens": 4096, "lr": 3e-3, "eval_tokens": 65536}
SUNK = 5_000_000  # tokens of the dense parent
BUDGETS = (50, 100)  # per cent of the sunk FLOPs
COST = 1.466  # FLOPs of a token of the mixture, in tokens of the dense model; checked against the checkpoints

ARMS = {
    "copy": "upcycled, copied",
    "drop": "upcycled, half redrawn",
    "dense": "dense continued",
    "scratch": "mixture from scratch",
}
CLAIMS = (
    Claim("beats-dense", "Upcycling beats continuing dense at equal extra cost", "from about 50 % of the sunk cost on",
          "copy-100", "dense-100"),
    Claim("beats-dense-early", "... and already at 50 % of it", "about the break-even", "copy-50", "dense-50"),
    Claim("beats-scratch", "Upcycling beats a mixture from scratch given the whole sunk cost",
          "scratch catches up at about 120 %", "copy-100", "scratch-100"),
    Claim("redrawn-below-copies", "Redrawing half of each expert ends below plain copies",
          "Nakamura et al.: yes, after hundreds of billions of tokens", "drop-100", "copy-100", of="another"),
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
            Step(f"scratch-{percent}", "train", "blank", {**train, "tokens": sparse, "skip": sunk}),
        ]
    return made


def setting(cost: float, size: Size) -> str:
    return (
        f"A {SHAPE['layers']}-layer llama, hidden size {SHAPE['hidden']}, trained on {size.tokens(SUNK):,} tokens of "
        f"Python's libraries; the mixtures have {EXPERTS['experts']} experts, top-{EXPERTS['top_k']}, and cost "
        f"{cost:.2f} times the FLOPs per token. {seeds_drawn(size)}"
    )


def read(runs: Path, size: Size) -> Page:
    cost = times(runs / "copied-0", runs / "parent-0", TRAIN["seq_len"])
    assert abs(cost / COST - 1) < 0.005, cost  # the budgets would not be equal
    ends = {f"{arm}-{p}": losses(runs, f"{arm}-{p}", size.seeds) for arm in ARMS for p in BUDGETS}
    return Page(
        title="Sparse upcycling at the size of two cores",
        paper="Komatsuzaki et al. 2023, Sparse Upcycling",
        url="https://arxiv.org/abs/2212.05055",
        setting=setting(cost, size),
        values={LOSS: ends},
        charts=[
            ranked(
                "budget",
                "For as much again as was sunk",
                [Line(words, {float(p): ends[f"{arm}-{p}"] for p in BUDGETS}) for arm, words in ARMS.items()],
                "extra training FLOPs, % of the sunk cost",
            )
        ],
        limits=(
            "A quarter of a million parameters and millions of tokens, against billions of both in the paper: the "
            "direction can be compared, the size of a gain cannot.",
            "The learning rate starts anew in every second stage; the paper continues its inverse square root.",
            "Every layer is upcycled and routing weights are renormalised; the paper's language models do neither.",
        ),
    )


STUDY = Seeded("sparse-upcycling", CLAIMS, steps, read)
