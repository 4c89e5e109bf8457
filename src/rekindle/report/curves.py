"""Loss, learning rate and gradient norm of all runs against what was spent."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import astuple
from typing import TYPE_CHECKING

from rekindle.report.chart import Chart
from rekindle.report.labels import spread
from rekindle.report.metrics import Step
from rekindle.report.runs import Run
from rekindle.report.style import Sheet, colour, series, text_width
from rekindle.report.verdict import Budget, compare, headline
from rekindle.report.words import exponent_of, listed, nats, power, scientific, shortened, unit

if TYPE_CHECKING:
    from matplotlib.axes import Axes

POINTS = 80  # of a training curve: more steps are averaged
BARS = 24  # evaluations up to which each has its own error bar
_LINE = 19  # height of a label, pixels


def loss_chart(runs: Sequence[Run], by: Budget) -> Chart:
    """Validation loss with its standard error, training loss faintly behind it, against FLOPs or tokens."""
    curves = [_binned(run.metrics.steps, POINTS) for run in runs]
    low, high, above = _loss_range(runs)
    rows = []
    for run, curve in zip(runs, curves):
        rows += [(run.name, "validation", e.step, e.tokens, e.flops, e.loss, e.stderr)
                 for e in run.metrics.evaluations]  # fmt: skip
        rows += [(run.name, "training", s.step, s.tokens, s.flops, s.loss, "") for s in curve]
    caption = "Validation loss; bars span two standard errors either way, which the runs share where they read the "
    caption += "same text. Faint: training loss"
    longest = max(len(run.metrics.steps) for run in runs)
    caption += f", averaged over {-(-longest // POINTS)} logged steps." if longest > POINTS else "."
    caption += "".join(f" {run.name} starts at {nats(run.start.loss)}, above the frame." for run in above)  # type: ignore[union-attr]
    comparison = compare(runs, by)
    if comparison and (early := comparison.early):
        caption += f" For the title {listed(early)} {'is' if len(early) == 1 else 'are'} read before the end."
    gaps = [run.name for run in runs if len(run.readings) < len(run.metrics.evaluations)]
    caption += f" A gap in {listed(gaps)} is a loss that is not a number." if gaps else ""

    def draw(sheet: Sheet) -> bool:
        return _draw_loss(sheet, runs, curves, by, (low, high))

    return Chart(
        name=f"loss-{by}",
        title=headline(comparison),
        caption=caption,
        columns=("run", "series", "step", "tokens", "flops", "loss", "stderr"),
        rows=rows,
        draw=draw,
        height=430,
        narrow_height=320,
        key=tuple((run.name, i) for i, run in enumerate(runs)),
    )


def _draw_loss(
    sheet: Sheet, runs: Sequence[Run], curves: Sequence[list[Step]], by: Budget, span: tuple[float, float]
) -> bool:
    names = [shortened(run.name, 28) for run in runs]
    fits = not sheet.narrow and len(runs) * _LINE <= 340
    name_width = text_width(sheet.figure, names, fontweight="bold") if fits else 0.0
    right = sheet.width - (14 if not fits and not sheet.narrow else 54 + name_width)
    axes = sheet.axes(44, 40, right, sheet.height - 50)
    exponent = exponent_of(getattr(run, by) for run in runs)
    scale = 10.0**exponent
    for i, (run, curve) in enumerate(zip(runs, curves)):
        look = series(i)
        axes.plot([getattr(s, by) / scale for s in curve], [s.loss for s in curve],
                  color=look["color"], alpha=0.28, linewidth=1.0, zorder=1)  # fmt: skip
        xs = [getattr(e, by) / scale for e in run.metrics.evaluations]
        losses = [e.loss for e in run.metrics.evaluations]
        doubled = [2 * e.stderr if math.isfinite(e.stderr) else 0.0 for e in run.metrics.evaluations]
        axes.plot(xs, losses, **look, zorder=3)
        if len(xs) <= BARS:
            axes.plot(xs, losses, "o", markersize=4, color=look["color"], zorder=3)
            # faint: most of this error is the text's, and the same for all runs
            axes.errorbar(xs, losses, doubled, fmt="none", ecolor=look["color"], alpha=0.4,
                          elinewidth=1.0, capsize=0, zorder=2)  # fmt: skip
        else:
            axes.fill_between(xs, [y - d for y, d in zip(losses, doubled)],
                              [y + d for y, d in zip(losses, doubled)],
                              color=look["color"], alpha=0.2, linewidth=0, zorder=2)  # fmt: skip
    longest = max(getattr(run, by) for run in runs) / scale or 1
    axes.set_xlim(-0.008 * longest, 1.008 * longest)
    axes.set_ylim(*span)
    axes.locator_params(nbins=4 if sheet.narrow else 6)
    below = (
        f"training FLOPs of this stage{', ' if exponent else ''}{power(exponent)}"
        if by == "flops"
        else unit(exponent, "tokens of this stage")
    )
    sheet.caption(axes, f"Loss, nats per {runs[0].target}", below)
    if fits or sheet.narrow:
        _label_ends(sheet, axes, runs, names if fits else None, by, scale)
    return fits


def _label_ends(
    sheet: Sheet, axes: Axes, runs: Sequence[Run], names: list[str] | None, by: Budget, scale: float
) -> None:
    """The final loss, and the name where there is room, right of each line; a dotted leader where moved."""
    box = axes.get_window_extent()
    lasts = [(i, run, run.readings[-1]) for i, run in enumerate(runs) if run.readings]
    ends = [axes.transData.transform((getattr(last, by) / scale, last.loss)) for _, _, last in lasts]
    places = spread([y for _, y in ends], _LINE, box.y0 - 30, box.y1 + 12)
    if places is None:
        return
    for (i, run, last), (x, y), place in zip(lasts, ends, places):
        look = {"xycoords": "figure points", "va": "center_baseline", "annotation_clip": False}
        value = nats(last.loss) if last is run.final else "diverged"
        axes.annotate(value, (box.x1 + 12, place), color=colour("ink"), **look)
        if names:
            indent = 54 if last is run.final else 72
            ink = series(i)["color"]
            axes.annotate(names[i], (box.x1 + indent, place), color=ink, fontweight="bold", **look)
        if abs(place - y) > 3 or box.x1 - x > 14:
            sheet.line((x + 5, y), (box.x1 + 8, place), color=series(i)["color"],
                       linewidth=1.0, linestyle=(0, (1, 2.5)), alpha=0.8)  # fmt: skip


def _loss_range(runs: Sequence[Run]) -> tuple[float, float, list[Run]]:
    """Lowest and highest loss of the frame, and the runs that start above it.

    The frame shows where the runs end and the lowest start, so that a model from scratch, which falls several
    nats in its first steps, does not flatten the differences that matter.
    """
    losses = [e.loss for run in runs for e in run.readings]
    if not losses:
        return 0.0, 1.0, []
    starts = [run.readings[0].loss for run in runs if run.readings]
    ends = [run.readings[-1].loss for run in runs if run.readings]
    low, high = min(losses), max(*ends, min(starts), min(losses))
    if min(starts) - min(ends) > 2 and len(losses) > 3 * len(runs):  # all from scratch: skip the first plunge
        high = max(max(ends), sorted(losses)[int(0.8 * len(losses))])
    room = 0.08 * (high - low) or 0.1
    top = high + room
    return low - room, top, [run for run in runs if run.start and run.start.loss > top]


def optimisation_chart(runs: Sequence[Run]) -> Chart | None:
    """Learning rate and gradient norm against tokens; None where no run logged them."""
    curves = [_binned(run.metrics.steps, 4 * POINTS) for run in runs]
    rates = [s.lr for curve in curves for s in curve if math.isfinite(s.lr)]
    norms = [(s.grad_norm, run.name) for run in runs for s in run.metrics.steps if math.isfinite(s.grad_norm)]
    if not rates or not norms:
        return None
    peak, worst = max(norms)
    exponent, small = exponent_of(run.tokens for run in runs), exponent_of(rates)
    rows = [(r.name, s.step, s.tokens, s.flops, s.lr, s.grad_norm) for r, c in zip(runs, curves) for s in c]

    def panel(sheet: Sheet, box: tuple[float, float, float, float], what: str, above: str) -> None:
        axes = sheet.axes(*box)
        for i, curve in enumerate(curves):
            scale = 10.0**small if what == "lr" else 1.0
            xs, ys = [s.tokens / 10**exponent for s in curve], [getattr(s, what) / scale for s in curve]
            axes.plot(xs, ys, **series(i) | {"linewidth": 1.4})
        axes.set_xlim(left=0)
        axes.set_ylim(bottom=0)
        axes.locator_params(nbins=4)
        sheet.caption(axes, above, unit(exponent, "tokens of this stage"))

    def draw(sheet: Sheet) -> bool:
        width, height = sheet.width, sheet.height
        middle, floor = width / 2, height - 50
        if sheet.narrow:
            first, second = (44, 40, width - 14, height / 2 - 50), (44, height / 2 + 40, width - 14, floor)
        else:
            first, second = (44, 40, middle - 30, floor), (middle + 30, 40, width - 14, floor)
        panel(sheet, first, "lr", f"Learning rate{', ' if small else ''}{power(small)}")
        panel(sheet, second, "grad_norm", "Gradient norm before clipping")
        return len(runs) == 1

    return Chart(
        name="optimisation",
        title=f"Learning rate peaks at {scientific(max(rates))}, gradient norm at {peak:.3g}, in {worst}",
        caption=f"Beyond {4 * POINTS} logged steps a run is averaged, so a spike may look lower than it was.",
        columns=("run", "step", "tokens", "flops", "lr", "grad_norm"),
        rows=rows,
        draw=draw,
        height=270,
        narrow_height=460,
        key=tuple((run.name, i) for i, run in enumerate(runs)),
    )


def _binned(steps: Sequence[Step], points: int) -> list[Step]:
    """Means over equal numbers of steps, at most `points` of them; NaN makes its whole bin NaN."""
    size = -(-len(steps) // points) or 1
    bins = [steps[i : i + size] for i in range(0, len(steps), size)]
    if size == 1:
        return list(steps)
    return [Step(*(sum(column) / len(group) for column in zip(*map(astuple, group)))) for group in bins]
