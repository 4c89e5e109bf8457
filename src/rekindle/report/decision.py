"""plan's figure and its page: loss against tokens for every option, and the same law recomputed in the browser."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np

from rekindle.laws import crossing, decide, options
from rekindle.laws.cost import PEAK
from rekindle.laws.curves import Curve, curves
from rekindle.laws.forms import Floats
from rekindle.laws.law import Row
from rekindle.laws.plan import Plan
from rekindle.laws.question import FLOPS
from rekindle.report.chart import Chart, publish
from rekindle.report.labels import count_ticks
from rekindle.report.page import render
from rekindle.report.style import Sheet, colour, series, series_name
from rekindle.report.words import count
from rekindle.store.publish import publishing

PAGE = "index.html"


def write_plan(plan: Plan, out: Path, *, further: str = "", overwrite: bool = False) -> Path:
    """OUT/plan.png, .svg and .csv, and OUT/index.html, the page. Returns the page."""
    with publishing(out, overwrite=overwrite) as folder:
        publish(plan_chart(plan), folder)
        (folder / PAGE).write_text(page(plan, further), encoding="utf-8")
    return out / PAGE


def page(plan: Plan, further: str = "") -> str:
    """One file that needs no network: sliders, and the law in the browser."""
    from markupsafe import Markup

    script = (resources.files("rekindle.report") / "plan.js").read_text(encoding="utf-8")
    data = json.dumps(page_data(plan, further), allow_nan=False).replace("</", "<\\/")
    context = {
        "title": "Upcycle, continue, or start over?",
        "law": plan.law,
        "notes": plan.notes,
        "priced": plan.machines.price is not None,
        "crosses": plan.decision.crossing is not None,
        "script": Markup(script),
        "data": Markup(data),
    }
    return render(context, "plan.html.j2")


def page_data(plan: Plan, further: str) -> dict[str, Any]:
    """What the page's script needs to say what Python says; `further` are the flags that no slider moves."""
    law, q = plan.law, plan.question
    ways, drawn = options.ways_of(law), law.sample(options.DRAWS)
    return {
        "law": {"name": law.name, "fitErrorKnown": law.fit_error_known,
                "rows": {name: _row(row, drawn[name]) for name, row in law.rows.items()}},
        "ways": {name: asdict(way) | {"colour": series_name(i)} for i, (name, way) in enumerate(ways.items())},
        "source": asdict(options.SOURCE),
        "denseAlone": options.dense_alone(law),
        "rivals": decide.RIVALS,
        "question": asdict(q),
        "machines": asdict(plan.machines) | {"peak": PEAK[plan.machines.gpu]},
        "serving": {"kvBytes": plan.serving["dense"]["kv_bytes_per_token"],
                    "kvEstimated": plan.serving["dense"]["kv_estimated"]},
        "draws": options.DRAWS,
        "percentiles": [options.LOW, options.HIGH],
        "unknownFit": decide.UNKNOWN_FIT,
        "crossing": {"least": crossing.LEAST, "most": crossing.MOST, "grid": crossing.GRID},
        "flopsPerParameter": FLOPS,
        "beyond": decide.BEYOND,
        "unknown": decide.unknown(law),
        "further": further,
    }  # fmt: skip


def _row(row: Row, drawn: Mapping[str, Floats]) -> dict[str, Any]:
    return {
        "terms": [{"amplitude": term.amplitude,
                   "exponents": [{"name": e, **asdict(feature)} for e, feature in term.exponents]}
                  for term in row.form.terms],
        "values": dict(row.values),
        "domain": row.domain,
        "params": row.params,
        "draws": {key: values[:, 0].tolist() for key, values in drawn.items()},
    }  # fmt: skip


def plan_chart(plan: Plan) -> Chart:
    """Every option's loss with its band, and where a mixture from scratch overtakes the upcycled one."""
    tokens, found = curves(plan.law, plan.question)
    rows = [(c.name, *point) for c in found for point in zip(tokens, c.mid, c.low, c.high, strict=True)]
    q = plan.question
    caption = (
        f"N1 {count(q.params)}, D1 {count(q.sunk)} tokens, {q.experts} experts, top-{q.top_k}; {plan.law.source}. "
    )
    caption += "Bands hold 90 % of the fit's bootstrap." if plan.law.fit_error_known else (
        "Bands hold 90 % of what the rounding of the published numbers leaves open; the error of the fit is unknown."
    )  # fmt: skip
    caption += " Dotted: above its source, where upcycling starts; the law does not reach there."
    return Chart(
        name="plan",
        title=_finding(plan),
        caption=caption,
        columns=("option", "tokens", "loss", "low", "high"),
        rows=rows,
        draw=lambda sheet: _draw(sheet, plan, tokens, found),
        height=430,
        narrow_height=340,
        key=tuple((curve.title, i) for i, curve in enumerate(found)),
    )


def _finding(plan: Plan) -> str:
    best = min(plan.decision.options.values(), key=lambda option: option.loss)
    text = f"Upcycling for {count(plan.question.tokens)} tokens: {plan.decision.verdict}"
    overtaken = plan.decision.crossing
    if overtaken is None:
        return f"Lowest at {count(plan.question.tokens)} tokens: {best.title}"
    if not math.isfinite(overtaken.mid):
        return f"{text}; not overtaken below {count(crossing.MOST)}"
    return f"{text}; overtaken at {count(overtaken.mid)} ({_span(overtaken)})"


def _span(found: crossing.Range) -> str:
    return f"{count(found.low)} to {count(found.high) if math.isfinite(found.high) else 'never'}"


def _draw(sheet: Sheet, plan: Plan, tokens: Floats, found: Sequence[Curve]) -> bool:
    axes = sheet.axes(44, 40, sheet.width - 16, sheet.height - 50)
    axes.set_xscale("log")
    source = plan.decision.source_loss
    for i, curve in enumerate(found):
        look = series(i)
        axes.fill_between(tokens, curve.low, curve.high, color=look["color"], alpha=0.13, linewidth=0, zorder=2)
        reached = np.ones(len(tokens), bool) if curve.name != "upcycled" or source is None else curve.mid < source
        axes.plot(tokens[reached], curve.mid[reached], **look, zorder=3)
        axes.plot(tokens[~reached], curve.mid[~reached], color=look["color"], linewidth=1.2, linestyle=(0, (2, 2)))
    axes.set_xlim(tokens[0], tokens[-1])
    axes.set_xticks(*count_ticks(tokens[0], tokens[-1]))
    axes.minorticks_off()
    axes.axvline(plan.question.tokens, color=colour("muted"), linewidth=1, linestyle=(0, (1, 2.5)), zorder=1)
    overtaken = plan.decision.crossing
    if overtaken is not None and overtaken.low < tokens[-1]:
        axes.axvspan(max(overtaken.low, tokens[0]), min(overtaken.high, tokens[-1]), color=colour("grid"), alpha=0.5,
                     linewidth=0, zorder=0)  # fmt: skip
        if tokens[0] < overtaken.mid < tokens[-1]:
            axes.axvline(overtaken.mid, color=colour("ink"), linewidth=1, zorder=1)
            axes.annotate(f"D* {count(overtaken.mid)}", (overtaken.mid, 1), (6, -4), ("data", "axes fraction"),
                          textcoords="offset points", va="top", color=colour("ink"))  # fmt: skip
    sheet.caption(axes, "Loss, nats per token", "tokens of the second stage, D2")
    return False
