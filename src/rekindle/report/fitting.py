"""fit's page: every number with its intervals, what the runs cannot tell, the curves through the points, residuals."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from rekindle.laws.allocate import best_split
from rekindle.laws.doubt import rms
from rekindle.laws.fitted import Fitted
from rekindle.laws.law import parse_law
from rekindle.laws.options import DRAWS, dense_alone
from rekindle.laws.question import FLOPS, Question
from rekindle.laws.write import law_of
from rekindle.report.chart import Chart, publish
from rekindle.report.csv_file import write_csv
from rekindle.report.labels import count_ticks
from rekindle.report.page import FIGURES, render
from rekindle.report.style import Sheet, colour, series
from rekindle.report.words import count, scientific
from rekindle.store.publish import publishing

_SCRATCH = "Of a dense model from scratch."
_UPCYCLED = "Of the dense model to upcycle to 8 experts, top-2, after as many sunk tokens as the most in the runs."
COLOURS = 6  # sizes that get one of their own; further ones share


def write_fit(
    fitted: Fitted,
    out: Path,
    *,
    command: str,
    title: str | None = None,
    verdict: str | None = None,
    statements: Sequence[str] = (),
    charts: Sequence[Chart] = (),
    overwrite: bool = False,
) -> Path:
    """OUT/index.html with its figures, `charts` first, and OUT/numbers.csv. Returns the page."""
    found = fitted.to_dict()
    with publishing(out, overwrite=overwrite) as folder:
        (folder / FIGURES).mkdir()
        drawn = [*charts, *(_curves(fitted, way) for way in fitted.found.forms), _residuals(fitted)]
        context = {
            "title": title or f"A law of {len(fitted.found.table)} runs",
            "verdict": verdict or _verdict(found),
            "statements": statements,
            "found": found,
            "source": fitted.found.table.where,
            "rows": list(_rows(found)),
            "pictures": [publish(chart, folder / FIGURES) for chart in drawn],
            "command": command,
            "splits": list(_splits(fitted)),
            "splits_note": _SCRATCH if len(fitted.found.forms) == 1 else _UPCYCLED,
            "asked": f"rekindle plan --law law.yaml {asked}" if (asked := question_in_words(found)) else "",
        }
        (folder / "index.html").write_text(render(context, "fit.html.j2"), encoding="utf-8")
        columns = ("name", "value", "low", "high", "profile_low", "profile_high")
        numbers = [(name, *number.values()) for name, number in found["numbers"].items()]
        write_csv(folder / "numbers.csv", columns, numbers)
    return out / "index.html"


def _verdict(found: dict[str, Any]) -> str:
    if found["interaction"]:
        return found["interaction"]["sentence"]
    return f"Runs left out are predicted to {found['rms_left_out']:.4f} nats."


def question_in_words(found: dict[str, Any]) -> str:
    """A question of the size of the runs, as `plan` is asked it; empty where it knows none of their ways.

    What was sunk into dense models are their tokens.
    """
    if not {"dense", "scratch", "upcycled"} & found["ways"].keys():
        return ""
    largest = found["largest"]
    asked = {**largest, "sunk": largest.get("sunk") or largest["tokens"]}
    return " ".join(f"--{name} {count(asked[name])}" for name in ("params", "sunk", "tokens"))


def _splits(fitted: Fitted) -> Iterator[tuple[str, ...]]:
    """The best size for what the largest run cost and for more, where the law knows one."""
    if fitted.identified.unknown:
        return
    law = parse_law(law_of(fitted.found, fitted.drawn, "law"), Path("law.yaml"))
    table = fitted.found.table
    params, tokens = (float(table.numbers[name].max()) for name in ("params", "tokens"))
    sunk = float(np.max(table.numbers.get("sunk", np.zeros(1)))) or tokens
    shape = {"experts": 1, "top_k": 1} if dense_alone(law) else {}
    asked = Question(params, sunk, tokens, **shape)
    spent = FLOPS * float((table.numbers["params"] * table.numbers["tokens"]).max()) * asked.ratio
    for times in (1, 10, 100):
        found = best_split(law, asked, spent * times, DRAWS)
        if found is not None:
            between = f"{count(found.params_low)} to {count(found.params_high)}"
            yield (scientific(spent * times), count(found.params), between, count(found.tokens), f"{found.loss:.3f}",
                   "; ".join(found.outside) or "no")  # fmt: skip


def _rows(found: dict[str, Any]) -> Iterator[tuple[str, str, str, str]]:
    for name, number in found["numbers"].items():
        ends = [["−∞", "∞"][i % 2] if number[k] is None else f"{number[k]:.4g}"
                for i, k in enumerate(("low", "high", "profile_low", "profile_high"))]  # fmt: skip
        yield name, f"{number['value']:.5g}", f"{ends[0]} to {ends[1]}", f"{ends[2]} to {ends[3]}"


def _curves(fitted: Fitted, way: str) -> Chart:
    """The points of a way and the law's line through each size (and D1)."""
    table = fitted.found.table.only(fitted.found.table.labels["way"] == way)
    form = fitted.found.forms[way]
    tokens, loss = table.numbers["tokens"], table.numbers["loss"]
    sizes = np.unique(table.numbers["params"])
    others = [v for v in form.variables if v != "tokens"]
    rest = np.stack([table.numbers[v] for v in others], axis=1) if others else np.zeros((len(table), 0))
    groups = np.unique(rest, axis=0)
    residual = fitted.found.predict(fitted.found.z[None], way, **table.numbers)[0] - loss

    def draw(sheet: Sheet) -> bool:
        axes = sheet.axes(48, 40, sheet.width - 16, sheet.height - 50)
        axes.set_xscale("log")
        line = np.geomspace(tokens.min() / 1.15, tokens.max() * 1.15, 60)
        for group in groups:
            known = dict(zip(others, group, strict=True))
            here = (rest == group).all(axis=1)
            look = series(int(np.searchsorted(sizes, table.numbers["params"][here][0])) % COLOURS)
            law = fitted.found.predict(fitted.found.z[None], way, tokens=line, **known)[0]
            axes.plot(line, law, color=look["color"], linewidth=1.2, alpha=0.8)
            axes.plot(tokens[here], loss[here], "o", color=look["color"], markersize=4)
        axes.set_xticks(*count_ticks(tokens.min() / 1.2, tokens.max() * 1.2))
        axes.minorticks_off()
        sheet.caption(axes, "Loss, nats per token", "tokens of the last stage" if "sunk" in others else "tokens")
        return False

    names = ("params", "sunk", "tokens")
    rows = [(*(table.numbers[n][i] if n in table.numbers else 0 for n in names), loss[i], loss[i] + residual[i])
            for i in range(len(table))]  # fmt: skip
    worst = int(np.abs(residual).argmax())
    where = f"N {count(table.numbers['params'][worst])}, {count(tokens[worst])} tokens"
    return Chart(
        name=f"curves-{way}",
        title=f"{way}: {len(table)} runs lie {rms(residual):.4f} nats from the law (root mean square), "
        f"{abs(residual[worst]):.4f} at worst ({where})",
        caption="Dots are runs, lines the law" + ("; a line for each size and D1." if "sunk" in others else "."),
        columns=(*names, "loss", "law"),
        rows=rows,
        draw=draw,
        height=400,
        narrow_height=320,
        key=tuple((f"N {count(size)}", i % COLOURS) for i, size in enumerate(sizes[:COLOURS])),
    )


