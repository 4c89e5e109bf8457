"""sweep."""

from __future__ import annotations

from pathlib import Path

import click

from rekindle.cli.out import FORMAT, count, narrator, result, say
from rekindle.errors import CheckFailed, RekindleError

SPEED = 4e10  # FLOP/s of a worker: a CPU core with tiny models


@click.command("sweep")
@click.argument("grid")
@click.argument("out")
@click.option("--engine", default="local", metavar="local|ray", help="processes here, or a Ray cluster  [local]")
@click.option("--workers", type=int, metavar="N", help="steps at a time  [as many as cores; 1 with a GPU]")
@click.option("--dry-run", is_flag=True, help="cells, tokens, FLOPs and hours; nothing is trained")
@click.option("--speed", type=float, default=SPEED, metavar="X", help="FLOP/s of a worker, for the hours  [4e10]")
@FORMAT
@click.option("--debug", is_flag=True, hidden=True)
def sweep(
    grid: str, out: str, engine: str, workers: int | None, dry_run: bool, speed: float, format_: str, debug: bool
) -> None:
    """A grid of runs for a scaling law: trunks shared, resumed after a kill, one table.

    GRID is a YAML file with sizes, sunk (D1), tokens (D2), ways, experts, top_k and seeds; the table is OUT/runs.csv.

    \b
    rekindle sweep grid.yaml OUT --dry-run
    rekindle sweep grid.yaml OUT --workers 2
    """
    from rekindle.sweep.run import sweep as run

    if not 0 < speed < float("inf"):
        raise RekindleError(f"speed is {speed:g}.", hint="--speed 4e10")
    found = run(grid, Path(out), narrator(), engine=engine, workers=workers, dry_run=dry_run)
    cost = found.cost
    lines = [
        f"{cost.cells} cells in {cost.steps} steps, {count(cost.tokens)} tokens, {cost.flops:.2g} FLOPs: "
        f"{100 * cost.saved:.0f} % less than {cost.naive_flops:.2g}, each cell on its own",
        f"about {cost.hours(speed, workers or 1):.2g} hours, {workers or 1} at a time with {speed:.1g} FLOP/s each",
    ]
    if found.table:
        lines[1:] = [f"{len(found.rows)} of {cost.cells} cells are in {found.table}", *filter(None, [found.next])]
    result(found.to_dict(), "\n".join(lines), format_)
    if again := sum((row["epochs"] or 0) > 1 for row in found.rows):
        say(f"note: the text is shorter than D1 + D2 in {again} cells, which read some of it twice (column epochs)")
    if found.failed:
        name, message = next(iter(found.failed.items()))
        what = f"{len(found.failed)} steps failed, and what follows from them."
        raise CheckFailed(what, where=name, why=message.splitlines()[0], hint="the same command tries them again")
    if found.table:
        say(f"next:  rekindle fit {found.table} --out law.yaml")


COMMANDS = {"sweep": sweep}
