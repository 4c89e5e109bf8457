"""sweep: a grid run into a folder, the table of what came out, and the run to add next."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rekindle.errors import RekindleError, counted
from rekindle.laws.next_run import BEYOND, next_run
from rekindle.laws.question import Question
from rekindle.sweep.collect import Collected, write_table
from rekindle.sweep.count import Cost, cost_of
from rekindle.sweep.grid import read_grid, steps_of
from rekindle.sweep.prospect import ENOUGH, carried, foreseen
from rekindle.sweep.rehearse import rehearse

TABLE = "runs.csv"
SPEED = 4e10  # FLOP/s of a worker where none is known: a CPU core, models of some million parameters


@dataclass(frozen=True)
class Swept:
    """`rows` of the table, `failed` steps with their messages, and the `next` run.

    `lawless` is why the cells carry no law, or in a dry run will not; `hours` are those of the steps that are not among
    the `done`, by the speed of these where `by_measure`; `runs` are the longest of the largest size, one for each way.
    """

    table: Path | None
    cost: Cost
    rows: list[dict[str, Any]]
    failed: dict[str, str]
    next: str | None = None
    done: int = 0  # steps that were there
    hours: float | None = None
    by_measure: bool = False
    lawless: str = ""
    runs: tuple[Path, ...] = ()

    def to_dict(self) -> dict[str, Any]:
        return {"table": self.table and str(self.table), "cost": self.cost.to_dict(), "failed": self.failed,
                "cells_done": len(self.rows), "steps_done": self.done, "next": self.next, "hours": self.hours,
                "hours_by_measure": self.by_measure, "lawless": self.lawless or None}  # fmt: skip


def sweep(
    grid: str | Path,
    out: str | Path,
    say: Callable[[str], object] = lambda text: None,
    *,
    engine: str = "local",
    workers: int | None = None,
    speed: float | None = None,
    dry_run: bool = False,
) -> Swept:
    """Run every cell of a grid that is not there yet, and write OUT/runs.csv, again after each cell.

    A cell that fails leaves the others alone; it is tried again the next time. With `dry_run` nothing is trained; the
    hours are by `speed`, FLOP/s of a worker, else as measured in the steps that are there. Raises RekindleError where
    the grid is wrong, before anything is trained, or where every cell failed.
    """
    from rekindle.sweep.engines import check_engine, engine_named
    from rekindle.sweep.steps import check_same, perform

    found, out = read_grid(Path(grid)), Path(out)
    check_engine(engine, workers)
    if speed is not None and not 0 < speed < float("inf"):
        raise RekindleError(f"speed is {speed:g}.", hint="--speed 4e10")
    if out.exists() and not out.is_dir():
        raise RekindleError(f"{out} is a file.", hint="another OUT")
    if out.exists() and any(out.iterdir()) and not (out / "runs").is_dir():
        raise RekindleError(f"{out} is not empty, and no sweep's.", hint="another OUT")
    steps, cells = steps_of(found)
    check_same({step.name: step for step in steps}, out / "runs")
    rehearse(found, grid)
    cost, collected = cost_of(found, steps, cells), Collected(found, cells, out / "runs")
    if dry_run:
        done = [step.name for step in steps if (out / "runs" / step.name).is_dir()]
        known = {1.0: speed} if speed else cost.measured(out / "runs", done)
        hours = cost.hours(known or {1.0: SPEED}, workers or 1, done)
        return Swept(None, cost, [], {}, done=len(done), hours=hours, by_measure=bool(known) and not speed,
                     lawless=foreseen(found, cells))  # fmt: skip
    ends = {cell.step for cell in cells}

    def ended(name: str) -> None:
        if name in ends:
            write_table(collected.rows, out / TABLE)

    with engine_named(engine, workers) as running:
        failed = perform(steps, out / "runs", running, say, go_on=True, ended=ended)
    rows = collected.rows
    if not rows:
        raise RekindleError("No cell of the grid ended.", where=out, why=next(iter(failed.values()), None))
    write_table(rows, out / TABLE)
    following, lawless = next_of(rows, str(out / TABLE))
    return Swept(out / TABLE, cost, rows, failed, following, lawless=lawless, runs=_longest(rows, out / "runs"))


def next_of(rows: list[dict[str, Any]], where: str) -> tuple[str, str]:
    """The run that most narrows the verdict a factor beyond the grid's far corner; and why where none can be told."""
    found, lawless = carried(rows, where)
    if found is None:
        return f"{counted(len(rows), 'cell')} carry no law yet: {lawless.rstrip('.')}; {ENOUGH}", lawless
    params, sunk, tokens = (BEYOND * max(row[v] for row in rows) for v in ("params", "sunk", "tokens"))
    asked = f"(N {params:.3g}, D1 {sunk:.3g}, D2 {tokens:.3g})"
    return f"{next_run(found, Question(params, sunk or tokens, tokens)).sentence} {asked}", ""


def _longest(rows: list[dict[str, Any]], runs: Path) -> tuple[Path, ...]:
    """Of the largest size, the run of each way that read most."""
    most = max(row["params"] for row in rows)
    best: dict[str, dict[str, Any]] = {}
    for row in rows:
        if row["params"] == most and row["sunk"] + row["tokens"] > _read(best.get(row["way"])):
            best[row["way"]] = row
    return tuple(runs / row["run"] for row in best.values())


def _read(row: dict[str, Any] | None) -> int:
    return row["sunk"] + row["tokens"] if row else 0
