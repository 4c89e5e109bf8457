"""Second lives of a T5, small: as a Switch Transformer, as itself, and with fewer key-value heads.

Source: Komatsuzaki et al. 2023, "Sparse Upcycling", arXiv 2212.05055, figures 2 and 4; Ainslie et al. 2023, "GQA",
arXiv 2305.13245, figures 3 and 5. Both began with T5.

A small T5 learns to fill in the spans that a text lacks, at constant learning rate; that is the sunk cost. From it, for
50 % and 100 % of the sunk FLOPs each: the Switch Transformer that it is upcycled into, with experts in every second
layer of both towers and one of them for a token; the T5 continued; and the same Switch Transformer from scratch. And
for 5 %: the T5 with fewer key-value heads in its decoder's self- and cross-attention. No text is read twice on any of
these ways.
"""

from __future__ import annotations

from pathlib import Path
from statistics import median

from rekindle.lab.claims import LOSS, Claim
from rekindle.lab.cost import times
from rekindle.lab.figures import Line, ranked
from rekindle.lab.page import Page, Table
from rekindle.lab.spent import End
from rekindle.lab.study import Seeded, Size, losses, seeded, seeds_drawn
from rekindle.report.metrics import read_metrics
from rekindle.report.words import count
from rekindle.sweep.steps import Step

HEADS = 4
SHAPE = {"hidden": 32, "heads": HEADS, "ffn": 128, "layers": 2, "tokenizer": "bpe:1024", "set": {"dropout_rate": 0.0}}
EXPERTS = {"experts": 8}
TRAIN = {"data": "python", "objective": "span-corruption", "seq_len": 128, "batch_tokens": 2048, "lr": 5e-3,
         "warmup": 0.02, "eval_tokens": 131072}  # fmt: skip
SUNK = 8_000_000  # tokens of the parent
BUDGETS = (50, 100)  # per cent of the sunk FLOPs
COST = 1.0038  # FLOPs of a token of the mixture, in tokens of the T5; checked against the checkpoints
UPTRAINING = 5  # per cent of the parent's tokens
GROUPS = (2, 1)  # key-value heads after conversion
BEFORE = ", before"

ARMS = {
    "copy": "upcycled into Switch",
    "wide": "the same, router drawn as in the paper",
    "dense": "T5 continued",
    "scratch": "Switch from scratch",
}
CLAIMS = (
    Claim("beats-dense", "Upcycling beats continuing the T5 at equal extra cost",
          "from about 50 % of the sunk cost on", "copy-100", "dense-100"),
    Claim("beats-dense-early", "... and already at 50 % of it", "about the break-even", "copy-50", "dense-50"),
    Claim("beats-scratch", "Upcycling beats a Switch Transformer from scratch given the whole sunk cost",
          "scratch catches up at about 120 %", "copy-100", "scratch-100"),
    Claim("two-as-all", "Two key-value heads of four end as low as all, after 5 % uptraining",
          "Ainslie et al.: 47.1 against 47.2 points", "heads-2", "heads-4", alike=True, of="another"),
    Claim("two-below-one", "... and below one", "Ainslie et al.: 47.1 against 46.6 points", "heads-2", "heads-1",
          of="another"),
    Claim("small-router", "A router drawn 200 times smaller than the paper's ends as low", "", "copy-50", "wide-50",
          alike=True, of="ours"),
)  # fmt: skip


