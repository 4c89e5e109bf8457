"""Orthogonal growth, small: where new layers go, how new experts are made, and when to grow.

Source: "Orthogonal Growth" 2025, arXiv 2510.08008 (interposition, noisy expert copies, growth after convergence).

A small mixture is trained at constant learning rate past its Chinchilla budget (20 tokens per active parameter). It
is grown in depth (twice the layers) or in width (twice the experts and twice those used), from several points of its
training, and every result is trained for the same further tokens.
"""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from rekindle.lab.claims import LOSS, Claim
from rekindle.lab.cost import times
from rekindle.lab.figures import Line, dots, ranked
from rekindle.lab.page import Page
from rekindle.lab.study import Seeded, Size, losses, seeds_drawn
from rekindle.sweep.steps import Step

SHAPE = {"hidden": 32, "heads": 4, "ffn": 128, "context": 256, "family": "mixtral", "tokenizer": "bpe:1024"}
EXPERTS, TOP_K, LAYERS = 4, 2, 2
TRAIN = {"data": "python", "seq_len": 128, "batch_tokens": 4096, "lr": 3e-3, "eval_tokens": 65536}
SUNK = {"quarter": 1_500_000, "half": 3_000_000, "whole": 6_000_000}  # tokens of the base when it is grown
AFTER = 1_000_000  # tokens of every grown model
INIT_STD = 0.02  # of experts made afresh
COST = 1.50  # FLOPs of a token after width growth, in tokens of the base; checked against the checkpoints

DEPTH = {"interpose": "interposed", "stack": "stacked", "llama-pro": "zeroed inserts"}
WIDTH = {
    "copies": "exact copies",
    "noisy": "copies with 1 % noise",
    "fresh": "fresh experts",
    "keep": "copies, top-k kept",
    "continued": "base continued",
}
CLAIMS = (
    Claim("interposed-late", "Past the Chinchilla budget, interposed layers end below stacked ones",
          "lower loss, 3B to 6B", "interpose-whole", "stack-whole"),
    Claim("stacked-early", "Before it, stacked layers end below interposed ones", "stacking is the known winner",
          "stack-quarter", "interpose-quarter"),
    Claim("noisy-as-copies", "Experts copied with 1 % noise end as low as exact copies",
          "same loss, 1 % better downstream", "noisy", "copies", alike=True),
    Claim("copied-below-fresh", "Copied experts end below fresh ones", "much worse when fresh", "noisy", "fresh"),
    Claim("more-sunk-lower", "The more was sunk before growth, the lower the end",
          "until the learning rate is annealed", "interpose-whole", "interpose-quarter"),
    Claim("annealed-higher", "Growing an annealed base ends slightly higher",
          "46.19 to 48.52 against 46.43 to 48.99 % accuracy", "interpose-whole", "interpose-annealed"),
    Claim("growth-beats-scratch", "Growth beats the same model from scratch at equal extra cost",
          "64.17 against 57.99 % accuracy", "interpose-whole", "scratch"),
)  # fmt: skip


def steps(seed: int, size: Size) -> list[Step]:
    quarter, half, whole = SUNK.values()
    first, second, third = map(size.tokens, (quarter, half - quarter, whole - half))
    on = {**TRAIN, "schedule": "constant", "warmup": 0.0}
    base = {**SHAPE, "experts": EXPERTS, "top_k": TOP_K, "seed": seed}
    made = [
        Step("start", "init", options={**base, "layers": LAYERS}),
        Step("base-quarter", "train", "start", {**on, "tokens": first, "warmup": 0.02}),
        Step("base-half", "train", "base-quarter", {**on, "tokens": second}, warm=True),
        Step("base-whole", "train", "base-half", {**on, "tokens": third}, warm=True),
        Step("base-annealed", "train", "base-half",
             {**on, "tokens": third, "schedule": "wsd", "decay": 0.4}, warm=True),
        Step("blank", "init", options={**base, "layers": 2 * LAYERS}),
    ]  # fmt: skip
    after = {**TRAIN, "tokens": size.tokens(AFTER)}
    for order, point in _depth_arms():
        grown = f"{order}-{point}-grown"
        made.append(Step(grown, "grow-depth", f"base-{point}", {"factor": 2, "order": order}))
        made.append(Step(f"{order}-{point}", "train", grown, after))
    made.append(Step("scratch", "train", "blank", {**after, "skip": first + second + third}))
    twice = {"factor": 2, "top_k": "scale", "seed": seed}
    made += [
        Step("copies-grown", "grow-experts", "base-whole", {**twice, "noise": 0.0}),
        Step("noisy-grown", "grow-experts", "base-whole", {**twice, "noise": 0.01}),
        Step("keep-grown", "grow-experts", "base-whole", {**twice, "top_k": "keep", "noise": 0.0}),
        Step("fresh-grown", "rekindle.lab.orthogonal_growth:fresh_experts", "base-whole", {"seed": seed}),
    ]
    made += [Step(arm, "train", f"{arm}-grown", after) for arm in WIDTH if arm != "continued"]
    longer = {**after, "tokens": size.tokens(int(AFTER * COST))}
    return [*made, Step("continued", "train", "base-whole", longer)]


