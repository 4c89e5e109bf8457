"""Text to music, small: which half of a model that writes tunes is worth not beginning anew, and with how many pairs.

Source: Wu and Sun 2022, "Exploring the Efficacy of Pre-trained Checkpoints in Text-to-Music Generation Task", arXiv
2211.11216.

Texts and tunes are those of `rekindle music data`, out of the books that music21 carries. All arms take equally many
steps of as many pairs; those with a share of the tunes read these more often. Decoders have one size and the vocabulary
of tunes: one is drawn, one was first a language model of all training tunes, one of the tunes of a tenth of the pairs
alone, and two were language models of other text, of which everything but the embeddings is kept.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from rekindle.lab import tunes
from rekindle.lab.claims import LOSS, Claim, Metric
from rekindle.lab.figures import Line, dots, ranked
from rekindle.lab.page import Page, Table
from rekindle.lab.spent import End
from rekindle.lab.study import Seeded, Size, seeded, seeds_drawn
from rekindle.lab.tunes import OTHER_TOKENS, PROMPTS, ROWS, SOURCE, TEXTS, TOKENS
from rekindle.report.metrics import read_metrics
from rekindle.report.words import count
from rekindle.sweep.steps import Step

SHARES = (100, 30, 10)  # per cent of the tunes that have pairs

# arm: what reads, what writes, the share of the tunes
ARMS: dict[str, tuple[str, str, int]] = {
    **{f"drawn-{share}": ("drawn", "", share) for share in SHARES},
    **{f"encoder-{share}": ("minilm", "", share) for share in SHARES},
    **{f"decoder-{share}": ("drawn", "tunes", share) for share in SHARES},
    **{f"both-{share}": ("minilm", "tunes", share) for share in (100, 10)},
    "held-10": ("drawn", "tunes-10", 10),
    "code-100": ("drawn", "code", 100),
    "english-100": ("drawn", "english", 100),
}
WORDS = {"drawn": "both drawn", "encoder": "MiniLM reads", "decoder": "knows tunes", "both": "MiniLM, knows tunes",
         "held": "knows the pairs' tunes", "code": "knew code", "english": "knew English"}  # fmt: skip
BLEU = Metric("BLEU", "", lower_is_better=False)
EDITS = Metric("Edit similarity", "", lower_is_better=False)
VALID = Metric("Share of whole tunes", "", lower_is_better=False)
GAIN = Metric("Gain of a decoder that knows tunes", "nats per token", lower_is_better=False)
MEASURED = {BLEU: "BLEU", EDITS: "edit similarity", VALID: "valid"}
CLAIMS = (
    Claim("encoder-bleu", "A real BERT that reads makes for a higher BLEU than the same drawn", "a significant gain",
          "encoder-100", "drawn-100", metric=BLEU),
    Claim("encoder-edits", "... and for a higher edit similarity", "a significant gain", "encoder-100", "drawn-100",
          metric=EDITS),
    Claim("encoder-bleu-10", "... and so with a tenth of the tunes: BLEU", "", "encoder-10", "drawn-10", metric=BLEU,
          of="ours"),
    Claim("decoder-loss", "A decoder that knows tunes ends below a drawn one", "", "decoder-100", "drawn-100",
          of="ours"),
    Claim("decoder-loss-10", "... and so with a tenth of the tunes", "", "decoder-10", "drawn-10", of="ours"),
    Claim("decoder-more-with-few", "... where the gain is larger", "", "gain, 10 %", "gain, 100 %", metric=GAIN,
          of="ours"),
    Claim("decoder-bleu", "... and its BLEU is higher", "", "decoder-100", "drawn-100", metric=BLEU, of="ours"),
    Claim("decoder-valid-10", "... and so is the share of whole tunes, with a tenth", "", "decoder-10", "drawn-10",
          metric=VALID, of="ours"),
    Claim("held-below-drawn", "Of a tenth, even one that knows these tunes alone ends below a drawn one", "",
          "held-10", "drawn-10", of="ours"),
    Claim("tunes-below-held", "... and one that knows all tunes below that", "", "decoder-10", "held-10", of="ours"),
    Claim("encoder-adds-nothing", "Beside a decoder that knows tunes a real BERT changes nothing", "", "both-100",
          "decoder-100", alike=True, of="ours"),
    Claim("code-below-drawn", "A decoder that knew code ends below a drawn one", "", "code-100", "drawn-100",
          of="ours"),
    Claim("english-below-drawn", "... and so does one that knew English", "", "english-100", "drawn-100", of="ours"),
)  # fmt: skip


# -- steps -----------------------------------------------------------------------------------------------------------


def steps(seed: int, size: Size) -> list[Step]:
    rows = size.tokens(TOKENS) // SOURCE
    other = {"tokens": size.tokens(OTHER_TOKENS), "seed": seed}
    texts = {"texts": TEXTS if not size.quick else 16, "prompts": 0 if size.quick else PROMPTS}
    return [
        Step("data", f"{tunes.__name__}:make_data", "", {"seed": seed}),
        Step("rivals", f"{tunes.__name__}:score_rivals", "data", {"seed": seed, "texts": texts["texts"]}),
        *(Step(name, f"{tunes.__name__}:learn_tunes", "data", {"share": share, "rows": rows, "seed": seed})
          for name, share in (("tunes", 100), ("tunes-10", 10))),
        *(Step(name, f"{tunes.__name__}:learn_words", "data", {"text": name, **other}) for name in ("code", "english")),
        *(Step(arm, f"{tunes.__name__}:train_arm", writes or "data",
               {"encoder": reads, "share": share, "rows": rows, "seed": seed, **texts})
          for arm, (reads, writes, share) in ARMS.items()),
    ]  # fmt: skip


# -- what came out ---------------------------------------------------------------------------------------------------


def read(runs: Path, size: Size) -> Page:
    ends = {arm: [_lowest(runs / seeded(arm, seed)) for seed in range(size.seeds)] for arm in ARMS}
    scores = {arm: [_read(runs / seeded(arm, seed)) for seed in range(size.seeds)] for arm in ARMS}
    rivals = [_read(runs / seeded("rivals", seed)) for seed in range(size.seeds)]
    beside = {author: [one[author] for one in rivals] for author in rivals[0]}
    gains = {
        f"gain, {share} %": [a - b for a, b in zip(ends[f"drawn-{share}"], ends[f"decoder-{share}"], strict=True)]
        for share in SHARES
    }
    measured = {
        metric: {arm: [_mean(one, name) for one in own] for arm, own in scores.items()}
        for metric, name in MEASURED.items()
    }
    lines = [
        Line(WORDS[kind], {float(share): ends[f"{kind}-{share}"] for share in reversed(SHARES)})
        for kind in ("drawn", "encoder", "decoder")
    ]
    return Page(
        title="A tune from a sentence: which half is worth not beginning anew",
        paper="Wu and Sun 2022, Pre-trained Checkpoints in Text-to-Music Generation",
        url="https://arxiv.org/abs/2211.11216",
        setting=_setting(size),
        values={LOSS: ends, GAIN: gains, **measured},
        charts=[
            dots("arms", "Tunes from texts", _whole(ends)),
            ranked("pairs", "With fewer tunes, read more often", lines, "tunes with texts, % of all"),
            dots("bleu", "BLEU to the tune of the text", _beside(measured[BLEU], beside, BLEU), BLEU),
            dots("valid", "Tunes that are whole", _beside(measured[VALID], beside, VALID), VALID),
        ],
        tables=[_table({**{_named(arm): own for arm, own in scores.items()}, **beside}), _significance(scores)],
        limits=(
            "A decoder of 0.7 million parameters and 3,700 tunes, where the paper has 282,870 pairs and models of "
            "BERT's size: the direction can be compared, the size cannot.",
            "The encoder is MiniLM's first two layers, drawn or not; the paper's are whole. It has no BART here, which "
            "gains most there.",
            "A loss is the lowest of five evaluations, since arms with few pairs overfit; tunes are drawn at the end.",
            "BLEU and edit similarity are to one tune, while a text leaves thousands open: a baseline that copies the "
            "tune of the nearest text has them too (docs/music.md).",
            "A decoder that knows tunes has taken as many steps before as all arms take here; its rivals have not.",
        ),
    )  # fmt: skip


def _setting(size: Size) -> str:
    rows = size.tokens(TOKENS) // SOURCE
    return (
        "Dance tunes of three old books, in three keys each, and what their headers say, in words; versions of one "
        f"tune are on one side. {count(rows)} pairs are read, {ROWS} a step; {TEXTS if not size.quick else 16} "
        f"held-out texts are written for, one tune each, freely (temperature 1, top-p 0.9). {seeds_drawn(size)}"
    )


def _whole(values: Mapping[str, list[float]]) -> dict[str, list[float]]:
    """Of the arms that have all tunes, by their names in words."""
    return {_words(arm): own for arm, own in values.items() if arm.endswith("-100")}


def _beside(
    values: Mapping[str, list[float]], rivals: Mapping[str, list[dict[str, Any]]], metric: Metric
) -> dict[str, list[float]]:
    """The same, and rivals; of the tunes themselves no BLEU, since they are what that is to."""
    found = {author: [_mean(one, MEASURED[metric]) for one in own] for author, own in rivals.items()}
    if metric is BLEU:
        del found["the tunes"]
    return _whole(values) | found


def _named(arm: str) -> str:
    return f"{_words(arm)}, {arm.rpartition('-')[2]} %"


def _words(arm: str) -> str:
    return WORDS[arm.rpartition("-")[0]]


def _lowest(run: Path) -> float:
    return min(row.loss for row in read_metrics(run / "end").evaluations)


def _read(run: Path) -> dict[str, Any]:
    return json.loads((run / "scores.json").read_text(encoding="utf-8"))


def _mean(score: Mapping[str, Any], name: str) -> float:
    import numpy as np

    from rekindle.music.evaluate import Score

    return Score({name: np.array(score["values"][name], float)}).mean(name)


def _table(scores: Mapping[str, list[dict[str, Any]]]) -> Table:
    names = ("BLEU", "edit similarity", "valid", "metre kept", "key kept", "likeness", "too alike")
    rows = []
    for author, own in scores.items():
        means = [sum(_mean(one, name) for one in own) / len(own) for name in names]
        unlike = [one["diversity"] for one in own if one["diversity"] is not None]
        diversity = f"{sum(unlike) / len(unlike):.2f}" if unlike else ""
        rows.append((author, *(f"{mean:.3g}" if mean == mean else "" for mean in means), diversity))
    note = (
        "Means over texts and seeds. Whole tunes are read, add up and end; metre and key are of those texts that name "
        "one; likeness is to the nearest training tune, and 0.3 is too alike; diversity is of eight tunes for one text."
    )
    return Table(
        "What they write",
        ("", "BLEU", "edits", "whole", "metre", "key", "likeness", "too alike", "diversity"),
        rows,
        note,
    )


def _significance(scores: Mapping[str, list[dict[str, Any]]]) -> Table:
    """The paper's test: a paired bootstrap over texts, here over those of all seeds."""
    import numpy as np

    from rekindle.music.evaluate import Score, compared

    def whole(arm: str) -> Score:
        names = scores[arm][0]["values"]
        return Score(
            {name: np.concatenate([np.array(one["values"][name], float) for one in scores[arm]]) for name in names}
        )

    rows = []
    for arm, rival in (("encoder-100", "drawn-100"), ("decoder-100", "drawn-100"), ("both-100", "decoder-100")):
        for name in ("BLEU", "edit similarity"):
            more, p = compared(whole(arm), whole(rival), name)
            rows.append((f"{_words(arm)} against {_words(rival)}, {name}", f"{more:+.3g}", f"{p:.2g}"))
    note = "Of texts, seeds together, as the paper tests them; the claims above are tested over seeds."
    return Table("Over texts", ("", "difference", "p"), rows, note)


def ends_in(arm: str) -> End:
    """No arm is one training's alone: each stands in a folder with its pairs."""
    return End("")


STUDY = Seeded("text-to-music", CLAIMS, steps, read, ends_in)
