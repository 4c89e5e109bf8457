"""Which run ends lower at equal cost, by how much, and whether the evaluations can tell.

Only runs that were measured on the same validation text are compared. A difference counts when it exceeds twice its
standard error: that of the differences window by window where both runs logged the loss of each window, else the
combined sqrt(se_a^2 + se_b^2).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import stdev
from typing import Literal

from rekindle.report.metrics import Evaluation
from rekindle.report.runs import Run
from rekindle.report.words import count, listed, nats, scientific, shortened

Budget = Literal["flops", "tokens"]

TOLERANCE = 0.02  # budgets this close, relatively, are taken as equal
SIGNIFICANT = 2.0  # combined standard errors
NAMED = 3  # runs behind the best up to which the sentence names each
SEED = "one seed each, so this is a direction, not a result"
PAIRED = (
    "± is one standard error of the difference, taken window by window on the same validation text; it says "
    "nothing about how far another seed would move the result."
)
_COMBINED = "± is one combined standard error of the validation loss. "
_SEEDS = "; it says nothing about how far another seed would move the result."
CONSERVATIVE = (
    _COMBINED + "The runs see the same validation tokens, so their errors largely cancel in a difference and this is "
    "conservative" + _SEEDS
)
UNKNOWN_TEXT = (
    _COMBINED + "Not every run recorded which validation text it read. If it is the same, the errors largely cancel in "
    "a difference and this is conservative; if it is not, the losses cannot be compared" + _SEEDS
)


@dataclass(frozen=True)
class Reading:
    """A run's validation loss at the common budget, in nats per token."""

    run: Run
    loss: float
    stderr: float
    ended: bool  # at the run's end; else before it, between two evaluations

    @property
    def windows(self) -> tuple[object, tuple[float, ...]] | None:
        """Which validation windows were read, and the loss of each; None where that was not logged."""
        losses, which = self.run.final.losses, self.run.metrics.header.get("val_set")
        return (which, losses) if self.ended and which and losses and len(losses) > 1 else None


@dataclass(frozen=True)
class Comparison:
    """Readings at one budget, lowest loss first; `elsewhere` are the runs that were measured on other text."""

    by: Budget
    budget: float
    readings: tuple[Reading, ...]
    elsewhere: tuple[Run, ...] = ()

    @property
    def best(self) -> Reading:
        return self.readings[0]

    @property
    def tied(self) -> tuple[Reading, ...]:
        """Those that cannot be told from the best, which is not among them."""
        return tuple(r for r in self.readings[1:] if not self.decided(r))

    @property
    def behind(self) -> tuple[Reading, ...]:
        return tuple(r for r in self.readings[1:] if self.decided(r))

    @property
    def early(self) -> list[str]:
        """Names of the runs that went further than the budget."""
        return [r.run.name for r in self.readings if not r.ended]

    @property
    def verb(self) -> str:
        return "is" if self.early else "ends"

    def margin(self, reading: Reading) -> float:
        return reading.loss - self.best.loss

    def error(self, reading: Reading) -> float:
        """Standard error of the margin, paired where it can be; NaN where an evaluation states none."""
        pairs = self.pairs(reading)
        if pairs is None:
            return math.hypot(reading.stderr, self.best.stderr)
        return stdev(theirs - ours for theirs, ours in pairs) / math.sqrt(len(pairs))

    def pairs(self, reading: Reading) -> list[tuple[float, float]] | None:
        """Its losses beside the best's where both are means over the very same windows."""
        theirs, ours = reading.windows, self.best.windows
        if theirs is None or ours is None or theirs[0] != ours[0] or len(theirs[1]) != len(ours[1]):
            return None
        return list(zip(theirs[1], ours[1]))

    def decided(self, reading: Reading) -> bool:
        return self.margin(reading) > SIGNIFICANT * self.error(reading)


def compare(runs: Sequence[Run], by: Budget) -> Comparison | None:
    """Read every run at the largest FLOPs (or tokens) that all reached; None where no run has a loss to read.

    Runs that have no evaluation after their start, or diverged by their last, are left out; of those measured on
    different text the most that share one are compared. Budgets within 2 % count as equal and each run is read at its
    end; beyond that the longer runs are interpolated linearly between two evaluations.
    """
    ended = [run for run in runs if math.isfinite(run.final.loss) and getattr(run.final, by) > 0]
    if not ended:
        return None
    able = same_text(ended)
    ends = [getattr(run.final, by) for run in able]
    budget = min(ends)
    readings = [
        _last(run) if end <= budget * (1 + TOLERANCE) else _read_at(run, by, budget) for run, end in zip(able, ends)
    ]
    elsewhere = tuple(run for run in ended if run not in able)
    return Comparison(by, budget, tuple(sorted(readings, key=lambda r: r.loss)), elsewhere)


