"""Write docs/music/index.html and scores.json: the first tune for each of some texts, and how the model scores.

    python docs/music/make.py MODEL DATA

MODEL and DATA are what `rekindle music train` and `rekindle music data` wrote. Nothing is chosen by ear; a tune that is
too alike one of the training tunes (a likeness of 0.3) is not shown, and the next one that is drawn is.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

from rekindle import api
from rekindle.api.tunes import shown
from rekindle.music.likeness import SAME
from rekindle.report.tunes import Scores, tunes_page

HERE = Path(__file__).parent
TEXTS = (
    "a lively reel in D major",
    "a jig in G major",
    "a slow air in A minor, 3/4",
    "a hornpipe in B flat major, 2/4",
    "a slip jig in E minor",
    "a strathspey in A major",
)
DRAWN = 5  # tunes for each text, of which the first that may is shown
COLUMNS = {
    "parses": "read", "adds up": "bars add up", "valid": "whole", "metre kept": "metre", "key kept": "key",
    "ends on tonic": "ends on tonic", "BLEU": "BLEU", "edit similarity": "edit similarity", "likeness": "likeness",
    "too alike": "too alike", "diversity": "diversity", "cost": "cost, nats",
}  # fmt: skip
NOTE = (
    "For the text of each of 100 held-out tunes one tune of every author. Shares of tunes; but BLEU and edit "
    "similarity are to the tune of the text, likeness is to the nearest training tune (0.3 is too alike), diversity is "
    "of eight tunes for one text, and cost is what the grammar left out. Metre and key are of the texts that name one; "
    "the 5-gram is given them. The tunes themselves are the ceiling: old books have odd bars too."
)


def main(model: str, data: str) -> None:
    made = [api.compose(model, text, count=DRAWN, strict=True) for text in TEXTS]
    first = [next(at for at, one in enumerate(own.judged) if one.nearest[0] < SAME) for own in made]
    tunes = [shown(own, at, prefix=f"text{number}-") for number, (own, at) in enumerate(zip(made, first, strict=True))]
    scores = api.music_evaluate(model, data=data)
    (HERE / "scores.json").write_text(json.dumps(scores, indent=1) + "\n", encoding="utf-8")
    passed = f"; {sum(first)} before them were too alike one of the training tunes" if sum(first) else ""
    page = tunes_page(
        tunes,
        title="A tune from a sentence",
        lead=f"The first tune that a small model drew for each of {len(TEXTS)} texts, by the grammar{passed}. None "
        "was chosen by ear. The model was trained on two cores in half an hour.",
        notes=["rekindle music data tunes", "rekindle music train model --data tunes", made[0].command],
        scores=Scores("How good are they?", ("", *COLUMNS.values()), _rows(scores), NOTE),
    )
    (HERE / "index.html").write_text(page, encoding="utf-8")


def _rows(scores: dict[str, dict[str, float | None]]) -> tuple[tuple[str, ...], ...]:
    return tuple((author, *(_cell(found[name]) for name in COLUMNS)) for author, found in scores.items())


def _cell(value: float | None) -> str:
    return "" if value is None else f"{value:.1f}" if value >= 10 else f"{value:.2f}"


if __name__ == "__main__":
    main(*sys.argv[1:])
