"""The ways a checkpoint is changed before it is packed, by their names."""

from __future__ import annotations

from rekindle.codec.archive import Step
from rekindle.codec.lossy import RULES, shrink_source
from rekindle.codec.rounding import PREFIX, round_source
from rekindle.codec.shrunk import LOSSLESS, Shrunk
from rekindle.codec.source import Source
from rekindle.codec.sums import summed

MODES = (LOSSLESS, *RULES)


def changed(source: Source, reference: Step | None, mode: str) -> Shrunk:
    """`source` as `mode` leaves it: one of MODES, or "rel:X"."""
    if mode == LOSSLESS:
        return Shrunk(source)
    shrunk = round_source(source, mode) if mode.startswith(PREFIX) else shrink_source(source, reference, RULES[mode])
    return summed(source, shrunk)