def same_text(runs: Sequence[Run]) -> list[Run]:
    """The most runs of which no two are known to have been measured on different validation text."""
    groups = []
    for first in runs:
        group = [first]
        for run in runs:
            if run is not first and all(_may_agree(run, other) for other in group):
                group.append(run)
        groups.append(group)
    largest = max(groups, key=len, default=[])
    return [run for run in runs if run in largest]


def _may_agree(run: Run, other: Run) -> bool:
    if run.objective != other.objective:
        return False
    (windows, tokens), (others, amount) = run.text, other.text
    if windows and others:
        return windows == others
    return not (tokens and amount) or _near(tokens, amount)


def _near(tokens: int | None, amount: int | None) -> bool:
    if tokens is None or amount is None:
        return tokens is amount
    return abs(tokens - amount) <= TOLERANCE * amount


def _last(run: Run) -> Reading:
    return Reading(run, run.final.loss, run.final.stderr, ended=True)


def _read_at(run: Run, by: Budget, budget: float) -> Reading:
    after = next(e for e in run.readings if getattr(e, by) >= budget)
    earlier = [e for e in run.readings if getattr(e, by) < budget]
    before: Evaluation = earlier[-1] if earlier else after
    left, right = getattr(before, by), getattr(after, by)
    share = (budget - left) / (right - left) if right > left else 1.0
    loss = before.loss + share * (after.loss - before.loss)
    return Reading(run, loss, max(before.stderr, after.stderr), ended=False)


def headline(comparison: Comparison | None) -> str:
    """The finding in a few words, for the title of a figure."""
    if comparison is None:
        return "No run has a validation loss at its end"
    unit = "FLOPs" if comparison.by == "flops" else "tokens"
    if len(comparison.readings) == 1:
        return f"Undecided: measured on {apart(comparison)}" if comparison.elsewhere else _fall(comparison.best)
    second = comparison.readings[1]
    if comparison.tied:
        tied = [comparison.best, *comparison.tied]
        few = len(tied) <= NAMED
        names = listed([shortened(r.run.name, 28) for r in tied]) if few else f"The best {len(tied)} runs"
        return f"{names} cannot be told apart at equal {unit}"
    return (
        f"{shortened(comparison.best.run.name, 28)} {comparison.verb} {nats(comparison.margin(second))} nats "
        f"below {shortened(second.run.name, 28)} at equal {unit}"
    )


def sentence(comparison: Comparison | None, runs: Sequence[Run]) -> str:
    """The verdict: one sentence with its uncertainty."""
    if comparison is None:
        return "There is no verdict: no run has a validation loss at its end."
    if len(comparison.readings) == 1 and comparison.elsewhere:
        names = listed([comparison.best.run.name, *(run.name for run in comparison.elsewhere)])
        return f"It is undecided between {names}: measured on {apart(comparison)}, so their losses cannot be compared."
    if len(comparison.readings) == 1:
        left_out = "" if len(runs) == 1 else "; the others have no validation loss at their end"
        return f"There is nothing to compare: {_fall(comparison.best)} nats per {comparison.best.run.target}{left_out}."
    best, tied, behind = comparison.best, comparison.tied, comparison.behind
    at = f"At {_amount(comparison)} of this stage"
    ends = _ends(comparison, behind)
    if not tied:
        return f"{at}, {best.run.name} {comparison.verb} {ends}; {SEED}."
    names = listed([best.run.name, *(r.run.name for r in tied)])
    gaps = listed([_gap(comparison, r) for r in tied])
    known = [math.isfinite(comparison.error(r)) for r in tied]
    ways = ["within twice the standard error"] * any(known) + ["measured without a standard error"] * (not all(known))
    lead = f"{best.run.name}'s lead of {gaps} nats is {' or '.join(ways)}"
    also = f"; it {comparison.verb} {ends}" if behind else ""
    return f"{at}, it is undecided between {names}: {lead}{also}; {SEED}."


