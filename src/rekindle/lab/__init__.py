"""Papers' claims reproduced small; the demo."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from importlib import import_module
from pathlib import Path

STUDIES = {
    "sparse-upcycling": "Komatsuzaki et al. 2023: upcycled against dense continued and a mixture from scratch.",
    "orthogonal-growth": "arXiv 2510.08008: where to put new layers, how to make new experts, when to grow.",
    "gqa": "Ainslie et al. 2023: pooling key-value heads, and what uptraining brings back.",
    "upcycling-laws": "Liew et al. 2025: a law of our own grid. Is the interaction there, does scratch overtake?",
    "checkpoint-compression": "Kim and Belyaev 2025: archives of a series, and how training goes on from them.",
}
QUICK = 0.12  # of the tokens, with --quick: about five minutes on 2 cores


def run_study(name: str, out: Path, say: Callable[[str], object], *, seeds: int, quick: bool) -> tuple[Path, str]:
    """Run a study into OUT/runs and write its page to OUT/page; a study that was cut off goes on. (page, verdict)."""
    from rekindle.lab.page import verdict, write_study
    from rekindle.lab.study import Size, perform

    module = import_module(f"rekindle.lab.{name.replace('-', '_')}")
    if hasattr(module, "run"):  # a grid, and no claims
        return module.run(out, say, quick=quick)
    size = Size(seeds, QUICK if quick else 1.0, quick)
    perform(partial(module.steps, size=size), seeds, out / "runs", say)
    found = module.read(out / "runs", size)
    return write_study(found, out / "page", overwrite=True), found.verdict or verdict(found.findings)
