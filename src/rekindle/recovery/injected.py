"""Which failures are asked for: STEP:STAGE:MOMENT, or how many there are in an hour; with commas between them."""

from __future__ import annotations

import re
import time
from random import Random

from rekindle.errors import RekindleError
from rekindle.recovery.dying import LATE, MOMENTS

RATE = re.compile(r"rate=(?P<rate>\d+(\.\d+)?|\.\d+)/(?P<unit>h|min|s)")
SEED = re.compile(r"seed=(\d+)")
SECONDS = {"h": 3600, "min": 60, "s": 1}


class Injected:
    """Points, each once; and of each stage, at `rate` a second, deaths by the clock at moments that are drawn."""

    def __init__(self, points: dict[tuple[int, int, str], str], rate: float, seed: int, stages: int):
        self._points, self._rate, self._rng = points, rate, Random(seed)
        now = time.monotonic()
        self._next = [now + self._wait() for _ in range(stages)]

    def _wait(self) -> float:
        return self._rng.expovariate(self._rate) if self._rate else float("inf")

    def due(self, step: int | None, stage: int, command: str) -> str | None:
        """The moment of a step's command at which a stage is to die; None where it is not."""
        if command == "step" and step is not None and time.monotonic() >= self._next[stage]:
            self._next[stage] = time.monotonic() + self._wait()
            moment = self._rng.choice(MOMENTS)
            self._points[step, stage, _command(moment)] = moment
        return self._points.pop((step, stage, command), None) if step is not None else None


def _command(moment: str) -> str:
    return "commit" if moment in LATE else "step"


def injected(text: str | None, stages: int) -> Injected:
    """Raises RekindleError for a stage or a moment that there is not."""
    points: dict[tuple[int, int, str], str] = {}
    rate, seed = 0.0, 0
    for part in filter(None, map(str.strip, (text or "").split(","))):
        if found := RATE.fullmatch(part):
            rate = float(found["rate"]) / SECONDS[found["unit"]]
        elif found := SEED.fullmatch(part):
            seed = int(found[1])
        else:
            step, stage, moment = _point(part, stages)
            points[step, stage, _command(moment)] = moment
    return Injected(points, rate, seed, stages)


def _point(part: str, stages: int) -> tuple[int, int, str]:
    words = part.split(":")
    if len(words) != 3 or not (words[0].isdecimal() and words[1].isdecimal()) or words[2] not in MOMENTS:
        what = f"--inject {part!r} is no failure."
        hint = f"rate=0.1/h, or STEP:STAGE:MOMENT, a moment being {', '.join(MOMENTS)}"
        raise RekindleError(what, hint=hint)
    if int(words[1]) >= stages:
        what = f"--inject names stage {words[1]}, and there are {stages}."
        raise RekindleError(what, hint=f"0 to {stages - 1}")
    return int(words[0]), int(words[1]), words[2]