def steps(seed: int, size: Size) -> list[Step]:
    sunk, little = size.tokens(SUNK), {**TRAIN, "tokens": size.tokens(SUNK * UPTRAINING // 100)}
    made = [
        Step("start", "init", options={**SHAPE, "family": "t5", "seed": seed}),
        Step("parent", "train", "start", {**TRAIN, "tokens": sunk, "schedule": "constant"}),
        Step("blank", "init", options={**SHAPE, **EXPERTS, "family": "switch_transformers", "seed": seed}),
        Step("copied", "upcycle", "parent", {**EXPERTS, "tower": "both", "seed": seed}),
        Step("widely", "upcycle", "parent", {**EXPERTS, "tower": "both", "router_std": 0.02, "seed": seed}),
        Step("wide-50", "train", "widely", {**TRAIN, "tokens": size.tokens(int(SUNK / 2 / COST))}),
        Step(f"heads-{HEADS}", "train", "parent", little),
    ]
    for percent in BUDGETS:
        dense, sparse = (size.tokens(int(SUNK * percent / 100 / cost)) for cost in (1, COST))
        made += [
            Step(f"copy-{percent}", "train", "copied", {**TRAIN, "tokens": sparse}),
            Step(f"dense-{percent}", "train", "parent", {**TRAIN, "tokens": dense}),
            Step(f"scratch-{percent}", "train", "blank", {**TRAIN, "tokens": sparse, "skip": sunk}),
        ]
    for groups in GROUPS:
        pool = {"kv_heads": groups, "tower": "decoder", "repeated": True, "seed": seed}
        made += [
            Step(f"pooled-{groups}", "gqa", "parent", pool),
            Step(f"heads-{groups}", "train", f"pooled-{groups}", little),
        ]
    return made


def read(runs: Path, size: Size) -> Page:
    cost = times(runs / "copied-0", runs / "parent-0", TRAIN["seq_len"])
    assert abs(cost / COST - 1) < 0.001, cost  # the budgets would not be equal
    lives = [f"{arm}-{p}" for arm in ARMS for p in BUDGETS if (arm, p) != ("wide", 100)]
    heads = [f"heads-{n}" for n in (HEADS, *GROUPS)]
    ends = {arm: losses(runs, arm, size.seeds) for arm in (*lives, *heads)}
    ends |= {arm + BEFORE: losses(runs, arm, size.seeds, start=True) for arm in heads}
    lines = [
        Line(words, {float(p): ends[f"{arm}-{p}"] for p in BUDGETS if f"{arm}-{p}" in ends})
        for arm, words in ARMS.items()
    ]
    uptrained = [
        Line(f"{n} head{'s' * (n > 1)}", {0.0: ends[f"heads-{n}{BEFORE}"], float(UPTRAINING): ends[f"heads-{n}"]})
        for n in (HEADS, *GROUPS)
    ]
    total = read_metrics(runs / "parent-0").header["parameters"]["total"]
    return Page(
        title="A T5's second life: with experts, or with fewer heads",
        paper="Komatsuzaki et al. 2023, Sparse Upcycling",
        url="https://arxiv.org/abs/2212.05055",
        setting=(
            f"A T5 of {count(total)} parameters, {SHAPE['layers']} layers in each tower, hidden size "
            f"{SHAPE['hidden']}, is trained on {count(size.tokens(SUNK))} tokens of Python's libraries to fill in "
            f"spans; its Switch Transformer has {EXPERTS['experts']} experts in every second layer of both towers, of "
            f"which a token visits one, and costs {cost:.3f} times the FLOPs per token. {seeds_drawn(size)}"
        ),
        values={LOSS: ends},
        charts=[
            ranked("budget", "For as much again as was sunk", lines, "extra training FLOPs, % of the sunk cost"),
            ranked("heads", f"Key-value heads of a decoder, after {UPTRAINING} % uptraining", uptrained,
                   "uptraining, % of the parent's tokens"),
        ],
        tables=[_wall_clock(runs, size)],
        limits=(
            "A tenth of a million parameters and millions of tokens, against 250 million parameters and more in the "
            "paper, which measures tasks after fine-tuning too: the direction can be compared, the size cannot.",
            "Late in training a model of this size suddenly loses some 0.4 nats more, sooner with one seed than with "
            "another. At 100 % that moment lies within the run with some seeds, and is what these differ by.",
            "transformers has Switch's top-1 in both towers; the paper's encoders let experts choose, and its decoders "
            "send a token to two.",
            "The learning rate starts anew in every second stage; the paper continues its inverse square root.",
            "Heads are pooled by their mean and repeated for their queries, since T5's class has no number of them: "
            "they learn as fewer heads would, and nothing is faster.",
        ),
    )  # fmt: skip


def _wall_clock(runs: Path, size: Size) -> Table:
    """What experts cost that FLOPs do not count."""
    arms = {arm: f"{arm}-100" for arm in ("dense", "copy", "scratch")}
    found = {
        arm: median(
            1e6 / step.tokens_per_s
            for seed in range(size.seeds)
            for step in read_metrics(runs / seeded(run, seed)).steps
        )
        for arm, run in arms.items()
    }
    rows = [(ARMS[arm], f"{own:.0f}", f"{own / found['dense']:.2f}") for arm, own in found.items()]
    note = "The median of all logged steps, on one thread each, two trainings at a time: a direction, no benchmark."
    return Table("Time that a token takes in training", ("", "µs", "times the T5's"), rows, note)


def ends_in(arm: str) -> End:
    """Before any training is what the first evaluation of an uptraining run reads."""
    return End(arm.removesuffix(BEFORE), 0) if arm.endswith(BEFORE) else End(arm)


STUDY = Seeded("sparse-upcycling-t5", CLAIMS, steps, read, ends_in)
