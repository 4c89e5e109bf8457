"""The options of `music data`, `music train` and `compose`: no torch here, the command line builds its help of them."""

from __future__ import annotations

from dataclasses import dataclass

from rekindle.config import Count, option

RANDOM, TUNES = "random", "tunes"


@dataclass(frozen=True, kw_only=True)
class MusicDataConfig:
    """Texts and tunes to train on."""

    source: str = option("music21", help="music21's books, ABC files or a folder of them, or rows of texts and tunes")
    source_column: str | None = option(None, help="of rows: the column of the texts")
    target_column: str | None = option(None, help="of rows: the column of the tunes")
    essen: bool = option(False, help="with Essen's folk songs: non-commercial use only")
    keys: int = option(3, help="keys that each training tune is written in, its own among them")
    wordings: int = option(4, help="texts for each training tune, dealt over its keys")
    longest: int = option(400, help="tokens of the longest tune")
    validation: float = option(0.05, help="share of the tunes that a training is measured on")
    test: float = option(0.05, help="share that no training sees")
    seed: int = option(0, help="random seed of sides, keys and wordings")


@dataclass(frozen=True, kw_only=True)
class MusicTrainConfig:
    """A model of texts and tunes."""

    data: str = option(help="folder that `rekindle music data` wrote")
    encoder: str = option(RANDOM, help="what reads the texts: a SRC such as a BERT, or random: a small one, drawn")
    decoder: str = option(TUNES, help="what writes tunes: tunes: first a language model of them; random; or a SRC")
    hidden: int = option(192, help="hidden size of a decoder that is no SRC")
    layers: int = option(4, help="its layers")
    heads: int = option(6, help="its attention heads")
    tunes: Count = option(Count(24_000), help="tunes that it is trained on, without texts")
    tune_lr: float = option(1e-3, help="peak learning rate there")
    pairs: Count = option(Count(15_000), help="pairs of a text and a tune that both halves are trained on, together")
    lr: float = option(1e-3, help="peak learning rate there")
    seed: int = option(0, help="random seed")


@dataclass(frozen=True, kw_only=True)
class MusicEvaluateConfig:
    """A model's tunes for texts of tunes that it never saw, beside rivals."""

    data: str = option(help="folder that `rekindle music data` wrote, of which the model saw no test tune")
    texts: int = option(100, help="texts, each of another tune; one tune is drawn for each")
    prompts: int = option(5, help="texts of which several tunes are drawn, to see how unlike these are")
    each: int = option(8, help="tunes for each of those texts; 1: none")
    temperature: float = option(1.0, help="of the draw")
    top_p: float = option(0.9, help="of each draw, the likeliest tokens that have so much of the probability")
    seed: int = option(0, help="random seed of texts and draws")


@dataclass(frozen=True, kw_only=True)
class ComposeConfig:
    """Tunes from a text."""

    count: int = option(3, help="tunes")
    temperature: float = option(1.0, help="of the draw: below 1 likelier tokens, above 1 less likely ones")
    top_p: float = option(0.9, help="of each draw, the likeliest tokens that have so much of the probability")
    strict: bool = option(False, help="draw only what keeps the grammar: whole bars, the metre and key of the text")
    begin: str | None = option(None, help="bars that each tune begins with, as ABC, with or without M:, L: and K:")
    like: str | None = option(None, help="ABC file: tunes that begin as it does; its facts where there is no text")
    longest: int = option(400, help="tokens of the longest tune")
    seed: int = option(0, help="random seed: the same seed gives the same tunes")
