"""A picture of coefficients: what each saved checkpoint counts, below what each is worth alone."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from rekindle.report.chart import Chart
from rekindle.report.style import Sheet, colour, series, series_name, text_width

LABELS = 6  # steps that the axis names
PITCH = 22  # pixels of each group's row
SIGNS = (("positive", 0), ("negative", 1))  # and the index of its colour


def coefficients_chart(
    name: str,
    title: str,
    caption: str,
    steps: Sequence[float],
    alphas: Mapping[str, Sequence[float]],
    alone: Sequence[float] = (),
    metric: str = "",
) -> Chart:
    """`alphas`: coefficients of each arm, one for each of `steps`; `alone`: the metric of each checkpoint by itself."""

    def draw(sheet: Sheet) -> bool:
        split = 0.36 * (sheet.height - 90) if alone else 0.0
        if alone:
            above = sheet.axes(52, 40, sheet.width - 16, 40 + split)
            above.plot(steps, alone, marker="o", markersize=3.5, color=colour("muted"), linewidth=1.2)
            above.locator_params(axis="y", nbins=4)
            above.set_xticklabels([])
            sheet.caption(above, f"{metric}, of each checkpoint alone", "")
        axes = sheet.axes(52, 40 + split + (44 if alone else 0), sheet.width - 16, sheet.height - 50)
        axes.axhline(0, color=colour("muted"), linewidth=0.8, zorder=1)
        for i, values in enumerate(alphas.values()):
            axes.plot(steps, values, marker="o", markersize=3.5, **series(i), zorder=3)
        axes.locator_params(axis="y", nbins=5)
        axes.locator_params(axis="x", nbins=4 if sheet.narrow else LABELS)
        sheet.caption(axes, "coefficient", "step")
        return False

    rows = [(arm, step, value) for arm, values in alphas.items() for step, value in zip(steps, values, strict=True)]
    rows += [(f"{metric} alone", step, value) for step, value in zip(steps, alone, strict=True)] if alone else []
    key = tuple((arm, i) for i, arm in enumerate(alphas))
    return Chart(name, title, caption, ("arm", "step", "value"), rows, draw, 470 if alone else 340, 400, key)


def groups_chart(
    name: str,
    title: str,
    caption: str,
    steps: Sequence[float],
    groups: Sequence[str],
    alpha: Sequence[Sequence[float]],
) -> Chart:
    """`alpha` [G, K]: a disc for each coefficient, as large as it is, in the colour of its sign."""
    rows = [(group, step, a) for group, own in zip(groups, alpha, strict=True) for step, a in zip(steps, own)]
    largest = max((abs(a) for _, _, a in rows), default=0.0) or 1.0

    def draw(sheet: Sheet) -> bool:
        left = 24 + text_width(sheet.figure, groups)
        axes = sheet.axes(left, 40, sheet.width - 16, sheet.height - 50)
        across = (sheet.width - 16 - left) / (len(steps) + 1)
        widest = 0.9 * min(PITCH, across)
        for sign, i in SIGNS:
            own = [(x, groups.index(g), widest * math.sqrt(abs(a) / largest)) for g, x, a in rows if (a < 0) == i]
            xs, ys, across_ = ([one[k] for one in own] for k in range(3))
            axes.scatter(xs, ys, s=[w * w for w in across_], color=colour(series_name(i)), linewidths=0, label=sign)
        axes.set_yticks(range(len(groups)), groups)
        axes.set_ylim(len(groups) - 0.5, -0.5)
        axes.margins(x=0.5 / len(steps))
        axes.locator_params(axis="x", nbins=4 if sheet.narrow else LABELS)
        sheet.caption(axes, f"coefficient of each group, at most {largest:.2f}", "step")
        return False

    height = 90 + PITCH * len(groups)
    return Chart(name, title, caption, ("group", "step", "value"), rows, draw, height, height, SIGNS)
