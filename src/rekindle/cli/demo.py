"""demo: the whole way on a small model of your own."""

from __future__ import annotations

import time
from pathlib import Path

import click

from rekindle.cli.out import say
from rekindle.lab.demo import demo as run


@click.command("demo")
@click.argument("out", default="demo")
@click.option("--overwrite", is_flag=True, help="replace the results of an earlier demo in OUT")
@click.option("--scale", type=float, default=1.0, metavar="X", help="length of both training stages  [1.0]")
@click.option("--debug", is_flag=True, hidden=True)
def demo(out: str, overwrite: bool, scale: float, debug: bool) -> None:
    """Train a small model, upcycle it, verify, train on, compare, report. About 6 minutes on 2 cores.

    \b
    rekindle demo
    """
    start = time.monotonic()

    def narrate(text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - start), 60)
        say(f"{minutes}:{seconds:02d}  {text}")

    made = run(Path(out), narrate, scale=scale, overwrite=overwrite)
    click.echo(f"\n{made.verdict}\n")
    click.echo(f"The page: {made.page}\n\nTry next:")
    click.echo(f"  rekindle inspect {made.runs[0]}")
    click.echo(f"  rekindle train {made.runs[0]} {Path(out) / 'longer'} --tokens 3M --seq-len 128 --batch-tokens 4096")
    click.echo("  rekindle upcycle YOUR_MODEL OUT --experts 8 --top-k 2 --dry-run")


COMMANDS = {"demo": demo}
