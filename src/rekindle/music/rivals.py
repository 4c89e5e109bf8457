"""What a model has to beat: a 5-gram of tokens, and the tune of the nearest text."""

from __future__ import annotations

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from rekindle.music.abc.keys import all_keys
from rekindle.music.vocabulary import END, pieces
from rekindle.music.words import asked, metres_of

ORDER = 5  # tokens that a token is foreseen with, itself among them
_WORD = re.compile(r"[a-z0-9/']+")


class NGram:
    """Each token by the four before it, or as many as were seen together in the training tunes; it reads no text."""

    def __init__(self, tunes: Iterable[str]):
        self.counts: dict[tuple[str, ...], Counter[str]] = defaultdict(Counter)
        for tune in tunes:
            tokens = [END, *(pieces(tune) or ()), END]  # which is what stands before the first one, too
            for at in range(1, len(tokens)):
                for length in range(min(at, ORDER - 1) + 1):
                    self.counts[tuple(tokens[at - length : at])][tokens[at]] += 1

    def compose(self, text: str, seed: int, longest: int = 400) -> tuple[str, bool]:
        """A tune, and whether it came to its end; its metre and key are drawn from those that the text leaves."""
        rng, wanted, found = np.random.default_rng(seed), asked(text), list[str]()
        keys = [f"K:{wanted.key.spelt}\n"] if wanted.key else [f"K:{key.spelt}\n" for key in all_keys()]
        able = {0: {f"M:{metre}\n" for metre in metres_of(wanted)}, 2: set(keys)}
        while len(found) < longest:
            token = self._next([END, *found], able.get(len(found), set()), rng)
            if token == END:
                return "".join(found), True
            found.append(token)
        return "".join(found), False

    def _next(self, before: Sequence[str], able: set[str], rng: np.random.Generator) -> str:
        for length in range(min(len(before), ORDER - 1), -1, -1):
            counts = self.counts.get(tuple(before[len(before) - length :]), Counter())
            known = {token: n for token, n in counts.items() if not able or token in able}
            if known:
                share = np.array(list(known.values())) / sum(known.values())
                return list(known)[rng.choice(len(known), p=share)]
        return min(able)  # which no training tune has


@dataclass(frozen=True)
class Retrieval:
    """The training tune whose text shares most words with what is asked, for all words of both (Jaccard)."""

    texts: Sequence[frozenset[str]]
    tunes: Sequence[str]

    @classmethod
    def of(cls, rows: Iterable[tuple[str, str]]) -> Retrieval:
        """Of pairs of a text and a tune."""
        texts, tunes = zip(*((_words(text), tune) for text, tune in rows), strict=True)
        return cls(texts, tunes)

    def compose(self, text: str, seed: int) -> str:
        """One of the nearest, drawn where there are several."""
        own = _words(text)
        near = [len(own & other) / len(own | other) if own | other else 0.0 for other in self.texts]
        best = [at for at, share in enumerate(near) if share == max(near)]
        return self.tunes[np.random.default_rng(seed).choice(best)]


def _words(text: str) -> frozenset[str]:
    return frozenset(_WORD.findall(text.lower()))
