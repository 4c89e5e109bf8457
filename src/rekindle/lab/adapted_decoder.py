"""A decoder adapted into an encoder-decoder, small: against the same drawn, and against the decoder as it is.

Source: Zhang et al. 2025, "Encoder-Decoder Gemma", arXiv 2504.06225, sections 3 and 5.

A small Gemma 2 learns the sources of Python's standard library; that is what there is. The task is to write a
function's name when its docstring's first sentence was read. T5Gemmas are made of the Gemma, one with each beginning of
cross-attention, and one is drawn in its sizes; the Gemma itself reads the sentence as the beginning of its text. All
take equally many steps of the same pairs, each read once.
"""

from __future__ import annotations

from pathlib import Path

from rekindle.lab.claims import LOSS, Claim
from rekindle.lab.figures import dots
from rekindle.lab.page import Page, Table
from rekindle.lab.study import Seeded, Size, losses, seeded, seeds_drawn
from rekindle.report.metrics import read_metrics
from rekindle.report.words import count
from rekindle.sweep.steps import Step

STEPS, ROWS, SOURCE, TARGET = 1280, 16, 64, 24  # of a training: steps, pairs in each, tokens of a source and a target
TOKENS = STEPS * ROWS * SOURCE
TRAIN = {"data": "python", "objective": "seq2seq", "seq_len": SOURCE, "target_len": TARGET,
         "batch_tokens": ROWS * SOURCE, "lr": 1e-3, "warmup": 0.05, "eval_tokens": 65536}  # fmt: skip
LR_DRAWN = 3e-3
SHAPE = {"family": "gemma2", "hidden": 64, "layers": 2, "heads": 4, "ffn": 256, "context": 256, "tokenizer": "bpe:1024"}
GEMMA = {"data": "stdlib", "seq_len": 128, "batch_tokens": 4096, "lr": 3e-3, "eval_tokens": 65536}
GEMMA_TOKENS = 3_000_000

CROSS = {"copy": "copied", "random": "drawn", "silent": "silent"}
WORDS = {
    **{arm: f"adapted, cross {words}" for arm, words in CROSS.items()},
    "alone": "decoder as it is",
    "drawn": "all drawn",
}
CLAIMS = (
    Claim("below-alone", "An adapted decoder ends below the decoder itself, after as many pairs",
          "49.7 against 48.6 points, after equal compute", "copy", "alone"),
    Claim("below-drawn", "... and below the same encoder-decoder drawn", "", "copy", "drawn", of="ours"),
    Claim("copied-below-drawn-cross", "Copied cross-attention ends below cross-attention that is drawn", "", "copy",
          "random", of="ours"),
    Claim("silent-below-copied", "Cross-attention that is silent at first ends below a copied one", "", "silent",
          "copy", of="ours"),
)  # fmt: skip


def steps(seed: int, size: Size) -> list[Step]:
    own = {**TRAIN, "tokens": size.tokens(TOKENS)}
    return [
        Step("start", "init", options={**SHAPE, "seed": seed}),
        Step("gemma", "train", "start", {**GEMMA, "tokens": size.tokens(GEMMA_TOKENS)}),
        *(Step(f"{arm}-start", f"{__name__}:adapt", "gemma", {"cross": arm, "seed": seed}) for arm in CROSS),
        Step("drawn-start", f"{__name__}:draw", "gemma", {"seed": seed}),
        *(Step(arm, "train", f"{arm}-start", own) for arm in CROSS),
        Step("drawn", "train", "drawn-start", {**own, "lr": LR_DRAWN}),
        Step("alone", "train", "gemma", own),
    ]


def adapt(source: Path, out: Path, cross: str, seed: int) -> None:
    """A T5Gemma of a Gemma 2."""
    from rekindle import api

    api.warm_start(source, "same", cross=cross, seed=seed).save(out)


def draw(source: Path, out: Path, seed: int) -> None:
    """One of its sizes, and of none of its weights."""
    from rekindle import api

    api.warm_start(f"random:{source}", f"random:{source}", seed=seed).save(out)


def read(runs: Path, size: Size) -> Page:
    ends = {arm: losses(runs, arm, size.seeds) for arm in WORDS}
    headers = {arm: read_metrics(runs / seeded(arm, 0)).header for arm in WORDS}
    sizes = [
        (WORDS[arm], count(header["parameters"]["total"]), f"{header['flops_per_token'] * SOURCE / 1e6:.0f}")
        for arm, header in headers.items()
    ]
    return Page(
        title="A decoder that learns to read: adapted into an encoder-decoder",
        paper="Zhang et al. 2025, Encoder-Decoder Gemma",
        url="https://arxiv.org/abs/2504.06225",
        setting=(
            f"A Gemma 2 of {SHAPE['layers']} layers, hidden size {SHAPE['hidden']}, is trained on "
            f"{count(size.tokens(GEMMA_TOKENS))} tokens of Python's standard library; then {ROWS} pairs a step, "
            f"{count(size.tokens(TOKENS) // SOURCE)} in all, of a docstring's first sentence and a name, out of "
            f"Python's libraries. {seeds_drawn(size)}"
        ),
        values={LOSS: ends},
        charts=[dots("arms", "Names from docstrings", {WORDS[arm]: ends[arm] for arm in WORDS})],
        tables=[Table("Sizes", ("", "parameters", "MFLOPs a pair, in training"), sizes)],
        limits=(
            "A fifth of a million parameters and one task, where the paper adapts 2 to 9 billion on 8 to 2,000 billion "
            "tokens of its own pretraining, and measures many tasks: the direction can be compared, the size cannot.",
            "An adapted model has twice the decoder's parameters, as in the paper, which compares at equal compute.",
            "The Gemma has read the standard library, docstrings of some of the pairs among it.",
            "Of two learning rates the drawn arm has its better one, and the others that of the copied arm, by one "
            "seed that is none of these.",
        ),
    )  # fmt: skip


STUDY = Seeded("adapted-decoder", CLAIMS, steps, read)
