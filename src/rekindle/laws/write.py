"""A fit as a law file that `plan` reads: numbers, domain, bootstrap draws."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from rekindle.config import dump_yaml
from rekindle.errors import counted
from rekindle.laws.doubt import identified
from rekindle.laws.fit import Fit
from rekindle.laws.intervals import Bootstrap
from rekindle.laws.law import UNIT
from rekindle.laws.options import DRAWS

_DIGITS = 9


def law_of(found: Fit, drawn: Bootstrap, name: str) -> dict[str, Any]:
    """The keys of a law file."""
    design = found.design
    table = dict(zip(design.names, design.values(drawn.z[:DRAWS]).T, strict=True))
    rows, draws = {}, {}
    for way, form in found.forms.items():
        own = {p: design.name(way, p) for p in form.parameters}
        rows[way] = {
            "form": form.name,
            "coefficients": {p: found.values[q] for p, q in own.items()}
            | {constant: found.constants[constant] for constant in form.constants},
            "domain": _domain(found, way),
        }
        draws[way] = {p: [_rounded(x) for x in table[q].tolist()] for p, q in own.items()}
    return {
        "name": name,
        "title": f"Fitted to {counted(len(found.table), 'run')}",
        "source": found.table.where,
        "seen": "own runs",
        "unit": UNIT,
        "note": f"{found.problem.objective}; intervals by {drawn.by} from {len(drawn.z)} bootstrap fits.",
        **({"unknown": unknown} if (unknown := identified(found).unknown) else {}),
        "rows": rows,
        "draws": draws,
    }


def write_law(law: Mapping[str, Any], path: Path) -> None:
    path.write_text(dump_yaml(law), encoding="utf-8")


def _domain(found: Fit, way: str) -> dict[str, list[float]]:
    rows = found.table.labels["way"] == way
    columns = {v: found.table.numbers[v][rows] for v in found.forms[way].variables}
    return {v: [float(column.min()), float(column.max())] for v, column in columns.items()}


def _rounded(number: float) -> float:
    return float(np.format_float_scientific(number, precision=_DIGITS - 1))
