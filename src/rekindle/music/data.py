"""Texts and tunes to train on: which tunes, on which side, in which words and keys.

A tune is on one side, and so is what is nearly the same: versions of a melody under other names, in other keys.
Training tunes are written in several keys, each in several wordings; tunes that are held out in their own key, in all
wordings.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rekindle.errors import RekindleError
from rekindle.music.abc.keys import SEMITONES, Key
from rekindle.music.abc.metre import PLAIN
from rekindle.music.abc.plain import NotPlain, Plain, plain
from rekindle.music.abc.reader import read_tune
from rekindle.music.books import Shelf
from rekindle.music.config import MusicDataConfig
from rekindle.music.likeness import SAME, Known, shapes
from rekindle.music.vocabulary import pieces
from rekindle.music.words import Facts, facts, sentences
from rekindle.progress import Progress
from rekindle.store.publish import publishing
from rekindle.version import __version__

SIDES = ("train", "validation", "test")
NOTHING = "?"  # which the tokens of tunes cannot spell: a row of a decoder alone is a tune and no more
LOWEST, HIGHEST = 53, 93  # MIDI numbers that a transposed tune stays between: F3 to A6


@dataclass(frozen=True)
class Kept:
    """A tune that is in the data: `number` in the order of its source."""

    number: int
    plain: Plain
    facts: Facts
    said: str
    shapes: frozenset[tuple[int, ...]]
    title: str


def make_data(
    shelf: Shelf, config: MusicDataConfig, out: Path, *, command: str, overwrite: bool = False
) -> dict[str, Any]:
    """Write OUT/pairs (train, validation, test.jsonl: source, target, tune), OUT/tunes (without texts), OUT/data.json.

    Returns what data.json says. Raises RekindleError where too few tunes are left.
    """
    _check(config)
    kept, left = _kept(shelf, config.longest)
    groups = Known(one.shapes for one in kept).groups()
    side = _sides(groups, config)
    if short := [name for name in SIDES if name not in side]:
        what = (
            f"{len(kept)} tunes in {len(set(groups))} groups are too few for all sides: nothing for {', '.join(short)}."
        )
        raise RekindleError(what, where=shelf.name, hint="more tunes, or a larger --validation or --test")
    told = {
        "version": __version__,
        "command": command,
        "options": asdict(config),
        "tunes": {name: side.count(name) for name in SIDES},
        "groups": len(set(groups)),
        "same": SAME,
        "left_out": dict(left.most_common()),
        "facts": _counted(kept),
        "terms": shelf.terms,
    }
    with publishing(out, overwrite=overwrite) as partial:
        told["rows"] = {name: _write(partial, name, kept, side, config) for name in SIDES}
        (partial / "data.json").write_text(json.dumps(told, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")
    return told


def _check(config: MusicDataConfig) -> None:
    if config.keys < 1 or config.wordings < 1:
        raise RekindleError(f"keys is {config.keys} and wordings {config.wordings}: each tune has at least 1 of both.")
    if not (0 < config.validation < 1 and 0 < config.test < 1 and config.validation + config.test <= 0.5):
        what = f"validation is {config.validation:g} and test {config.test:g}: shares above 0, together half at most."
        raise RekindleError(what, hint="--validation 0.05 --test 0.05")


def _kept(shelf: Shelf, longest: int) -> tuple[list[Kept], Counter[str]]:
    """The tunes that can be taught, one of equal ones, and why others are left out."""
    kept: list[Kept] = []
    left: Counter[str] = Counter()
    seen: set[tuple[str, str]] = set()
    with Progress("read tunes", len(shelf.entries), "tunes") as bar:
        for number, entry in enumerate(shelf.entries):
            bar.update(1)
            tune = read_tune(entry.written)
            try:
                spelt = plain(entry.written)
            except NotPlain as error:
                left[str(error).split(":")[0]] += 1
                continue
            own = spelt.body, entry.said  # of one tune there may be several texts
            if reason := "is there already" if own in seen else _unfit(spelt, longest):
                left[reason] += 1
                continue
            seen.add(own)
            known = facts(tune, entry.book)
            kept.append(Kept(number, spelt, known, entry.said, shapes(tune), known.title))
    return kept, left


def _unfit(spelt: Plain, longest: int) -> str:
    if spelt.metre not in PLAIN:
        return "has an unusual metre"
    tokens = pieces(spelt.text)
    if tokens is None:
        return "has a spelling beyond the vocabulary"
    return f"is longer than {longest} tokens" if len(tokens) > longest else ""


def _sides(groups: Sequence[int], config: MusicDataConfig) -> list[str]:
    """Whole groups, drawn until a side has its share."""
    rng = np.random.default_rng(config.seed)
    sizes = Counter(groups)
    order = [sorted(sizes)[at] for at in rng.permutation(len(sizes))]
    side: dict[int, str] = {}
    for name, share in (("test", config.test), ("validation", config.validation)):
        wanted = share * len(groups)
        for group in order:
            if wanted <= 0:
                break
            if group not in side:
                side[group], wanted = name, wanted - sizes[group]
    return [side.get(group, "train") for group in groups]


def _write(folder: Path, name: str, kept: list[Kept], side: list[str], config: MusicDataConfig) -> int:
    """The rows of one side, in a drawn order; and its tunes alone, where a model may learn from them."""
    own = [one for one, there in zip(kept, side, strict=True) if there == name]
    rows, tunes = [], []
    for one in own:
        rng = np.random.default_rng([config.seed, one.number])
        written = transpositions(one.plain, config.keys, rng) if name == "train" else [one.plain]
        tunes += [{"source": NOTHING, "target": spelt.text, "tune": one.number} for spelt in written]
        rows += _rows(one, written, config.wordings if name == "train" else None, rng)
    order = np.random.default_rng([config.seed, 1]).permutation(len(rows))
    _save(folder / "pairs" / f"{name}.jsonl", [rows[at] for at in order])
    if name != "test":
        _save(folder / "tunes" / f"{name}.jsonl", tunes)
    return len(rows)


def _rows(one: Kept, written: Sequence[Plain], wordings: int | None, rng: np.random.Generator) -> list[dict[str, Any]]:
    """So many texts, dealt over the keys; None: all texts, of the first."""
    rows = []
    for at, spelt in enumerate(written):
        known = replace(one.facts, key=one.facts.key and Key(spelt.key.tonic, one.facts.key.mode))
        texts = [one.said] if one.said else sentences(known)
        share = len(texts) if wordings is None else max(1, len(range(at, wordings, len(written))))
        chosen = (
            [0, *(1 + rng.permutation(len(texts) - 1))] if wordings is None or at == 0 else rng.permutation(len(texts))
        )
        rows += [
            {"source": texts[text], "target": spelt.text, "tune": one.number, "title": one.title}
            for text in chosen[:share]
        ]
    return rows


def transpositions(spelt: Plain, number: int, rng: np.random.Generator) -> list[Plain]:
    """Itself, and others in drawn keys of at most four sharps or flats, at a pitch that instruments have."""
    tonics = [
        letter + accidental
        for letter in SEMITONES
        for accidental in ("", "#", "b")
        if abs(Key(letter + accidental, spelt.key.mode).sharps) <= 4 and letter + accidental != spelt.key.tonic
    ]
    found = [spelt]
    for at in rng.permutation(len(tonics)):
        if len(found) >= number:
            break
        if moved := _at_pitch(spelt, tonics[at]):
            found.append(moved)
    return found


def _at_pitch(spelt: Plain, tonic: str) -> Plain | None:
    for octaves in (0, -1):
        try:
            moved = spelt.transposed(tonic, octaves)
        except NotPlain:
            return None
        pitches = [note.pitches[0] for note in read_tune(moved.written).notes if note.pitches]
        if min(pitches) >= LOWEST and max(pitches) <= HIGHEST:
            return moved
    return None


def _counted(kept: Sequence[Kept]) -> dict[str, dict[str, int]]:
    """How many tunes have a kind, a metre and a key that is said."""
    said = {
        "kind": Counter(one.facts.kind for one in kept),
        "metre": Counter(one.facts.metre for one in kept),
        "key": Counter(one.facts.key.words if one.facts.key else "" for one in kept),
        "mood": Counter(one.facts.mood for one in kept),
    }
    return {name: {value or "not said": n for value, n in counts.most_common()} for name, counts in said.items()}


def _save(path: Path, rows: Sequence[dict[str, Any]]) -> None:
    path.parent.mkdir(exist_ok=True)
    path.write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows), encoding="utf-8")
