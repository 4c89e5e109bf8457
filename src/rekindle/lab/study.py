"""The bench every study works on: what a study is, its steps for each seed, and what came out of them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Protocol

from rekindle.lab.claims import Claim, judge, planned
from rekindle.lab.margin import Margins, begun_with, judged_before, margins_of
from rekindle.lab.page import Page, verdict, write_page
from rekindle.lab.spent import End, by_arm
from rekindle.lab.text import carried_on, check_equal, check_one_text, check_text, texts_of
from rekindle.report.metrics import read_metrics
from rekindle.sweep.engines import Local
from rekindle.sweep.steps import Say, Step, check_same
from rekindle.sweep.steps import perform as sweep_steps

QUICK = 0.12  # of the tokens, with --quick: about five minutes on 2 cores


@dataclass(frozen=True)
class Size:
    """How much a study does: seeds, and a factor on all its tokens."""

    seeds: int
    scale: float = 1.0
    quick: bool = False

    def tokens(self, full: int) -> int:
        """`full` tokens at full size, in whole steps of 4096."""
        return max(4096, int(full * self.scale) // 4096 * 4096)


class Study(Protocol):
    """What `rekindle lab NAME` runs: steps, each once, and a page of what came out of them.

    `claims` have a row each in margins/NAME.yaml, or the study does not run. `fixed`: its data set is one of fixed
    size, which every arm reads equally often; else no training reads text that its line has read. `alone`: one step at
    a time, since time is measured.
    """

    @property
    def name(self) -> str: ...

    @property
    def claims(self) -> Sequence[Claim]: ...

    @property
    def fixed(self) -> bool: ...

    @property
    def alone(self) -> bool: ...

    def steps(self, size: Size) -> list[Step]:
        """All steps of all seeds."""

    def write(self, out: Path, size: Size, margins: Margins) -> tuple[Path, str]:
        """Write OUT/page from OUT/runs. (the page, its verdict)."""


@dataclass(frozen=True)
class Seeded:
    """A study of arms that are compared seed by seed: most are."""

    name: str
    claims: Sequence[Claim]
    one: Callable[[int, Size], list[Step]]  # the steps of a seed
    read: Callable[[Path, Size], Page]  # of runs: what they measured, figures, words
    ends_in: Callable[[str], End] = End  # what an arm of a claim is read from; an empty run: it was not trained
    fixed: bool = False
    alone: bool = False

    def steps(self, size: Size) -> list[Step]:
        steps = [
            replace(step, name=seeded(step.name, seed), source=step.source and seeded(step.source, seed), seed=seed)
            for seed in range(size.seeds)
            for step in self.one(seed, size)
        ]
        if self.fixed:
            check_equal(self.arms().values(), steps)
        return steps

    def arms(self) -> dict[str, End]:
        """Arms of the claims that were trained, each with its end of seed 0."""
        named = [arm for claim in self.claims for arm in (claim.arm, claim.rival)]
        return {arm: end._replace(run=seeded(end.run, 0)) for arm in named if (end := self.ends_in(arm)).run}

    def write(self, out: Path, size: Size, margins: Margins) -> tuple[Path, str]:
        page = self.read(out / "runs", size)
        findings = judge(self.claims, margins, page.values, quick=size.quick)
        trained = by_arm(self.arms(), out / "runs")
        path = write_page(page, findings, trained, margins, out / "page", command(self.name, size))
        return path, verdict(findings)


def run(study: Study, out: Path, say: Say, *, seeds: int | None, quick: bool) -> tuple[Path, str]:
    """Run a study into OUT/runs and write OUT/page; one that was cut off goes on. (the page, its verdict).

    `seeds`: None for as many as its claims need by the pilot's spread, and one of a quick run. Raises RekindleError
    where a claim has no margin, or margins or texts are not what the study began with.
    """
    margins = margins_of(study.name, study.claims)
    seeds = seeds or (1 if quick else planned(study.claims, margins))
    size = Size(seeds, QUICK if quick else 1.0, quick)
    steps = carried_on(study.steps(size))
    margins = begun_with(margins, out)
    perform(steps, out / "runs", say, fixed=study.fixed, alone=study.alone)
    return study.write(out, size, judged_before(margins, out, seeds))


def perform(steps: Sequence[Step], runs: Path, say: Say, *, fixed: bool = False, alone: bool = False) -> None:
    """Run all steps under `runs`, see sweep.steps: first the models to begin with, whose tokenizers count the text.

    Raises RekindleError where the text does not last, or is not one for all trainings: before the first is made, and
    before any is read.
    """
    check_same({step.name: step for step in steps}, runs)
    beginnings = [step for step in steps if step.verb == "init"]
    with Local(1 if alone else None) as engine:
        if not all((runs / step.name).is_dir() for step in steps if step.verb == "train"):
            check_text(steps, runs, fixed=fixed)  # with the tokenizers that are there, before others are made
            if not all((runs / step.name).is_dir() for step in beginnings):
                sweep_steps(beginnings, runs, engine, lambda said: None)
                check_text(steps, runs, fixed=fixed)
        sweep_steps(steps, runs, engine, say)
    check_one_text(texts_of(steps, runs), runs)


def losses(runs: Path, name: str, seeds: int, *, start: bool = False) -> list[float]:
    """The last validation loss of a `train` step, for each seed; with `start` the first, before any training."""
    found = [read_metrics(runs / seeded(name, seed)).evaluations for seed in range(seeds)]
    return [rows[0 if start else -1].loss for rows in found]


def command(study: str, size: Size) -> str:
    """What to type to do it again."""
    return f"rekindle lab {study} --seeds {size.seeds}" + (" --quick" if size.quick else "")


def seeds_drawn(size: Size) -> str:
    return (
        f"{size.seeds} seed{'s' * (size.seeds > 1)}: each draws the parent, the order of its text and all that follows."
    )


def seeded(name: str, seed: int) -> str:
    """The folder of a step for one seed."""
    return f"{name}-{seed}"
