"""Upcycling's scaling law, our own: a grid of small models, fitted, and asked what the paper's law says.

Source: Liew, Kato, Takase 2025, "Scaling Laws for Upcycling Mixture-of-Experts Language Models", arXiv 2502.03009.

Dense models of several sizes are trained to D1 tokens and annealed, upcycled to 8 experts, top-2, and trained for D2
more tokens; beside them the same mixtures from scratch. Every stage is warmup-stable-decay, trunks are shared (see
sweep/grid.py), no run reads a token twice, and the second seed repeats a part. Three questions:

    Is the interaction term alpha3 there?      Does a mixture from scratch overtake, at some D*?
    Does the law predict the largest D1 and D2 when these are held out?
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from rekindle.lab.claims import Claim
from rekindle.lab.figures import Line, lines
from rekindle.lab.margin import Margins
from rekindle.lab.page import Page, write_page
from rekindle.lab.study import Size, Study
from rekindle.laws.config import FitConfig
from rekindle.laws.decide import decide
from rekindle.laws.doubt import rms
from rekindle.laws.fitted import Fitted, fitted
from rekindle.laws.law import read_law
from rekindle.laws.question import Question
from rekindle.laws.table import make_table
from rekindle.laws.write import law_of, write_law
from rekindle.report.chart import Chart
from rekindle.report.fitting import write_fit
from rekindle.report.words import count
from rekindle.sweep.collect import rows_of, write_table
from rekindle.sweep.grid import Grid, steps_of
from rekindle.sweep.steps import Step

MODEL = {"heads": 4, "context": 256, "tokenizer": "bpe:1024"}
TRAIN = {"data": "python", "seq_len": 128, "batch_tokens": 4096, "lr": 3e-3, "eval_tokens": 131072}
SIZES = (
    {"hidden": 16, "layers": 2},
    {"hidden": 32, "layers": 2},
    {"hidden": 48, "layers": 2},
    {"hidden": 80, "layers": 3},
)
LENGTHS = tuple(4096 * n for n in (64, 128, 256, 512, 1024))  # D1 and D2, tokens
BOOTSTRAP = 4000
HOLDS = 2.0  # times the error on the points fitted that a held-out prediction may be off
TITLE = "Upcycling's law at the size of two cores"
WAYS: dict[str, dict[str, Any]] = {"dense": {}, "scratch": {}, "upcycled": {}}
REPEATED = SIZES[1:3]  # by a second seed, at three lengths


def grids(quick: bool) -> list[Grid]:
    if quick:
        short = tuple(4096 * n for n in (16, 32, 64))
        return [Grid(MODEL, SIZES[:2], TRAIN, short[:2], short, WAYS, step=4096)]
    whole = Grid(MODEL, SIZES, TRAIN, LENGTHS, LENGTHS, WAYS, step=4096)
    return [whole, Grid(MODEL, REPEATED, TRAIN, LENGTHS[::2], LENGTHS[::2], WAYS, seeds=(1,), step=4096)]


@dataclass(frozen=True)
class Grown:
    """A study of grids with seeds of their own, whose page is a law's: its questions are no claims on paired arms."""

    name: str = "upcycling-laws"
    claims: tuple[Claim, ...] = ()
    fixed: bool = False
    alone: bool = False

    def steps(self, size: Size) -> list[Step]:
        return [step for grid in grids(size.quick) for step in steps_of(grid)[0]]

    def write(self, out: Path, size: Size, margins: Margins) -> tuple[Path, str]:
        """OUT/page, with its law and table."""
        rows = [row for grid in grids(size.quick) for row in rows_of(grid, steps_of(grid)[1], out / "runs")]
        write_table(rows, out / "runs.csv")
        page, verdict = _glance(rows, margins, out) if size.quick else _law(rows, out)
        for path in (*out.glob("runs.csv"), *out.glob("law.yaml")):
            (page.parent / path.name).write_bytes(path.read_bytes())
        return page, verdict


def _glance(rows: list[dict[str, Any]], margins: Margins, out: Path) -> tuple[Path, str]:
    """A page of the runs alone: two sizes and a few short stages carry no law."""
    verdict = "Two sizes and a few short stages: how the study runs. No law is claimed."
    page = Page(
        title=TITLE,
        paper="Liew, Kato, Takase 2025",
        url="https://arxiv.org/abs/2502.03009",
        setting=f"{len(rows)} runs of {len(SIZES[:2])} sizes on Python sources; one seed.",
        charts=[overtaking(rows)],
        limits=("Two sizes leave B, beta and E undecided, and two D1 leave no degree of freedom to alpha1.",),
    )
    return write_page(page, [], {}, margins, out / "page", "rekindle lab upcycling-laws --quick", verdict), verdict


def _law(rows: list[dict[str, Any]], out: Path) -> tuple[Path, str]:
    table = make_table(rows, "a grid of our own")
    found = fitted(table, FitConfig(objective="squares", bootstrap=BOOTSTRAP))
    write_law(law_of(found.found, found.drawn, "rekindle-lab"), out / "law.yaml")
    verdict, *said = statements(found, out / "law.yaml", rows)
    page = write_fit(
        found,
        out / "page",
        command="rekindle lab upcycling-laws",
        title=TITLE,
        verdict=verdict,
        statements=said,
        charts=[overtaking(rows)],
        overwrite=True,
    )
    return page, verdict


