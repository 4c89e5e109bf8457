"""Papers' claims reproduced small; the demo."""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rekindle.lab.study import Study

# A study is a module here that has a STUDY, and a file of margins where it makes claims.
STUDIES = {
    "sparse-upcycling": "Komatsuzaki et al. 2023: upcycled against dense continued and a mixture from scratch.",
    "sparse-upcycling-t5": "The same of its own kind, a T5 into a Switch Transformer; and its decoder's heads pooled.",
    "orthogonal-growth": "arXiv 2510.08008: where to put new layers, how to make new experts, when to grow.",
    "gqa": "Ainslie et al. 2023: pooling key-value heads, and what uptraining brings back.",
    "upcycling-laws": "Liew et al. 2025: a law of our own grid. Is the interaction there, does scratch overtake?",
    "checkpoint-compression": "Kim and Belyaev 2025: archives of a series, and how training goes on from them.",
    "lcsc": "Liu et al. 2024: better models along a run, by searched combinations of its checkpoints.",
    "warm-start": "Rothe et al. 2020: encoder-decoders out of a BERT against ones from scratch.",
    "adapted-decoder": "Zhang et al. 2025: a T5Gemma out of a decoder, against one drawn and the decoder itself.",
    "text-to-music": "Wu and Sun 2022: tunes from sentences, by halves that were trained before and drawn ones.",
    "vision-moe": "Komatsuzaki et al. 2023: a ViT upcycled into a V-MoE, on letters of many fonts.",
    "checkfree": "arXiv 2506.15461: what a lost stage is made of again, and what that costs a run.",
}


def study_named(name: str) -> Study:
    return import_module(f"rekindle.lab.{name.replace('-', '_')}").STUDY


def run_study(
    name: str, out: Path, say: Callable[[str], object], *, seeds: int | None, quick: bool
) -> tuple[Path, str]:
    """Run a study into OUT/runs and write OUT/page, see study.run. (the page, its verdict)."""
    from rekindle.lab.study import run

    return run(study_named(name), out, say, seeds=seeds, quick=quick)