def _residuals(fitted: Fitted) -> Chart:
    """Predicted minus measured, each run predicted by the others too."""
    table, own, left = fitted.found.table, fitted.found.residuals, fitted.left_out
    ways = table.ways

    def draw(sheet: Sheet) -> bool:
        axes = sheet.axes(58, 40, sheet.width - 16, sheet.height - 50)
        axes.set_xscale("log")
        axes.axhline(0, color=colour("muted"), linewidth=1)
        for i, way in enumerate(ways):
            here = table.labels["way"] == way
            tokens = table.numbers["tokens"][here]
            axes.plot(tokens, left[here], "o", color=series(i)["color"], markersize=7, alpha=0.25, markeredgewidth=0)
            axes.plot(tokens, own[here], "o", color=series(i)["color"], markersize=4)
        every = table.numbers["tokens"]
        axes.set_xticks(*count_ticks(every.min() / 1.2, every.max() * 1.2))
        axes.minorticks_off()
        sheet.caption(axes, "Law − run, nats per token", "tokens")
        return False

    rows = [(table.labels["way"][i], table.labels["run"][i], table.numbers["tokens"][i], own[i], left[i])
            for i in range(len(table))]  # fmt: skip
    return Chart(
        name="residuals",
        title=f"Runs left out are predicted to {rms(left):.4f} nats, those fitted to {rms(own):.4f}",
        caption="Small dots: the fit on all runs. Large, faint ones: each run predicted by the others.",
        columns=("way", "run", "tokens", "residual", "left_out"),
        rows=rows,
        draw=draw,
        height=320,
        narrow_height=300,
        key=tuple((way, i) for i, way in enumerate(ways)),
    )
