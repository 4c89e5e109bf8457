"""Do the bars add up?

A bar is right if it is as long as its metre, or shorter for a reason that tunes have: it is a pick-up, which begins a
section; or it ends a section, and with the pick-up that follows when it is played it makes a whole bar, as do the parts
of a bar that such a line cuts in two.
"""

from __future__ import annotations

from fractions import Fraction

from rekindle.music.abc.metre import bar_length
from rekindle.music.abc.playing import ending, is_section
from rekindle.music.abc.reader import Bar, Tune


def odd_bars(tune: Tune) -> list[int]:
    """Numbers of bars that are not right; all of a tune without a metre."""
    return [at for at in range(len(tune.bars)) if not _is_right(tune.bars, at)]


def adds_up(tune: Tune) -> bool:
    return bool(tune.bars) and not odd_bars(tune)


def _is_right(bars: tuple[Bar, ...], at: int) -> bool:
    bar = bars[at]
    if not bar.metre:
        return False
    whole = bar_length(bar.metre)
    if bar.length == whole:
        return True
    if bar.length > whole:
        return False
    if (at == 0 or is_edge(bar.left)) and at + 1 < len(bars):
        return True
    return (at + 1 == len(bars) or is_edge(bar.right)) and any(
        bar.length + short == whole for short in _follow(bars, at)
    )


def is_edge(line: str) -> bool:
    """Whether a bar line begins or ends a section or an ending."""
    return is_section(line) or bool(ending(line))


def _follow(bars: tuple[Bar, ...], at: int) -> set[Fraction]:
    """How long the pick-ups are that may be played behind a bar: of the section that repeats, of the next one, of any
    before it, where the tune is over and begins again.
    """
    starts = [there for there in range(at + 1) if there == 0 or is_edge(bars[there].left)]
    return {bars[there].length for there in [*starts, at + 1] if there < len(bars)}
