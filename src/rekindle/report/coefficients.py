"""A picture of coefficients: what each saved checkpoint counts, below what each is worth alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from rekindle.report.chart import Chart
from rekindle.report.style import Sheet, colour, series

LABELS = 6  # steps that the axis names


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
