"""Which failures are asked for: STEP:STAGE:MOMENT, with commas between them."""

from __future__ import annotations

from rekindle.errors import RekindleError
from rekindle.recovery.dying import LATE, MOMENTS

Injected = dict[tuple[int | None, int, str], str]  # (step, stage, command of it) -> moment


def injected(text: str | None, stages: int) -> Injected:
    """Raises RekindleError for a stage or a moment that there is not."""
    found: Injected = {}
    for part in filter(None, (text or "").split(",")):
        words = part.strip().split(":")
        if len(words) != 3 or not (words[0].isdecimal() and words[1].isdecimal()) or words[2] not in MOMENTS:
            what = f"--inject {part.strip()!r} is no failure."
            raise RekindleError(what, hint=f"STEP:STAGE:MOMENT, a moment being {', '.join(MOMENTS)}")
        step, stage, moment = int(words[0]), int(words[1]), words[2]
        if stage >= stages:
            raise RekindleError(f"--inject names stage {stage}, and there are {stages}.", hint=f"0 to {stages - 1}")
        found[step, stage, "commit" if moment in LATE else "step"] = moment
    return found