def _depth_arms() -> list[tuple[str, str]]:
    arms = [("interpose", point) for point in (*SUNK, "annealed")]
    return [*arms, ("stack", "quarter"), ("stack", "whole"), ("llama-pro", "whole")]


def fresh_experts(source: Path, out: Path, *, seed: int) -> None:
    """Twice the experts, twice those used; the new ones and their router rows are drawn as at the start of training."""
    from rekindle import api
    from rekindle.edit import Normal, lossy
    from rekindle.edit.expressions import Rows
    from rekindle.edit.joining import Joined

    model = api.apply("grow-experts", source, factor=2, noise=0.0)
    child = model.checkpoint
    old = child.settings.num_experts // 2
    for role, x in list(child.tensors.items()):
        if role.part.startswith("expert.") and role.expert >= old:
            child.tensors[role] = Normal(x.dtype, x.shape, INIT_STD, seed, str(role))
        if role.part == "router":
            width = x.shape[1]
            rows = Normal(x.dtype, (old, width), INIT_STD, seed, str(role))
            child.tensors[role] = Joined([Rows(x, 0, old, (old, width)), rows], x.shape)
    replace(model, checkpoint=child.promising(lossy("half of the experts are new"))).save(out)


def read(runs: Path, size: Size) -> Page:
    cost = times(runs / "copies-grown-0", runs / "base-whole-0", TRAIN["seq_len"])
    assert abs(cost / COST - 1) < 0.005, cost  # the budgets would not be equal
    arms = [*(f"{order}-{point}" for order, point in _depth_arms()), "scratch", *WIDTH]
    ends = {arm: losses(runs, arm, size.seeds) for arm in arms}
    starts = {arm: losses(runs, arm, size.seeds, start=True) for arm in arms}
    return Page(
        title="Growing a mixture deeper and wider at the size of two cores",
        paper="Orthogonal Growth, 2025",
        url="https://arxiv.org/abs/2510.08008",
        setting=_setting(size),
        values={LOSS: ends},
        charts=[
            dots("depth", "Twice the layers, after equal training",
                 {words: ends[f"{order}-whole"] for order, words in DEPTH.items()} | {"from scratch": ends["scratch"]}),
            dots("depth-start", "Twice the layers, before any training",
                 {words: starts[f"{order}-whole"] for order, words in DEPTH.items()}),
            dots("width", "Twice the experts, after equal training",
                 {words: ends[arm] for arm, words in WIDTH.items()}),
            ranked("sunk", "Grown from the longest trained base",
                  [Line(f"{DEPTH['interpose']}", _by_sunk(ends, size, "interpose")),
                   Line(f"{DEPTH['stack']}", _by_sunk(ends, size, "stack")),
                   Line("interposed, annealed base", {size.tokens(SUNK["whole"]) / 1e6: ends["interpose-annealed"]})],
                  "tokens sunk, million"),
        ],
        limits=(
            "A hundred thousand active parameters and one text, against billions of both in the paper; loss only, "
            "since models of this size answer no downstream question.",
            f"Width growth raises the FLOPs of a token by {cost:.2f}; “{WIDTH['continued']}” spends the same FLOPs "
            f"on the base instead, and “{WIDTH['keep']}” keeps the active parameters (Expert Upcycling's choice).",
            "Every grown model starts a new learning-rate schedule of the same shape, so when to grow is not mixed "
            "with where the schedule stands; the paper's own runs mix them.",
        ),
    )  # fmt: skip


def _setting(size: Size) -> str:
    return (
        f"A {LAYERS}-layer mixture of {EXPERTS} experts, top-{TOP_K}, hidden size {SHAPE['hidden']}, on Python's "
        f"libraries; grown to {2 * LAYERS} layers, or {2 * EXPERTS} experts and top-{2 * TOP_K}, then trained "
        f"on {size.tokens(AFTER):,} tokens. {seeds_drawn(size)}"
    )


def _by_sunk(ends: dict[str, list[float]], size: Size, order: str) -> dict[float, list[float]]:
    arms = {size.tokens(tokens) / 1e6: f"{order}-{point}" for point, tokens in SUNK.items()}
    return {x: ends[arm] for x, arm in arms.items() if arm in ends}


STUDY = Seeded("orthogonal-growth", CLAIMS, steps, read)