def cautions(comparison: Comparison | None, runs: Sequence[Run]) -> list[str]:
    """What a careful reader must know of the comparison, a sentence each."""
    found = []
    if comparison and len(comparison.readings) > 1:
        found.append(_error_in_words(comparison))
        if early := comparison.early:
            are = "is" if len(early) == 1 else "are"
            found.append(
                f"The budgets differ: {listed(early)}, which went further, {are} read at "
                f"{_amount(comparison)}, interpolated between two evaluations. "
                "A run read before its end has not finished its learning-rate decay, which favours the "
                "shorter one."
            )
    if comparison and comparison.elsewhere:
        found.append(_texts(comparison))
    read = {r.run for r in comparison.readings} | set(comparison.elsewhere) if comparison else set()
    missing = [run.name for run in runs if run not in read]
    if missing:
        found.append(f"{listed(missing)}: no validation loss at the end, so not in the verdict.")
    for key, noun in (("data", "data"), ("seq_len", "sequence lengths"), ("vocab_size", "vocabularies")):
        values = {str(v) for run in runs if (v := run.metrics.header.get(key)) is not None}
        if len(values) > 1:
            shown = listed(sorted(values)[:4])
            found.append(f"The runs used different {noun} ({shown}): their losses may not be comparable.")
    return found


def _error_in_words(comparison: Comparison) -> str:
    """What ± is, and what may be concluded from it."""
    if all(map(comparison.pairs, comparison.readings[1:])):
        return PAIRED
    texts = {reading.run.text[0] for reading in comparison.readings}
    return CONSERVATIVE if len(texts) == 1 and None not in texts else UNKNOWN_TEXT


def _texts(comparison: Comparison) -> str:
    """Which runs are not compared, and on how much text each was measured."""
    runs = [*(reading.run for reading in comparison.readings), *comparison.elsewhere]
    amounts = [f"{run.name} on {run.text[1]:,} tokens" for run in runs if run.text[1]]
    which, are = listed([run.name for run in comparison.elsewhere]), "was" if len(comparison.elsewhere) == 1 else "were"
    shown = f" ({listed(amounts)})" if amounts else ""
    options = "--data, --eval-tokens and --seq-len"
    if len({run.objective for run in runs}) > 1:
        shown, options = "", f"--objective, {options}"
    return (
        f"{which} {are} measured on {apart(comparison)}{shown}, so no difference is claimed. "
        f"The same {options} make runs comparable."
    )


def apart(comparison: Comparison) -> str:
    """What the evaluations of the runs that are not compared differ in, as far as it is known."""
    runs = [*(reading.run for reading in comparison.readings), *comparison.elsewhere]
    if len(objectives := {run.objective for run in runs}) > 1:
        return f"different objectives ({listed(sorted(objectives))})"
    texts = {run.corpus for run in runs}
    same_amount = all(_near(run.text[1], runs[0].text[1]) for run in runs)
    if len(texts) == 1 and None not in texts:
        return f"different {'windows' if same_amount else 'amounts'} of the same text"
    alike = same_amount and len({run.length for run in runs}) == 1 and all(run.text[0] for run in runs)
    return "different text" if alike else "different validation sets"


def _fall(reading: Reading) -> str:
    start = reading.run.start
    name, loss = reading.run.name, nats(reading.loss)
    return f"{name} goes from {nats(start.loss)} to {loss}" if start else f"{name} ends at {loss}"


def _amount(comparison: Comparison) -> str:
    if comparison.by == "tokens":
        return f"equal tokens ({count(comparison.budget)})"
    return f"equal training FLOPs ({scientific(comparison.budget)})"


def _ends(comparison: Comparison, behind: Sequence[Reading]) -> str:
    """How far the best ends below those behind it; of many, the nearest one by one and the rest together."""
    named = behind if len(behind) <= NAMED else behind[: NAMED - 1]
    parts = [f"{_gap(comparison, r)} nats below {r.run.name}" for r in named]
    if rest := behind[len(named) :]:
        low, high = nats(comparison.margin(rest[0])), nats(comparison.margin(rest[-1]))
        parts.append(f"{low} to {high} nats below the other {len(rest)}")
    return listed(parts)


def _gap(comparison: Comparison, reading: Reading) -> str:
    error = comparison.error(reading)
    return nats(comparison.margin(reading)) + (f" ± {nats(error)}" if math.isfinite(error) else "")
