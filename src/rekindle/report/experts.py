"""How a mixture of experts shares its work: each expert's load at the end, and its evenness over training."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import fmean
from typing import Any

from rekindle.report.chart import Chart
from rekindle.report.metrics import Evaluation
from rekindle.report.runs import Run
from rekindle.report.style import Sheet, colour, series
from rekindle.report.words import exponent_of, shortened, unit

NUMBERED = 16  # experts up to which each cell shows its number
_SHADES = 12  # steps of the scale; the cells of one shade are one path, so that large models stay small files


def expert_chart(run: Run, index: int, name: str) -> Chart | None:
    """Load per layer and expert, as a multiple of an even share, and its entropy; None for a dense run.

    `index` is the run's colour, `name` the chart's file name.
    """
    last = run.load
    if last is None or last.load is None:
        return None
    dead = dead_experts(last)
    shares = [[x * len(layer) for x in layer] for layer in last.load]
    busiest = max((x for layer in shares for x in layer if math.isfinite(x)), default=0.0)
    total = sum(map(len, shares))
    state = f"all {total} experts work" if not dead else f"{len(dead)} of {total} experts are dead"
    entropies = [e for e in run.metrics.evaluations if e.entropy]
    rows: list[tuple[Any, ...]] = [("load", last.step, last.tokens, i, j, x, (i, j) in dead)
            for i, layer in enumerate(last.load) for j, x in enumerate(layer)]  # fmt: skip
    for e in entropies:
        rows += [("entropy", e.step, e.tokens, i, "", x, "") for i, x in enumerate(e.entropy or ())]
        rows.append(("entropy", e.step, e.tokens, "mean", "", fmean(e.entropy or ()), ""))
    layers = len(shares)
    cell = max(5.0, min(34.0, 260 / layers))

    def draw(sheet: Sheet) -> bool:
        side = len(entropies) > 1 and not sheet.narrow
        right = sheet.width * 0.58 if side else sheet.width - 14
        _heatmap(sheet, (44, 40, right, 40 + cell * layers), shares, dead, series(index)["color"])
        if len(entropies) > 1:
            top = 40 if side else 40 + cell * layers + 90
            box = (right + 70 if side else 44, top, sheet.width - 14, sheet.height - 50)
            _entropy(sheet, box, entropies, index)
        return True

    return Chart(
        name=name,
        title=f"{shortened(run.name, 40)}: {state}; the busiest takes {busiest:.1f} times an even share",
        caption=(
            "Cells: share of the routed tokens at the last evaluation, 1 = even; "
            "× marks an expert that received none. "
            "Lines: entropy of the load, 1 = even; each thin line is a layer, the thick one their mean."
        ),
        columns=("quantity", "step", "tokens", "layer", "expert", "value", "dead"),
        rows=rows,
        draw=draw,
        height=round(max(200, 90 + cell * layers)),
        narrow_height=round(90 + cell * layers + (230 if len(entropies) > 1 else 0)),
    )


def dead_experts(evaluation: Evaluation) -> set[tuple[int, int]]:
    """(layer, expert) of the experts without tokens: the least loaded, as many as the run counted."""
    load = evaluation.load or ()
    counts = evaluation.dead or [sum(x <= 0 for x in layer) for layer in load]
    return {
        (i, j)
        for i, (layer, count) in enumerate(zip(load, counts))
        for j in sorted(range(len(layer)), key=lambda j: layer[j])[:count]
    }


def _heatmap(
    sheet: Sheet,
    box: tuple[float, float, float, float],
    shares: Sequence[Sequence[float]],
    dead: set[tuple[int, int]],
    ink: str,
) -> None:
    from matplotlib.patches import PathPatch
    from matplotlib.path import Path

    axes = sheet.axes(*box)
    axes.grid(False)
    axes.spines["bottom"].set_visible(False)
    experts = max(map(len, shares))
    gap_x, gap_y = experts / (box[2] - box[0]), len(shares) / (box[3] - box[1])  # one pixel
    shades: dict[int, list[Path]] = {}
    for i, layer in enumerate(shares):
        for j, share in enumerate(layer):
            shade = round(_SHADES * min(share, 2.0) / 2) if math.isfinite(share) else 0
            shades.setdefault(shade, []).append(_cell(j, i, gap_x, gap_y))
    for shade, paths in shades.items():
        axes.add_patch(PathPatch(Path.make_compound_path(*paths), facecolor=ink, linewidth=0,
                                 alpha=0.05 + 0.5 * shade / _SHADES))  # fmt: skip
    fits = experts <= NUMBERED and (box[3] - box[1]) / len(shares) >= 18
    for i, layer in enumerate(shares):
        for j, share in enumerate(layer):
            if fits or (i, j) in dead:
                axes.text(j, i, "×" if (i, j) in dead else f"{share:.1f}", ha="center", va="center_baseline",
                          fontsize=12, color=colour("ink"))  # fmt: skip
    axes.set_xlim(-0.5, experts - 0.5)
    axes.set_ylim(len(shares) - 0.5, -0.5)
    axes.xaxis.set_major_locator(_whole(experts, 8 if sheet.narrow else 16))
    axes.yaxis.set_major_locator(_whole(len(shares), (box[3] - box[1]) / 18))
    sheet.caption(axes, "MoE layer; load as a multiple of an even share", "expert")


def _cell(x: int, y: int, gap_x: float, gap_y: float):
    from matplotlib.path import Path

    left, right, top, bottom = x - 0.5 + gap_x, x + 0.5 - gap_x, y - 0.5 + gap_y, y + 0.5 - gap_y
    return Path([(left, top), (right, top), (right, bottom), (left, bottom), (left, top)], closed=True)


def _whole(number: int, most: float):
    from matplotlib.ticker import FixedLocator

    step = next(s for s in (1, 2, 4, 8, 16, 32, 64, 128, 256, 10**6) if number / s <= max(1, most))
    return FixedLocator(range(0, number, step))


def _entropy(
    sheet: Sheet, box: tuple[float, float, float, float], evaluations: Sequence[Evaluation], index: int
) -> None:
    axes = sheet.axes(*box)
    exponent = exponent_of(e.tokens for e in evaluations)
    xs = [e.tokens / 10**exponent for e in evaluations]
    layers = [e.entropy or () for e in evaluations]
    look = series(index)
    for layer in range(min(map(len, layers))):
        axes.plot(xs, [row[layer] for row in layers], color=look["color"], alpha=0.35, linewidth=1.0)
    axes.plot(xs, [fmean(row) for row in layers], **look)
    lowest = min((x for row in layers for x in row if math.isfinite(x)), default=1.0)
    axes.set_ylim(min(0.9, math.floor(lowest * 20) / 20), 1.004)
    axes.set_xlim(left=0)
    axes.locator_params(nbins=4)
    sheet.caption(axes, "Entropy of the load", unit(exponent, "tokens of this stage"))
