"""A model that writes tunes for texts: which halves it has, and how they are trained.

Source: Wu and Sun 2022, "Exploring the Efficacy of Pre-trained Checkpoints in Text-to-Music Generation Task", arXiv
2211.11216. Departure: there the decoder is always drawn; here it is first a language model of tunes without texts.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rekindle.errors import RekindleError
from rekindle.music.config import MusicTrainConfig

CONTEXT = 512  # tokens that the decoder has positions for
SOURCE, TARGET = 48, 401  # tokens of the longest text and tune, their ends included
ROWS = 16  # pairs, or tunes, of a step
TOGETHER = 8  # of them in one pass, of like lengths, so that less is padded
# What sizes the encoder has where it is drawn, and a decoder that is drawn or trained on tunes.
# Drawn as wide as keeps the size of what goes through: with BERT's 0.02 models this small begin to learn late.
ENCODER = {"family": "bert", "hidden": 128, "layers": 2, "heads": 4, "context": 64, "tokenizer": "bpe:1024",
           "init_std": 0.088}  # fmt: skip
NO_DROPOUT = {"attn_pdrop": 0.0, "resid_pdrop": 0.0, "embd_pdrop": 0.0}


def check(config: MusicTrainConfig) -> tuple[Path, Path]:
    """The folders of pairs and of tunes; raises RekindleError where the data is not what `music data` writes."""
    folder = Path(config.data).expanduser()
    pairs, tunes = folder / "pairs", folder / "tunes"
    for path in (kind / f"{side}.jsonl" for kind in (pairs, tunes) for side in ("train", "validation")):
        if not path.is_file():
            what = f"This is no data of texts and tunes: {path.name} of {path.parent.name} is not there."
            raise RekindleError(what, where=folder, hint="rekindle music data DATA, then --data DATA")
    for name, number in (("pairs", config.pairs), ("tunes", config.tunes)):
        if number < ROWS:
            raise RekindleError(f"{name} is {number}, but a step takes {ROWS}.", where=f"option {name}")
    return pairs, tunes


def decoder_sizes(config: MusicTrainConfig, tokenizer: Path) -> dict[str, Any]:
    """Options of `init` for it."""
    sizes = {"hidden": config.hidden, "layers": config.layers, "heads": config.heads, "context": CONTEXT}
    sizes |= {"init_std": round(config.hidden**-0.5, 3)}
    return {"family": "gpt2", **sizes, "tokenizer": str(tokenizer), "set": NO_DROPOUT, "seed": config.seed}


def on_tunes(config: MusicTrainConfig, data: Path) -> dict[str, Any]:
    """Options of `train` for a language model of tunes: each a row of its own, as it will be behind an encoder."""
    return {"data": str(data), **_rows(1), "tokens": config.tunes, "lr": config.tune_lr, "seed": config.seed}


def on_pairs(config: MusicTrainConfig, data: Path) -> dict[str, Any]:
    """Options of `train` for both halves."""
    tokens = config.pairs // ROWS * ROWS * SOURCE
    return {"data": str(data), **_rows(SOURCE), "tokens": tokens, "lr": config.lr, "seed": config.seed}


def _rows(source_len: int) -> dict[str, Any]:
    lengths = {"seq_len": source_len, "target_len": TARGET, "batch_tokens": ROWS * source_len, "micro_batch": TOGETHER}
    return {"objective": "seq2seq", **lengths, "warmup": 0.05}
