"""What `combine` found, in words and as a table: out of the numbers of OUT/combine.json."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from rekindle.report.text import table

CHOSEN = "combination"


def combination_text(data: Mapping[str, Any]) -> str:
    """The verdict, and a table of all that was compared."""
    return f"{verdict(data)}\n\n{table(rows_of(data), right=range(2, 7))}\n\n{spent(data)}"


def rows_of(data: Mapping[str, Any]) -> list[tuple[str, ...]]:
    """Head and lines: each model's held-out mean of every metric, and the combination's difference from it."""
    metrics = list(data["rows"][-1]["reported"])
    first = metrics[0]
    head = ("", "which", "searched", *metrics, "combination less it", "95 %", "away from EMA")
    lines = [head]
    for row in data["rows"]:
        apart = row["difference"][first]
        own = row["kind"] == CHOSEN
        interval = "" if own or not math.isfinite(apart["lo"]) else f"{apart['lo']:+.3g} to {apart['hi']:+.3g}"
        means = [f"{sum(values) / len(values):.4g}" for values in row["reported"].values()]
        said = "" if own else f"{apart['mean']:+.3g}"
        name = row["name"] if not own or len(data["seeds"]) > 1 else data["search"]
        lines.append((row["kind"], name, f"{row['searched']:.4g}", *means, said, interval, f"{row['distance']:.2f}"))
    return lines


def verdict(data: Mapping[str, Any]) -> str:
    """A sentence or two: what is written, and how sure it is."""
    rows = {row["kind"]: row for row in data["rows"]}
    metric = next(iter(rows[CHOSEN]["reported"]))
    where = "on data that nothing was chosen by" if data["held_out"] else "where it was searched: not held out"
    if data["result"] != CHOSEN:
        rival = rows[data["result"]]
        return f"Nothing that was found beats {_named(rival)} {where}: that is the result."
    ema, apart = rows["EMA"], rows["EMA"]["difference"][metric]
    base = sum(ema["reported"][metric]) / len(ema["reported"][metric])
    share = f" ({100 * apart['mean'] / base:+.1f} %)" if base else ""
    said = f"The combination's {metric} is {apart['mean']:+.4g}{share} from the best EMA's {where}"
    if not math.isfinite(apart["lo"]):
        return f"{said}; of one value no interval is known."
    sure = "" if apart["hi"] < 0 else ", which may be chance"
    return f"{said}, 95 % interval {apart['lo']:+.4g} to {apart['hi']:+.4g}{sure}."


def _named(row: Mapping[str, Any]) -> str:
    """A rival in a sentence."""
    words = {"last": "the last checkpoint", "single": f"the single checkpoint {row['name']}"}
    return words.get(row["kind"], f"the best {row['kind']}, {row['name']}")


def spent(data: Mapping[str, Any]) -> str:
    parts = [f"{number:g} for the {what}" for what, number in data["evaluations"].items()]
    lost = f"; {data['invalid']} gave no finite number, and lost" if data["invalid"] else ""
    return f"evaluations: {', '.join(parts)}{lost}"
