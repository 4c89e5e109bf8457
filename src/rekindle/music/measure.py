"""What can be said of a tune without listening, and of many together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from rekindle.music.abc.bars import odd_bars
from rekindle.music.abc.header import written
from rekindle.music.abc.lexer import tokens
from rekindle.music.abc.reader import read_tune
from rekindle.music.likeness import Known, likeness, shapes
from rekindle.music.words import Facts, metres_of, tonic_of

_LEAST_NOTES = 16  # of what counts as a tune at all
_LAID_OUT = ("space", "line")


@dataclass(frozen=True)
class Judged:
    """`key_kept`, `metre_kept`: whether it has what the text asks for; None where that asks for nothing.

    `nearest`: the likeness of the most alike known tune, and its number; see likeness.
    """

    parses: bool
    bars: int
    odd: int
    ended: bool
    notes: int
    metre: str
    key: str
    key_kept: bool | None
    metre_kept: bool | None
    ends_on_tonic: bool
    nearest: tuple[float, int]

    @property
    def valid(self) -> bool:
        """It is read without a problem, all its bars add up, and it came to its end."""
        return self.parses and self.ended and not self.odd and self.notes >= _LEAST_NOTES


def judge(text: str, wanted: Facts, known: Known | None = None, *, ended: bool = True) -> Judged:
    """Of a plain tune that was written for a text; `ended`: whether the model said that it is over.

    >>> judge("M:2/4\\nL:1/8\\nK:D\\nABAF|D4|]", Facts(metre="6/8")).metre_kept
    False
    """
    tune = read_tune(written(text))
    sounds = [note for note in tune.notes if note.pitches]
    metres = metres_of(wanted)
    own = shapes(tune)
    return Judged(
        parses=not tune.problems and bool(sounds) and tune.key is not None and tune.metre is not None,
        bars=len(tune.bars),
        odd=len(odd_bars(tune)),
        ended=ended,
        notes=len(sounds),
        metre=tune.metre or "",
        key=tune.key.words if tune.key else "",
        key_kept=None if wanted.key is None else tune.key == wanted.key,
        metre_kept=None if not metres else (tune.metre or "") in metres,
        ends_on_tonic=bool(sounds and tune.key and (max(sounds[-1].pitches) - tonic_of(tune.key)) % 12 == 0),
        nearest=known.nearest(own) if known else (0.0, -1),
    )


def words_of(text: str) -> list[str]:
    """The tokens that BLEU is taken over: notes with their lengths, bar lines, fields; no spaces."""
    lines = text.split("\n")
    body = "\n".join(lines[3:])
    return [*lines[:3], *("".join(t.text.split()) for t in tokens(body) if t.kind not in _LAID_OUT)]


def bleu(found: Sequence[str], wanted: Sequence[Sequence[str]]) -> list[float]:
    """BLEU-4 of each text against its references (Papineni et al. 2002), as sacrebleu has it, with effective order."""
    from rekindle.train.writing import load_sacrebleu

    sacrebleu = load_sacrebleu("or 'rekindle[music]'")
    scorer = sacrebleu.BLEU(tokenize="none", effective_order=True, force=True)
    return [
        scorer.sentence_score(" ".join(words_of(one)), [" ".join(words_of(ref)) for ref in refs]).score
        for one, refs in zip(found, wanted, strict=True)
    ]


def edit_similarity(one: str, other: str) -> float:
    """1 - the edits (Levenshtein) that make one of the other, over the longer's length; of characters.

    >>> edit_similarity("ABAF", "ABF")
    0.75
    """
    longest = max(len(one), len(other))
    return 1 - _edits(one, other) / longest if longest else 1.0


def _edits(one: str, other: str) -> int:
    """One row of the table for each character of the longer text; running minima of the row make insertions."""
    if len(one) < len(other):
        one, other = other, one
    codes = np.array([ord(letter) for letter in other], np.int64)
    steps = np.arange(len(other) + 1)
    row = steps.copy()
    for at, letter in enumerate(one, 1):
        best = np.minimum(row[1:] + 1, row[:-1] + (codes != ord(letter)))
        row = np.minimum.accumulate(np.concatenate([[at], best]) - steps) + steps
    return int(row[-1])


def diversity(texts: Sequence[str]) -> float:
    """1 - the mean likeness of two of the tunes; of fewer than two, 0."""
    found = [shapes(read_tune(written(text))) for text in texts]
    pairs = [likeness(one, other) for one, other in combinations(found, 2)]
    return 1 - sum(pairs) / len(pairs) if pairs else 0.0
