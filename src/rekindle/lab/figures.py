"""The two pictures a study needs: arms side by side, and arms along an axis. Every seed is a dot."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from rekindle.lab.claims import LOSS, Metric
from rekindle.lab.stats import sample
from rekindle.report.chart import Chart
from rekindle.report.labels import spread
from rekindle.report.style import Sheet, colour, series, text_width
from rekindle.report.words import count

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_LINE = 19  # height of a label, pixels
_ROW = 38  # height of an arm, pixels
SEEDS = "Dots are seeds, bars 95 % intervals of their mean (Student's t)."
ONE_SEED = "One seed: the dots have no interval."


@dataclass(frozen=True)
class Line:
    """One arm along an axis: a value for each seed at each x."""

    name: str
    points: Mapping[float, Sequence[float]]


def best(what: str, arms: Mapping[str, Sequence[float]], metric: Metric = LOSS) -> str:
    """What a picture found: "what: a lowest, 0.012 nats below b"; alike where the seeds cannot tell the two apart."""
    end, beside = ("lowest", "below") if metric.lower_is_better else ("highest", "above")
    ordered = sorted(arms.items(), key=lambda arm: sample(arm[1]).mean, reverse=not metric.lower_is_better)
    (first, values), (second, others) = ordered[:2]
    apart = sample([metric.gain(a, b) for a, b in zip(values, others, strict=True)])
    if apart.n > 1 and apart.mean <= apart.half():
        return f"{what}: {first} and {second} {end}, not to be told apart"
    return f"{what}: {first} {end}, {metric.shown(apart.mean)} {metric.short} {beside} {second}".replace("  ", " ")


def dots(name: str, what: str, arms: Mapping[str, Sequence[float]], metric: Metric = LOSS) -> Chart:
    """Arms one below the other, in the order given; `what` they were made for begins the title."""
    seeds = max(map(len, arms.values()))

    def draw(sheet: Sheet) -> bool:
        left = min(text_width(sheet.figure, list(arms), fontweight="bold") + 24, 0.5 * sheet.width)
        axes = sheet.axes(left, 16, sheet.width - 70, sheet.height - 50)
        axes.grid(axis="y", visible=False)
        axes.grid(axis="x")
        for row, (arm, values) in enumerate(arms.items()):
            mean = sample(values)
            look = series(row)["color"]
            half = _bar(values)
            axes.errorbar([mean.mean], [-row], xerr=[half], fmt="none", ecolor=look, elinewidth=1.5)
            axes.plot(values, [-row] * len(values), "o", color=look, markersize=5, alpha=0.55, markeredgewidth=0)
            axes.plot([mean.mean], [-row], "|", color=look, markersize=15, markeredgewidth=2.5)
            where = {"textcoords": "offset points", "va": "center_baseline", "annotation_clip": False}
            axes.annotate(arm, (0, -row), (-10, 0), ("axes fraction", "data"), ha="right", color=look,
                          fontweight="bold", **where)  # fmt: skip
            axes.annotate(metric.shown(mean.mean), (1, -row), (10, 0), ("axes fraction", "data"), **where)
        axes.set_ylim(0.6 - len(arms), 0.6)
        axes.set_yticks([])
        axes.locator_params(axis="x", nbins=3 if sheet.narrow else 6)
        sheet.caption(axes, "", metric.axis)
        return True

    rows = [(arm, seed, value) for arm, values in arms.items() for seed, value in enumerate(values)]
    caption = SEEDS if seeds > 1 else ONE_SEED
    height = _ROW * len(arms) + 80
    title, columns = best(what, arms, metric), ("arm", "seed", metric.axis)
    return Chart(name, title, caption, columns, rows, draw, height, height)


def ranked(name: str, what: str, arms: Sequence[Line], below: str, metric: Metric = LOSS) -> Chart:
    """A metric along a numeric axis; the title tells which arm ends best."""
    end = max(x for arm in arms for x in arm.points)
    title = best(what, {arm.name: arm.points[end] for arm in arms if end in arm.points}, metric)
    return lines(name, title, arms, below, metric.axis, metric=metric)


def lines(
    name: str,
    title: str,
    arms: Sequence[Line],
    below: str,
    axis: str,
    *,
    counts: bool = False,
    metric: Metric = LOSS,
) -> Chart:
    """Arms along a numeric axis: the mean over seeds, each seed a dot, intervals as bars.

    With `counts` the axis is of tokens or parameters: logarithmic, labelled 1M and so on.
    """
    seeds = max(len(values) for arm in arms for values in arm.points.values())

    def draw(sheet: Sheet) -> bool:
        names = [arm.name for arm in arms]
        wide = 0.0 if sheet.narrow else text_width(sheet.figure, names, fontweight="bold") + 66
        axes = sheet.axes(48, 40, sheet.width - 14 - wide, sheet.height - 50)
        everywhere = sorted({x for arm in arms for x in arm.points})
        scale = math.log if counts else float
        step = (scale(everywhere[-1]) - scale(everywhere[0])) / 60 if len(everywhere) > 1 else 0.0
        if counts:
            axes.set_xscale("log")
        for i, arm in enumerate(arms):
            look = series(i)
            aside = (i - (len(arms) - 1) / 2) * step / 2  # so that bars of arms don't hide each other
            means = [sample(values).mean for values in arm.points.values()]
            xs = [x * math.exp(aside) if counts else x + aside for x in arm.points]
            axes.plot(xs, means, marker="o", markersize=5, **look, zorder=3)
            halves = [_bar(values) for values in arm.points.values()]
            axes.errorbar(xs, means, halves, fmt="none", ecolor=look["color"], elinewidth=1.2, alpha=0.6, zorder=2)
            for x, values in zip(xs, arm.points.values(), strict=True):
                axes.plot([x] * len(values), values, "o", color=look["color"], markersize=3, alpha=0.5, zorder=2)
        axes.set_xticks(everywhere, [count(int(x)) if counts else f"{x:.3g}" for x in everywhere], minor=False)
        axes.minorticks_off()
        sheet.caption(axes, axis, below)
        if not sheet.narrow:
            _name_ends(sheet, axes, arms, metric)
        return not sheet.narrow

    rows = [
        (arm.name, x, seed, value)
        for arm in arms
        for x, values in arm.points.items()
        for seed, value in enumerate(values)
    ]
    key = tuple((arm.name, i) for i, arm in enumerate(arms))
    caption = SEEDS if seeds > 1 else ONE_SEED
    return Chart(name, title, caption, ("arm", below, "seed", axis), rows, draw, 400, 320, key)


def _bar(values: Sequence[float]) -> float:
    """Half the 95 % interval, none for one seed."""
    return sample(values).half() if len(values) > 1 else 0.0


def _name_ends(sheet: Sheet, axes: Axes, arms: Sequence[Line], metric: Metric) -> None:
    """Name and last value right of each line; a dotted leader where moved."""
    box = axes.get_window_extent()
    ends = [(max(arm.points), sample(arm.points[max(arm.points)]).mean) for arm in arms]
    pixels = [axes.transData.transform(end) for end in ends]
    places = spread([y for _, y in pixels], _LINE, box.y0 - 30, box.y1 + 14)
    for i, (arm, (_, value), (x, y)) in enumerate(zip(arms, ends, pixels, strict=True)):
        place = places[i] if places else y
        where = {"xycoords": "figure points", "va": "center_baseline", "annotation_clip": False}
        axes.annotate(metric.shown(value), (box.x1 + 12, place), color=colour("ink"), **where)
        axes.annotate(arm.name, (box.x1 + 66, place), color=series(i)["color"], fontweight="bold", **where)
        if abs(place - y) > 3 or box.x1 - x > 14:
            sheet.line((x + 5, y), (box.x1 + 8, place), color=series(i)["color"],
                       linewidth=1.0, linestyle=(0, (1, 2.5)), alpha=0.8)  # fmt: skip
