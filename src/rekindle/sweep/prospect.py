"""Whether cells carry a law: asked before anything is trained, of losses made up, and of the table afterwards."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from rekindle.errors import RekindleError
from rekindle.laws.doubt import identified
from rekindle.laws.fit import STARTS, Fit, default_form, fit
from rekindle.laws.law import published
from rekindle.laws.table import make_table
from rekindle.sweep.count import dense_parameters
from rekindle.sweep.grid import Cell, Grid

ENOUGH = "a grid carries one from about 3 sizes, 3 sunk and 3 tokens on, each twice the one before or more"
_FEW = 16  # starts that find a law from which the losses were made
_NOISE = 0.005  # nats between seeds, of small models


def carried(rows: Sequence[dict[str, Any]], where: str, starts: int = STARTS) -> tuple[Fit | None, str]:
    """The fit of a table by least squares, or None and why these rows carry no law."""
    try:
        table = make_table(rows, where)
        found = fit(table, default_form(table), "squares", count=starts)
    except RekindleError as error:
        each = [line.removeprefix("- ") for line in error.what.splitlines() if line.startswith("- ")]
        return None, " ".join(each) or error.what
    if unknown := identified(found).unknown:
        return None, f"they say nothing of {', '.join(unknown)}"
    return found, ""


def foreseen(grid: Grid, cells: Sequence[Cell]) -> str:
    """Why a grid's cells will carry no law; empty where they will. Losses are those of a published law, and noise."""
    law, random = published()["upcycling-2025"], np.random.default_rng(0)
    dense = [dense_parameters({**grid.model, **size}) for size in grid.sizes]
    rows = []
    for cell in {(c.way, c.size, c.sunk, c.tokens): c for c in cells}.values():  # seeds and experts tell it nothing
        row = law.row(cell.way if cell.way in law.rows else "upcycled" if cell.sunk else "dense")
        loss = float(row.loss(params=dense[cell.size], sunk=max(cell.sunk, 1), tokens=cell.tokens))
        rows.append({"way": cell.way, "params": dense[cell.size], "sunk": cell.sunk, "tokens": cell.tokens,
                     "run": cell.step, "trunk": cell.trunk, "loss": loss + random.normal(0, _NOISE)})  # fmt: skip
    return carried(rows, "the grid", _FEW)[1]
