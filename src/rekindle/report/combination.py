"""What `combine` found, in words and as a table: out of the numbers of OUT/combine.json."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping, Sequence
from itertools import combinations
from pathlib import Path
from statistics import correlation, fmean
from typing import Any

import numpy as np

from rekindle.report.chart import Chart, publish
from rekindle.report.coefficients import coefficients_chart, groups_chart
from rekindle.report.csv_file import write_csv
from rekindle.report.page import FIGURES, render
from rekindle.report.text import table
from rekindle.store.publish import publishing

FILE = "combine.json"  # in a folder that `combine` wrote
CHOSEN = "combination"
FOUND = (CHOSEN, "random search")
STEP = re.compile(r"step-\d+")


def combination_text(data: Mapping[str, Any]) -> str:
    """The verdict, and a table of all that was compared."""
    rows = rows_of(data)
    notes = "".join(f"\nnote: {note}" for note in data["notes"])
    return f"{verdict(data)}\n\n{table(rows, right=range(2, len(rows[0])))}\n\n{spent(data)}{notes}"


def rows_of(data: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Head and lines: of each model the mean of every metric, and how far what was searched is from the EMA's."""
    metrics = list(data["rows"][-1]["reported"])
    lines: list[tuple[str, ...]] = [
        ("", "which", "searched", *metrics, "less the EMA's", "95 % interval", "away from EMA")
    ]
    for row in data["rows"]:
        apart = row["less_ema"][metrics[0]]
        known = row["kind"] != "EMA" and apart["lo"] is not None
        interval = f"{_apart(apart['lo'])} to {_apart(apart['hi'])}" if known else ""
        means = ["" if None in values else signed(fmean(values)) for values in row["reported"].values()]
        said = _apart(apart["mean"]) if row["kind"] != "EMA" and apart["mean"] is not None else ""
        name = f"by {data['search']}, {row['name']}" if row["kind"] == CHOSEN else row["name"]
        searched = "" if row["searched"] is None else f"{row['searched']:.4g}"
        lines.append((row["kind"], name, searched, *means, said, interval, f"{row['distance']:.2f}"))
    if floor := data["floor"]:
        means = ["" if floor.get(metric) is None else signed(floor[metric]) for metric in metrics]
        lines.append(("real data", "its two halves", "", *means, "", "", ""))
    return lines


def verdict(data: Mapping[str, Any]) -> str:
    """A sentence or two: what is written, and how sure it is."""
    rows = {row["kind"]: row for row in data["rows"]}
    rival, made = rows[data["rival"]], rows[data["result"]]
    metric = next(iter(rival["reported"]))
    where = "on data that nothing was chosen by" if data["held_out"] else "where it was searched, not held out"
    if made is rival:
        found = [row["less_rival"][metric]["mean"] for row in data["rows"] if row["kind"] in FOUND]
        if data["held_out"] and any(mean is not None and mean < 0 for mean in found):
            again = f"{_named(rival)} came before all that was found, on data that they were ranked again by"
            return sentence(f"{again}: that is the result.")
        return f"Nothing that was found beats {_named(rival)}, {where}: that is the result."
    apart, base = made["less_rival"][metric], fmean(rival["reported"][metric])
    share = f" ({-100 * apart['mean'] / base:.1f} %)" if base > 0 else ""
    reached = f"{metric} {fmean(made['reported'][metric]):.4g}, {-apart['mean']:.4g}{share} below"
    said = f"{_found(made, data)}: {reached} {_named(rival)}, the best without a search, {where}"
    if apart["lo"] is None:
        return f"{said}; of one value no interval is known."
    sure = "" if apart["hi"] < 0 else ", so it may be chance"
    return f"{said}; 95 % interval {signed(-apart['hi'])} to {signed(-apart['lo'])}{sure}."


def signed(number: float) -> str:
    """Four digits, with a real minus."""
    return f"{number:.4g}".replace("-", "−")


def _apart(number: float) -> str:
    """A difference: its sign, three digits, and no power of ten."""
    shown = np.format_float_positional(number, 3, unique=False, fractional=False, trim="-", sign=True)
    return shown.replace("-", "−")


