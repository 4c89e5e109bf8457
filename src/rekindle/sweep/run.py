"""sweep: a grid run into a folder, the table of what came out, and the run to add next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rekindle.errors import RekindleError
from rekindle.laws.doubt import identified
from rekindle.laws.fit import fit
from rekindle.laws.next_run import BEYOND, next_run
from rekindle.laws.question import Question
from rekindle.laws.table import make_table
from rekindle.sweep.collect import rows_of, write_table
from rekindle.sweep.count import Cost, cost_of
from rekindle.sweep.grid import read_grid, steps_of

TABLE = "runs.csv"


@dataclass(frozen=True)
class Swept:
    """`rows` of the table, `failed` steps with their messages, and the `next` run, or why none can be told."""

    table: Path | None
    cost: Cost
    rows: list[dict[str, Any]]
    failed: dict[str, str]
    next: str | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"table": self.table and str(self.table), "cost": self.cost.to_dict(), "failed": self.failed,
                "cells_done": len(self.rows), "next": self.next}  # fmt: skip


def sweep(
    grid: str | Path,
    out: str | Path,
    say: Callable[[str], object] = lambda text: None,
    *,
    engine: str = "local",
    workers: int | None = None,
    dry_run: bool = False,
) -> Swept:
    """Run every cell of a grid that is not there yet, and write OUT/runs.csv.

    A cell that fails leaves the others alone; it is tried again the next time. Raises RekindleError where the grid is
    wrong, before anything is trained, or where every cell failed.
    """
    from rekindle.sweep.engines import ENGINES, engine_named
    from rekindle.sweep.steps import perform

    found, out = read_grid(Path(grid)), Path(out)
    if engine not in ENGINES:
        raise RekindleError(f"There is no engine {engine!r}.", hint=" or ".join(ENGINES))
    if out.exists() and not out.is_dir():
        raise RekindleError(f"{out} is a file.", hint="another OUT")
    if out.exists() and any(out.iterdir()) and not (out / "runs").is_dir():
        raise RekindleError(f"{out} is not empty, and no sweep's.", hint="another OUT")
    steps, cells = steps_of(found)
    cost = cost_of(found, steps, cells)
    if dry_run:
        return Swept(None, cost, [], {})
    with engine_named(engine, workers) as running:
        failed = perform(steps, out / "runs", running, say, go_on=True)
    rows = rows_of(found, cells, out / "runs")
    if not rows:
        raise RekindleError("No cell of the grid ended.", where=out, why=next(iter(failed.values()), None))
    write_table(rows, out / TABLE)
    return Swept(out / TABLE, cost, rows, failed, next_of(rows, str(out / TABLE)))


def next_of(rows: list[dict[str, Any]], where: str) -> str:
    """The run that most narrows the verdict a factor beyond the grid's far corner, or why the table cannot tell."""
    try:
        found = fit(make_table(rows, where), "upcycling", "squares")
    except RekindleError:
        found = None
    if found is None or identified(found).unknown:
        return f"next: {len(rows)} cells carry no law yet; `rekindle fit {where}` says what is missing"
    params, sunk, tokens = (BEYOND * max(row[v] for row in rows) for v in ("params", "sunk", "tokens"))
    asked = f"(N {params:.3g}, D1 {sunk:.3g}, D2 {tokens:.3g})"
    return f"{next_run(found, Question(params, sunk, tokens)).sentence} {asked}"