def statements(found: Fitted, law_file: Path, rows: list[dict[str, Any]]) -> list[str]:
    """What the grid says to the three questions, and how it compares with the paper."""
    law, pairs = read_law(law_file), raw_pairs(rows)
    assert found.interaction is not None
    lower = sum(scratch < upcycled for scratch, upcycled in pairs.values())
    sizes = sorted({row["params"] for row in rows})
    largest = max(row["sunk"] for row in rows)
    crossings = [decide(law, Question(n, largest, LENGTHS[-1])).crossing for n in sizes]
    held = {rival.form: rival.held_out for rival in found.rivals}
    errors = "; ".join(f"{form} {e['sunk']:.3f} and {e['tokens']:.3f}" for form, e in held.items())
    spans = "; ".join(
        f"N {count(n)}: {_tokens(c.mid)} ({_tokens(c.low)} to {_tokens(c.high)})"
        for n, c in zip(sizes, crossings, strict=True)
        if c is not None
    )
    best = found.rivals[0]
    noise = seed_noise(rows)
    off = rms(found.found.residuals)
    worst = max(best.held_out.values()) / off
    holds = "holds" if worst <= HOLDS else "does not hold"
    if np.isnan(noise):
        fits = f"the form is off by {off:.3f} nats; one seed, so that this cannot be held against noise"
    elif off > 3 * noise:
        fits = (
            f"but runs so short do not follow the form: it is off by {off:.3f} nats where two seeds differ by "
            f"{noise:.3f} (standard deviation of a run), so that its numbers describe this grid and no more"
        )
    else:
        fits = f"and the form describes the runs to {off:.3f} nats, seeds differing by {noise:.3f}"
    return [
        f"Interaction: {found.interaction.sentence} (the paper's is 8.0e-04); {fits}.",
        f"Crossing: of the runs themselves, the mixture from scratch is lower than the upcycled one in {lower} of "
        f"{len(pairs)} cells of equal D2. By the fitted law, after D1 = {count(largest)}, it overtakes at {spans}.",
        f"Held out, the largest D1 and the largest D2, root mean square error in nats: {errors}; on the points fitted "
        f"{off:.3f}. The best form by runs left out of the rest was {best.form}; its prediction of "
        f"what was held out {holds}: {worst:.1f} times the error on its points ({HOLDS:g} at most would hold).",
    ]


def seed_noise(rows: list[dict[str, Any]]) -> float:
    """Standard deviation of a run's loss over seeds, from the cells that have two; NaN where none has."""
    cells: dict[tuple, list[float]] = {}
    for r in rows:
        cells.setdefault((r["way"], r["params"], r["sunk"], r["tokens"]), []).append(r["loss"])
    apart = [a - b for a, b in (losses for losses in cells.values() if len(losses) == 2)]
    return float(np.sqrt(np.mean(np.square(apart)) / 2)) if apart else float("nan")


def raw_pairs(rows: list[dict[str, Any]]) -> dict[tuple, tuple[float, float]]:
    """(N, D1, D2, seed) -> loss from scratch, loss upcycled."""
    scratch = {(r["params"], r["tokens"], r["seed"]): r["loss"] for r in rows if r["way"] == "scratch"}
    return {
        (r["params"], r["sunk"], r["tokens"], r["seed"]): (scratch[r["params"], r["tokens"], r["seed"]], r["loss"])
        for r in rows
        if r["way"] == "upcycled" and (r["params"], r["tokens"], r["seed"]) in scratch
    }


def overtaking(rows: list[dict[str, Any]]) -> Chart:
    """How far the mixture from scratch is above the one upcycled after the largest D1, by D2; a line for each size."""
    pairs = raw_pairs(rows)
    largest = max(key[1] for key in pairs)
    arms = []
    for n in sorted({key[0] for key in pairs}):
        gaps: dict[float, list[float]] = {}
        for (size, d1, d2, _), (scratch, upcycled) in sorted(pairs.items()):
            if (size, d1) == (n, largest):
                gaps.setdefault(d2, []).append(scratch - upcycled)
        arms.append(Line(f"N {count(n)}", gaps))
    ends = [np.mean(arm.points[max(arm.points)]) for arm in arms]
    overtaken = sum(end < 0 for end in ends)
    title = (
        f"After D1 = {count(largest)}, {overtaken or 'none'} of {len(arms)} sizes overtaken from scratch by the "
        f"longest D2: the gap there is {min(ends):+.2f} to {max(ends):+.2f} nats"
    )
    axis = "Loss from scratch − upcycled, nats per token"
    chart = lines("overtaking", title, arms, "D2, tokens", axis, counts=True)
    return replace(chart, caption="Below 0 scratch is better. Dots are seeds, bars 95 % intervals of two.")


def _tokens(n: float) -> str:
    return count(n) if np.isfinite(n) else "never"


STUDY: Study = Grown()
