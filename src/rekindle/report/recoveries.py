"""What the deaths of stages cost a run: the jump of its loss, the steps until that is regained, the seconds lost."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean, median
from typing import Any, NamedTuple

from rekindle.report.chart import Chart
from rekindle.report.metrics import Recovery, Step
from rekindle.report.runs import Run
from rekindle.report.style import Sheet, colour, series
from rekindle.report.words import exponent_of, shortened, unit

ALIKE = 0.5  # distance of two stages, of the mean of their norms, below which they are
AROUND = 5  # steps that a loss before and after a failure is the mean of


class Cost(NamedTuple):
    """`jump`: the mean loss of the steps after less that of those before, nats per token; NaN where there are none.

    `regained`: steps until as many in a row are down at what they were before; None where they never are.
    """

    jump: float
    regained: int | None


def recovery_chart(run: Run, index: int, name: str) -> Chart | None:
    """The training loss, with a mark where a stage died; None where none did. `index` is the run's colour."""
    found, steps = run.metrics.recoveries, run.metrics.steps
    if not found or not steps:
        return None
    costs = [cost(steps, recovery) for recovery in found]
    tokens = {step.step: step.tokens for step in steps}
    each = steps[0].tokens / (steps[0].step or 1)
    marks = [tokens.get(recovery.step, recovery.step * each) for recovery in found]
    exponent = exponent_of([run.tokens])
    rows: list[tuple[Any, ...]] = [("training", s.step, s.tokens, s.loss, "", "", "", "", "") for s in steps]
    rows += [
        ("recovery", r.step, at, "", r.stage, r.policy, r.seconds, c.jump, "" if c.regained is None else c.regained)
        for r, c, at in zip(found, costs, marks, strict=True)
    ]

    def draw(sheet: Sheet) -> bool:
        axes = sheet.axes(44, 40, sheet.width - 14, sheet.height - 50)
        scale = 10.0**exponent
        for at in marks:
            axes.axvline(at / scale, color=colour("muted"), linewidth=1.0, alpha=0.6, zorder=1)
        axes.plot([s.tokens / scale for s in steps], [s.loss for s in steps], **series(index) | {"linewidth": 1.4})
        axes.set_xlim(left=0)
        axes.locator_params(nbins=4 if sheet.narrow else 6)
        sheet.caption(axes, "Training loss, nats per token", unit(exponent, "tokens"))
        return True

    return Chart(
        name=name,
        title=f"{shortened(run.name, 40)}: {_told(found, costs)}",
        caption=f"A line where a stage's process died. What the loss moved is the mean of the {AROUND} steps after it "
        f"less that of the {AROUND} before; it is regained when {AROUND} steps in a row are down again, see the CSV."
        f"{_alike(found)}",
        columns=("quantity", "step", "tokens", "loss", "stage", "policy", "seconds", "jump", "steps_to_regain"),
        rows=rows,
        draw=draw,
        height=270,
        narrow_height=270,
    )


def _alike(found: Sequence[Recovery]) -> str:
    """A warning where averages were of what had become alike."""
    near = [one for one in found if one.distance is not None and one.distance < ALIKE]
    if not near:
        return ""
    least = min(one.distance for one in near if one.distance is not None)
    times = "Once stages were averaged" if len(near) == 1 else f"{len(near)} times stages were averaged"
    return f" {times} that had come near to each other, to {least:.2f} of their norm: averages make a stack alike."


def cost(steps: Sequence[Step], recovery: Recovery) -> Cost:
    """`recovery.step` updates had been made when the stage was lost."""
    before = [s.loss for s in steps if recovery.step - AROUND < s.step <= recovery.step]
    after = [s.loss for s in steps if s.step > recovery.step]
    if not before or not after:
        return Cost(math.nan, None)
    level = fmean(before)
    means = (fmean(after[at - AROUND : at]) for at in range(AROUND, len(after) + 1))
    regained = next((at for at, mean in enumerate(means, AROUND) if mean <= level), None)
    return Cost(fmean(after[:AROUND]) - level, regained)


def _told(found: Sequence[Recovery], costs: Sequence[Cost]) -> str:
    times = "once" if len(found) == 1 else f"{len(found)} times"
    jumps = [one.jump for one in costs if math.isfinite(one.jump)]
    moved = f"; the loss moved by {median(jumps):+.3f} nats".replace("-", "−") if jumps else ""
    middle = " in the median" if len(jumps) > 1 else ""
    seconds = sum({(one.step, one.seconds): one.seconds for one in found}.values())  # of two at once they are the same
    return f"a stage died {times}, {seconds:.1f} s were lost{moved}{middle}"
