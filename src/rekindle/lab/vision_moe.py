"""Sparse upcycling of a ViT, small: does its second life as a V-MoE beat going on, and starting over?

Source: Komatsuzaki et al. 2023, "Sparse Upcycling", arXiv 2212.05055, figures 2, 3 and 6.

The task is bound by capacity: which of 62 letters and digits an image shows, and in which of the fonts that matplotlib
carries, some 1,300 classes. A small ViT is trained at constant learning rate; that is the sunk cost. From it, for 50 %
and 100 % of the sunk FLOPs each: the V-MoE that it is upcycled into, the dense model continued, and the same V-MoE from
scratch. No image is read twice on any of these ways.
"""

from __future__ import annotations

from pathlib import Path

from rekindle.lab.claims import Claim, Metric
from rekindle.lab.cost import times
from rekindle.lab.figures import Line, ranked
from rekindle.lab.page import Page
from rekindle.lab.study import Seeded, Size, seeded, seeds_drawn
from rekindle.report.metrics import read_metrics
from rekindle.report.words import count
from rekindle.sweep.steps import Step

FONTS, LETTERS = 22, 62
TOKENS, IMAGES = 17, 96  # of an image, and of a step
SHAPE = {"hidden": 64, "layers": 4, "heads": 4, "labels": FONTS * LETTERS, "init_std": 0.1,
         "set": {"image_size": 16, "patch_size": 4, "num_channels": 1}}  # fmt: skip
EXPERTS = {"experts": 8, "top_k": 2}
TRAIN = {"data": "glyphs", "seq_len": TOKENS, "batch_tokens": IMAGES * TOKENS, "lr": 1.5e-3, "warmup": 0.02,
         "eval_tokens": 6000 * TOKENS}  # fmt: skip
SUNK = 3_600_000  # tokens of the dense parent
BUDGETS = (50, 100)  # per cent of the sunk FLOPs
COST = 1.315  # FLOPs of a token of the mixture, in tokens of the dense model; checked against the checkpoints

ARMS = {
    "copy": "upcycled, experts choose",
    "token": "upcycled, tokens choose",
    "dense": "dense continued",
    "scratch": "V-MoE from scratch",
}
LOSS = Metric("Validation loss", "nats per image")
CLAIMS = (
    Claim("beats-dense", "Upcycling beats continuing dense at equal extra cost", "from about 20 % of the sunk cost on",
          "copy-100", "dense-100", metric=LOSS),
    Claim("beats-dense-early", "... and already at 50 % of it", "for vision, yes", "copy-50", "dense-50", metric=LOSS),
    Claim("beats-scratch", "Upcycling beats a mixture from scratch given the whole sunk cost",
          "scratch catches up at about 120 %", "copy-100", "scratch-100", metric=LOSS),
    Claim("experts-choose", "Experts that choose end below tokens that choose", "expert choice is better for vision",
          "copy-100", "token-100", metric=LOSS),
)  # fmt: skip


def steps(seed: int, size: Size) -> list[Step]:
    sunk = size.tokens(SUNK)
    made = [
        Step("start", "init", options={**SHAPE, "family": "vit", "seed": seed}),
        Step("parent", "train", "start", {**TRAIN, "tokens": sunk, "schedule": "constant"}),
        Step("blank", "init", options={**SHAPE, **EXPERTS, "family": "vmoe", "seed": seed}),
        Step("copied", "upcycle", "parent", {**EXPERTS, "seed": seed}),
        Step("chosen", "upcycle", "parent", {**EXPERTS, "routing": "tokens", "seed": seed}),
        Step("token-100", "train", "chosen", {**TRAIN, "tokens": size.tokens(int(SUNK / COST))}),
    ]
    for percent in BUDGETS:
        dense, sparse = (size.tokens(int(SUNK * percent / 100 / cost)) for cost in (1, COST))
        made += [
            Step(f"copy-{percent}", "train", "copied", {**TRAIN, "tokens": sparse}),
            Step(f"dense-{percent}", "train", "parent", {**TRAIN, "tokens": dense}),
            Step(f"scratch-{percent}", "train", "blank", {**TRAIN, "tokens": sparse, "skip": sunk}),
        ]
    return made


def read(runs: Path, size: Size) -> Page:
    cost = times(runs / "copied-0", runs / "parent-0", TOKENS)
    assert abs(cost / COST - 1) < 0.005, cost  # the budgets would not be equal
    arms = [f"{arm}-{p}" for arm in ARMS for p in BUDGETS if (arm, p) != ("token", 50)]
    found = {arm: [read_metrics(runs / seeded(arm, seed)) for seed in range(size.seeds)] for arm in ["parent", *arms]}
    ends = {arm: [run.evaluations[-1].loss for run in own] for arm, own in found.items()}
    lines = [
        Line(words, {float(p): ends[f"{arm}-{p}"] for p in BUDGETS if f"{arm}-{p}" in ends})
        for arm, words in ARMS.items()
    ]
    return Page(
        title="A ViT's second life, as a mixture whose experts choose",
        paper="Komatsuzaki et al. 2023, Sparse Upcycling",
        url="https://arxiv.org/abs/2212.05055",
        setting=_setting(cost, size, found["parent"][0].header["parameters"]["total"]),
        values={LOSS: ends},
        charts=[
            ranked("budget", "For as much again as was sunk", lines, "extra training FLOPs, % of the sunk cost", LOSS)
        ],
        limits=(
            "A third of a million parameters on images of 16 x 16, against a ViT-B on ImageNet in the paper: the "
            "direction can be compared, the size of a gain cannot.",
            "The learning rate starts anew in every second stage, and so do Adam's moments; the paper's vision models "
            "continue both.",
            "Every second layer has experts, eight of them, and a group of tokens is an image; the paper's have 32 "
            "experts in the last layers, and larger groups. Tokens that no expert chose go to their own best one.",
        ),
    )


def _setting(cost: float, size: Size, parameters: int) -> str:
    return (
        f"A ViT of {SHAPE['layers']} layers, hidden size {SHAPE['hidden']}, {count(parameters)} parameters, is shown "
        f"{count(size.tokens(SUNK) // TOKENS)} images of {FONTS * LETTERS:,} classes, {LETTERS} letters and digits in "
        f"{FONTS} fonts, each distorted anew; the V-MoE has {EXPERTS['experts']} experts in every second layer, each "
        f"token two of them on average, and costs {cost:.2f} times the FLOPs per image. {seeds_drawn(size)}"
    )


STUDY = Seeded("vision-moe", CLAIMS, steps, read)
