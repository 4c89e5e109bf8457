"""Tunes for tests: drawn by the grammar, so that none of anybody's is copied here."""

from __future__ import annotations

import random
from functools import cache
from importlib.util import find_spec
from pathlib import Path

from rekindle.music.abc.header import Written, tunes_of
from rekindle.music.abc.keys import parse_key
from rekindle.music.grammar import Grammar
from rekindle.music.vocabulary import END

HEADS = {"M": "6/8", "L": "1/8", "K": "D"}
_WEIGHTS = {
    " ": 0.5,
    "|": 6.0,
    "||": 0.3,
    "^": 0.1,
    "_": 0.1,
    "=": 0.1,
    "/": 0.2,
    "-": 0.2,
    "'": 0.3,
    ",": 0.3,
    END: 0.3,
}


def tune(body: str, **fields: str) -> str:
    """A tune in 6/8, in eighths, in D, unless the fields say otherwise."""
    found = HEADS | fields
    found["K"] = found.pop("K")  # which ends a header
    return "X:1\n" + "".join(f"{name}:{value}\n" for name, value in found.items()) + body


def random_tune(seed: int, longest: int = 150, **asked: object) -> str:
    """A plain tune that the grammar lets through, as music as dice are."""
    rng, grammar, text = random.Random(seed), Grammar(longest=longest, **asked), ""  # type: ignore[arg-type]
    while not grammar.over:
        able = sorted(grammar.allowed())
        token = rng.choices(able, [_WEIGHTS.get(token, 1.0) for token in able])[0]
        grammar = grammar.take(token)
        text += "" if token == END else token
    return text


def book(seeds: range, kinds: tuple[str, ...] = ("reel", "jig", "air")) -> str:
    """An ABC file of drawn tunes, in few keys and metres, with titles and kinds."""
    metres = {"reel": ("2/2",), "jig": ("6/8",), "air": ("3/4",)}
    tunes = []
    for seed in seeds:
        kind = kinds[seed % len(kinds)]
        key = parse_key(("D", "G", "Em")[seed // 3 % 3])
        text = random_tune(seed, metres=metres[kind], keys=(key,))
        tunes.append(f"X:{seed}\nT:The Drawn Tune, No. {seed}\nR:{kind}\n{text}\n")
    return "\n".join(tunes)


@cache
def corpus() -> tuple[Written, ...]:
    """The tunes of the books that music21 brings, from where it is installed."""
    spec = find_spec("music21")
    assert spec
    assert spec.origin
    folder = Path(spec.origin).parent / "corpus"
    files = [
        file for name in ("oneills1850", "ryansMammoth", "airdsAirs") for file in sorted((folder / name).glob("*.abc"))
    ]
    texts = (file.read_text(encoding="utf-8", errors="replace") for file in files)
    return tuple(tune for text in texts for tune in tunes_of(text) if "X" in tune.fields)