def _found(row: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    return "the combination" if row["kind"] == CHOSEN else f"random search's best, which {data['search']} did not reach"


def _named(row: Mapping[str, Any]) -> str:
    """A rival in a sentence."""
    words = {"last": "the last checkpoint", "single": f"the single checkpoint {row['name']}"}
    kind = {"uniform": "uniform average"}.get(row["kind"], row["kind"])
    return words.get(row["kind"], f"the best {kind} ({row['name']})")


def spent(data: Mapping[str, Any]) -> str:
    parts = [f"{number:g} for the {what}" for what, number in data["evaluations"].items()]
    lost = f"; {data['invalid']} gave no finite number, and lost" if data["invalid"] else ""
    return f"evaluations: {', '.join(parts)}{lost}"


# -- the page --------------------------------------------------------------------------------------------------------


def write_combination(data: Mapping[str, Any], out: Path, *, overwrite: bool = False) -> Path:
    """OUT/index.html, its figures and table.csv. Returns the page."""
    head, *rows = rows_of(data)
    with publishing(out, overwrite=overwrite) as folder:
        (folder / FIGURES).mkdir()
        context = {
            "title": f"{len(data['checkpoints'])} checkpoints, combined",
            "data": data,
            "verdict": sentence(verdict(data)),
            "spent": sentence(spent(data)),
            "head": head,
            "rows": rows,
            "pictures": [publish(chart, folder / FIGURES) for chart in charts(data)],
        }
        (folder / "index.html").write_text(render(context, "combination.html.j2"), encoding="utf-8")
        write_csv(folder / "table.csv", ("model", *head[1:]), rows)
    return out / "index.html"


def sentence(text: str) -> str:
    """With a capital and a full stop."""
    return f"{text[:1].upper()}{text[1:]}{'' if text.endswith('.') else '.'}"


def charts(data: Mapping[str, Any]) -> list[Chart]:
    """The coefficients of the result and of the best EMA; where groups have their own, of each; of several searches."""
    by_group = next(row["coefficients"] for row in data["rows"] if row["kind"] == CHOSEN)
    rows = {row["kind"]: _mean(row["coefficients"]) for row in data["rows"]}
    names, made = data["checkpoints"], data["result"]
    numbered = all(STEP.fullmatch(name) for name in names)
    steps = [float(name.removeprefix("step-")) if numbered else k for k, name in enumerate(names, 1)]
    alone = [math.nan if score is None else score for score in data["alone"]]
    arms = {kind: rows[kind] for kind in ("EMA", CHOSEN, made) if len(rows[kind]) == len(names)}
    below = sum(a < 0 for a in rows[CHOSEN])
    which = "coefficients, averaged over the groups," if data["groups"] else "coefficients"
    title = f"{below} of {len(names)} {which} are negative, the largest is {max(map(abs, rows[CHOSEN])):.2f}"
    metric = "what was searched" if data["searched"] == "searched" else data["searched"]
    counts = "what each counts, on average over the groups" if data["groups"] else "what each counts"
    caption = f"Above: {metric} of each checkpoint alone, on the search's data. Below: {counts}."
    found = [coefficients_chart("coefficients", title, caption, steps, arms, alone, metric)]
    if data["groups"] and isinstance(by_group[0], list):
        title = f"What each of {len(data['groups'])} groups counts of each checkpoint"
        caption = "A disc is as large as the coefficient that it stands for."
        found.append(groups_chart("groups", title, caption, steps, data["groups"], by_group))
    if len(data["seeds"]) > 1:
        title = f"What {len(data['seeds'])} searches found{_alike(data['seeds'])}"
        own = {f"seed {data['seed'] + i}": _mean(alpha) for i, alpha in enumerate(data["seeds"])}
        caption = f"What the search found with each seed, by its own score{', on average' * bool(data['groups'])}."
        found.append(coefficients_chart("seeds", title, caption, steps, own))
    return found


def _mean(alpha: Sequence[Any]) -> Sequence[float]:
    """Of coefficients that groups have of their own, their mean over the groups."""
    return [fmean(own) for own in zip(*alpha, strict=True)] if isinstance(alpha[0], list) else alpha


def _flat(alpha: Sequence[Any]) -> Sequence[float]:
    return [a for own in alpha for a in own] if isinstance(alpha[0], list) else alpha


def _alike(alphas: Sequence[Sequence[Any]]) -> str:
    """How the coefficients of several searches correlate; nothing of such that do not vary."""
    alphas = [_flat(alpha) for alpha in alphas]
    pairs = [pair for pair in combinations(alphas, 2) if all(len({*one}) > 1 for one in pair)]
    found = [correlation(*pair) for pair in pairs]
    ends = dict.fromkeys(f"{end:.2f}" for end in ((min(found), max(found)) if found else ()))
    return f": coefficients correlate by {' to '.join(ends)}" if ends else ""
