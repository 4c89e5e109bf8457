"""How good a model's tunes are, on texts of tunes that it never saw, beside rivals and the tunes themselves.

For each held-out tune one text, and for each text one tune of every author.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rekindle.errors import RekindleError
from rekindle.music.abc.header import written
from rekindle.music.abc.reader import read_tune
from rekindle.music.compose import Composer
from rekindle.music.config import ComposeConfig, MusicEvaluateConfig
from rekindle.music.likeness import SAME, Known, shapes
from rekindle.music.measure import Judged, bleu, diversity, edit_similarity, judge
from rekindle.music.request import request
from rekindle.music.rivals import NGram, Retrieval
from rekindle.music.words import Facts, asked

FREE, STRICT, GRAMS, NEAREST, THEMSELVES = (
    "model",
    "model, by the grammar",
    "5-gram",
    "nearest text's tune",
    "the tunes",
)
# What is measured: a name, whether more is better (None: neither).
MEASURES = {
    "parses": True, "adds up": True, "valid": True, "metre kept": True, "key kept": True, "ends on tonic": True,
    "BLEU": True, "edit similarity": True, "likeness": False, "too alike": False, "cost": None,
}  # fmt: skip
_DRAWS = 10_000  # resamples of the texts


@dataclass(frozen=True)
class Text:
    """A text of a held-out tune, that tune, and what the text asks for."""

    text: str
    tune: str
    wanted: Facts


@dataclass(frozen=True)
class Score:
    """Of one author: of each measure a value for each text, NaN where it has none; and how unlike tunes for one are."""

    values: dict[str, np.ndarray]
    diversity: float | None = None

    def told(self, name: str) -> float | None:
        """The mean, or the diversity; None where there is none."""
        found = self.diversity if name == "diversity" else self.mean(name)
        return None if found is None or np.isnan(found) else found

    def mean(self, name: str) -> float:
        found = self.values[name]
        return float(np.nanmean(found)) if np.isfinite(found).any() else float("nan")


def evaluate(composer: Composer, data: Path, config: MusicEvaluateConfig) -> dict[str, Score]:
    """{author: score}; raises RekindleError for data without held-out tunes."""
    texts, rows = held_out(data, config.texts, config.seed), _rows(data, "train")
    known = _known(rows)
    scores = _beside(texts, rows, known, config.seed)
    for name, strict in ((FREE, False), (STRICT, True)):
        scores[name] = _of_model(composer, texts, known, config, strict=strict)
    return scores


def beside(data: Path, config: MusicEvaluateConfig) -> dict[str, Score]:
    """Of the held-out tunes themselves, the tune of the nearest text and a 5-gram."""
    rows = _rows(data, "train")
    return _beside(held_out(data, config.texts, config.seed), rows, _known(rows), config.seed)


def _beside(texts: Sequence[Text], rows: Sequence[dict[str, Any]], known: Known, seed: int) -> dict[str, Score]:
    grams, nearest = NGram(row["target"] for row in rows), Retrieval.of((row["source"], row["target"]) for row in rows)
    seeds = range(seed, seed + len(texts))
    written_by = {
        THEMSELVES: [(one.tune, True, None) for one in texts],
        NEAREST: [(nearest.compose(one.text, own), True, None) for one, own in zip(texts, seeds)],
        GRAMS: [(*grams.compose(one.text, own), None) for one, own in zip(texts, seeds)],
    }
    return {author: scored(texts, tunes, known) for author, tunes in written_by.items()}


def own_scores(composer: Composer, data: Path, config: MusicEvaluateConfig) -> Score:
    """Of the model alone, free."""
    return _of_model(composer, held_out(data, config.texts, config.seed), _known(_rows(data, "train")), config)


def _of_model(
    composer: Composer, texts: Sequence[Text], known: Known, config: MusicEvaluateConfig, strict: bool = False
) -> Score:
    how = ComposeConfig(temperature=config.temperature, top_p=config.top_p, seed=config.seed, strict=strict)
    tunes = composer.compose([request(text.text, how) for text in texts], how)
    found = scored(texts, [(tune.text, tune.ended, tune.cost) for tune in tunes], known)
    return replace(found, diversity=_diversity(composer, texts, how, config))


def _known(rows: Sequence[dict[str, Any]]) -> Known:
    """Each training tune once."""
    return Known(shapes(read_tune(written(tune))) for tune in {row["tune"]: row["target"] for row in rows}.values())


def held_out(data: Path, number: int, seed: int) -> list[Text]:
    """One text of each of so many tunes that no training sees, the same for the same seed."""
    rng = np.random.default_rng(seed)
    texts: dict[Any, list[Text]] = {}
    for row in _rows(data, "test"):
        try:
            texts.setdefault(row["tune"], []).append(Text(row["source"], row["target"], asked(row["source"])))
        except RekindleError:
            continue  # its title speaks of a key or a metre that there is not
    chosen = sorted(rng.permutation(len(texts))[:number])
    tunes = list(texts.values())
    return [tunes[at][rng.integers(len(tunes[at]))] for at in chosen]


def scored(texts: Sequence[Text], tunes: Sequence[tuple[str, bool, float | None]], known: Known) -> Score:
    """Of (tune, whether it came to its end, cost of the grammar), one for each text."""
    judged = [judge(tune, one.wanted, known, ended=ended) for one, (tune, ended, _) in zip(texts, tunes, strict=True)]
    values: dict[str, list[float]] = {name: [_value(one, name) for one in judged] for name in MEASURES}
    values["BLEU"] = bleu([tune for tune, _, _ in tunes], [[one.tune] for one in texts])
    values["edit similarity"] = [
        edit_similarity(tune, one.tune) for one, (tune, _, _) in zip(texts, tunes, strict=True)
    ]
    values["cost"] = [np.nan if cost is None else cost for _, _, cost in tunes]
    return Score({name: np.array(found, float) for name, found in values.items()})


def _value(one: Judged, name: str) -> float:
    kept: dict[str, Callable[[], Any]] = {
        "parses": lambda: one.parses,
        "adds up": lambda: one.parses and not one.odd,
        "valid": lambda: one.valid,
        "metre kept": lambda: one.metre_kept,
        "key kept": lambda: one.key_kept,
        "ends on tonic": lambda: one.ends_on_tonic,
        "likeness": lambda: one.nearest[0],
        "too alike": lambda: one.nearest[0] >= SAME,
    }
    found = kept[name]() if name in kept else None
    return np.nan if found is None else float(found)


def compared(one: Score, other: Score, name: str, seed: int = 0) -> tuple[float, float]:
    """How much more the first has on average, and p that it has not: paired bootstrap over texts, two-sided."""
    found = one.values[name] - other.values[name]
    found = found[np.isfinite(found)]
    rng = np.random.default_rng(seed)
    means = found[rng.integers(len(found), size=(_DRAWS, len(found)))].mean(1)
    below = float(np.mean(means <= 0) + np.mean(means < 0)) / 2
    return float(found.mean()), max(2 * min(below, 1 - below), 2 / _DRAWS)


def _diversity(
    composer: Composer, texts: Sequence[Text], how: ComposeConfig, config: MusicEvaluateConfig
) -> float | None:
    """Of several tunes for one text, on average over some texts."""
    if config.each < 2:
        return None
    chosen = texts[:: max(1, len(texts) // config.prompts)][: config.prompts]
    tunes = composer.compose([request(one.text, how) for one in chosen for _ in range(config.each)], how)
    several = [tunes[at : at + config.each] for at in range(0, len(tunes), config.each)]
    return float(np.mean([diversity([tune.text for tune in own]) for own in several]))


def _rows(data: Path, side: str) -> list[dict[str, Any]]:
    path = data / "pairs" / f"{side}.jsonl"
    try:
        with path.open(encoding="utf-8") as file:
            return [json.loads(line) for line in file]
    except OSError as error:
        what = f"This is no data of texts and tunes: {error.strerror}."
        raise RekindleError(what, where=path, hint="rekindle music data DATA, then --data DATA") from None
