"""What `combine` found, in words and as a table: out of the numbers of OUT/combine.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import fmean
from typing import Any

from rekindle.report.text import table

CHOSEN = "combination"


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
        known = row["kind"] != "EMA" and math.isfinite(apart["lo"])
        interval = f"{apart['lo']:+.3g} to {apart['hi']:+.3g}" if known else ""
        means = [f"{fmean(values):.4g}" for values in row["reported"].values()]
        said = f"{apart['mean']:+.3g}" if row["kind"] != "EMA" else ""
        name = f"by {data['search']}, {row['name']}" if row["kind"] == CHOSEN else row["name"]
        searched = "" if row["searched"] is None else f"{row['searched']:.4g}"
        lines.append((row["kind"], name, searched, *means, said, interval, f"{row['distance']:.2f}"))
    return lines


def verdict(data: Mapping[str, Any]) -> str:
    """A sentence or two: what is written, and how sure it is."""
    rows = {row["kind"]: row for row in data["rows"]}
    rival, made = rows[data["rival"]], rows[data["result"]]
    metric = next(iter(rival["reported"]))
    where = "on data that nothing was chosen by" if data["held_out"] else "where it was searched, not held out"
    if made is rival:
        return f"Nothing that was found beats {_named(rival)}, {where}: that is the result."
    apart, base = made["less_rival"][metric], fmean(rival["reported"][metric])
    share = f" ({100 * apart['mean'] / base:+.1f} %)" if base else ""
    said = f"{metric} {apart['mean']:+.4g}{share} from {_named(rival)}, the best without a search, {where}"
    if not math.isfinite(apart["lo"]):
        return f"{_found(made, data)}: {said}; of one value no interval is known."
    sure = "" if apart["hi"] < 0 else ", so it may be chance"
    return f"{_found(made, data)}: {said}; 95 % interval {apart['lo']:+.4g} to {apart['hi']:+.4g}{sure}."


def _found(row: Mapping[str, Any], data: Mapping[str, Any]) -> str:
    return "the combination" if row["kind"] == CHOSEN else f"random search's best, which {data['search']} did not reach"


def _named(row: Mapping[str, Any]) -> str:
    """A rival in a sentence."""
    words = {"last": "the last checkpoint", "single": f"the single checkpoint {row['name']}"}
    return words.get(row["kind"], f"the best {row['kind']} ({row['name']})")


def spent(data: Mapping[str, Any]) -> str:
    parts = [f"{number:g} for the {what}" for what, number in data["evaluations"].items()]
    lost = f"; {data['invalid']} gave no finite number, and lost" if data["invalid"] else ""
    return f"evaluations: {', '.join(parts)}{lost}"
