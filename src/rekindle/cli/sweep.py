"""sweep."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING

import click

from rekindle.cli.out import FORMAT, count, narrator, result, say
from rekindle.errors import CheckFailed, counted

if TYPE_CHECKING:
    from rekindle.sweep.run import Swept


@click.command("sweep")
@click.argument("grid")
@click.argument("out")
@click.option("--engine", default="local", metavar="local|ray", help="processes here, or a Ray cluster  [local]")
@click.option("--workers", type=int, metavar="N", help="steps at a time  [as many as cores; 1 with a GPU]")
@click.option("--dry-run", is_flag=True, help="cells, tokens, FLOPs, hours, and whether they carry a law")
@click.option("--speed", type=float, metavar="X", help="FLOP/s of a worker, for the hours  [as measured in OUT; 4e10]")
@FORMAT
def sweep(
    grid: str, out: str, engine: str, workers: int | None, dry_run: bool, speed: float | None, format_: str
) -> None:
    """A grid of runs for a scaling law: trunks shared, resumed after a kill, one table.

    GRID is a YAML file with sizes, sunk (D1), tokens (D2), ways, experts, top_k and seeds; the table is OUT/runs.csv.

    \b
    rekindle sweep grid.yaml OUT --dry-run
    rekindle sweep grid.yaml OUT --workers 2
    """
    from rekindle.sweep.run import SPEED, TABLE
    from rekindle.sweep.run import sweep as run

    found = run(grid, Path(out), narrator(), engine=engine, workers=workers, speed=speed, dry_run=dry_run)
    cost = found.cost
    lines = [
        f"{counted(cost.cells, 'cell')} in {counted(cost.steps, 'step')}, {count(cost.tokens)} tokens, "
        f"{cost.flops:.2g} FLOPs: {100 * cost.saved:.0f} % less than {cost.naive_flops:.2g}, each cell on its own"
    ]
    if found.table:
        lines += [f"{len(found.rows)} of {counted(cost.cells, 'cell')} in {found.table}"]
        lines += [found.next] if found.next else []
    else:
        lines += _foreseen(found, out, workers or 1, f"{speed or SPEED:.1g} FLOP/s each")
    result(found.to_dict(), "\n".join(lines), format_)
    if again := sum((row["epochs"] or 0) > 1 for row in found.rows):
        where = counted(again, "cell")
        say(f"note: the text is shorter than D1 + D2 in {where}: some of it is read twice there (column epochs)")
    if found.failed:
        name, message = next(iter(found.failed.items()))
        what = f"{counted(len(found.failed), 'step')} failed, and what follows from them."
        raise CheckFailed(what, where=name, why=message.splitlines()[0], hint="the same command tries them again")
    if found.table and found.lawless:
        say(f"next:  rekindle report {shlex.join(map(str, found.runs))} --out {shlex.quote(f'{out}/page')}")
    elif found.table:
        table, law, page = (shlex.quote(f"{out}/{name}") for name in (TABLE, "law.yaml", "page"))
        say(f"next:  rekindle fit {table} --out {law} --report {page}")
    else:
        say(f"next:  rekindle sweep {shlex.join([grid, out])}" + (f" --workers {workers}" if workers else ""))


def _foreseen(found: Swept, out: str, workers: int, speed: str) -> list[str]:
    """What a dry run says beside the cost."""
    from rekindle.sweep.prospect import ENOUGH
    from rekindle.sweep.run import TABLE

    assert found.hours is not None
    by = f"as measured in the steps of {out}" if found.by_measure else f"with {speed}, which tiny models do not reach"
    left = f" for {counted(found.cost.steps - found.done, 'step')} not there yet" if found.done else ""
    lines = [f"about {found.hours:.2g} hours{left}, {workers} at a time, {by}; starting up comes on top"]
    lines.append(f"writes {out}/{TABLE}, again after each cell, and a checkpoint for each step in {out}/runs")
    if found.lawless:
        lines.append(f"these cells will carry no law: {found.lawless.rstrip('.')}; {ENOUGH}")
    return lines


COMMANDS = {"sweep": sweep}
