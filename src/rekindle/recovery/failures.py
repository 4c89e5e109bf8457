"""When stages of a pipeline die: drawn at a rate, or as a log has it.

Of each stage deaths are a Poisson process, whoever has taken its place. "0.1/h" is the chance that a stage dies within
an hour, as the paper counts (arXiv 2506.15461, section 5): -ln(1 - 0.1) deaths an hour.
"""

from __future__ import annotations

import csv
import math
import re
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rekindle.errors import RekindleError, counted, together

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]

CHANCE = re.compile(r"(?P<chance>[-+.\de]+)/h", re.IGNORECASE)


@dataclass(frozen=True)
class Deaths:
    """`stage[i]` dies at `hour[i]`, in order of time; nothing is known after `end`, hours."""

    hour: Floats
    stage: Ints
    end: float

    def until(self, end: float) -> Deaths:
        """Those of the first `end` hours."""
        kept = int(np.searchsorted(self.hour, end))
        return Deaths(self.hour[:kept], self.stage[:kept], min(end, self.end))


def hourly(chance: float) -> float:
    """Deaths an hour of a stage that dies within one with this chance.

    >>> round(hourly(0.1), 4)
    0.1054
    """
    return -math.log1p(-chance)


def chance_of(text: str) -> float | None:
    """The chance an hour that is written as 0.1/h; None where it is written otherwise, as a file's name is."""
    if not (found := CHANCE.fullmatch(text.strip())):
        return None
    try:
        chance = float(found["chance"])
    except ValueError:
        chance = math.nan
    if not 0 < chance < 1:
        what = f"failures is {text!r}, which is no chance that a stage dies within an hour: that is between 0 and 1."
        raise RekindleError(what, hint="--failures 0.1/h")
    return chance


def drawn(per_hour: float, stages: int, end: float, seed: int) -> Deaths:
    """Deaths of `end` hours, at `per_hour` of each stage.

    >>> drawn(0.1, 4, 100.0, seed=0).hour[:3].round(2).tolist()
    [1.7, 4.25, 4.3]
    """
    gaps, places = (np.random.default_rng([seed, which]) for which in (0, 1))
    total = per_hour * stages
    hours, last = [], 0.0
    while last < end:
        more = last + np.cumsum(gaps.exponential(1 / total, 64 + int(1.05 * total * (end - last))))
        hours.append(more)
        last = float(more[-1])
    hour = np.concatenate(hours)
    return Deaths(hour, places.integers(0, stages, len(hour)), math.inf).until(end)


def read_deaths(path: Path, stages: int) -> Deaths:
    """A CSV with the columns hours and stage, a row for each death; raises RekindleError with all that is wrong.

    Behind its last row nobody dies.
    """
    try:
        lines = path.read_text(encoding="utf-8-sig", errors="replace").splitlines()
    except OSError as error:
        what = f"failures is {str(path)!r}, neither a chance in an hour nor a file that can be read: {error.strerror}."
        raise RekindleError(what, hint="--failures 0.1/h, or a CSV with the columns hours and stage") from None
    rows = list(csv.reader(lines))
    if not rows or [name.strip() for name in rows[0]] != ["hours", "stage"]:
        seen = ",".join(rows[0]) if rows else "nothing"
        what = f"The first line is {seen[:60]!r}, and not hours,stage."
        raise RekindleError(what, where=path, hint="hours,stage, and below it 12.5,3 for each death")
    problems: list[RekindleError] = []
    found = [_death(row, stages, f"{path}, line {i}", problems) for i, row in enumerate(rows[1:], 2) if row]
    if problems:
        raise together(problems)
    if not found:
        raise RekindleError("Nobody dies in this file.", where=path, hint="a row such as 12.5,3 for each death")
    hours, places = zip(*sorted(found), strict=True)
    return Deaths(np.array(hours), np.array(places), math.inf)


def _death(row: list[str], stages: int, where: str, problems: list[RekindleError]) -> tuple[float, int]:
    try:
        hours, stage = float(row[0]), int(row[1])
        wrong = len(row) > 2 or not 0 <= hours < math.inf
    except (ValueError, IndexError):
        hours, stage, wrong = 0.0, 0, True
    if wrong:
        what = f"{','.join(row)[:60]!r} is no hour and stage."
        problems.append(RekindleError(what, where=where, hint="12.5,3"))
    elif not 0 <= stage < stages:
        what = f"Stage {stage} died, and there are {counted(stages, 'stage')}, 0 to {stages - 1}."
        problems.append(RekindleError(what, where=where, hint=f"--stages {stage + 1}" if stage > 0 else "0"))
    return hours, stage
