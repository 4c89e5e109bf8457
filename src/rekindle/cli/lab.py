"""demo: the whole way on a small model of your own. lab: the papers' claims, rerun small."""

from __future__ import annotations

from pathlib import Path

import click

from rekindle.cli.out import VOICE, narrator
from rekindle.errors import RekindleError, nearest
from rekindle.lab import STUDIES, run_study
from rekindle.lab.demo import demo as run

_TEXT = "\n".join(f"{name:<18} {what}" for name, what in STUDIES.items())


@click.command("demo")
@click.argument("out", default="demo")
@click.option("--overwrite", is_flag=True, help="replace the results of an earlier demo in OUT")
@click.option("--scale", type=float, default=1.0, metavar="X", help="length of both training stages  [1.0]")
@VOICE
def demo(out: str, overwrite: bool, scale: float) -> None:
    """Train a small model, upcycle it, verify, train on, compare, report. About 6 minutes on 2 cores.

    One that was cut off goes on where it stopped.

    \b
    rekindle demo
    """
    made = run(Path(out), narrator(), scale=scale, overwrite=overwrite)
    click.echo(f"\n{made.verdict}\n")
    click.echo(f"The page: {made.page}\n\nTry next:")
    click.echo(f"  rekindle inspect {made.runs[0]}")
    click.echo(f"  rekindle train {made.runs[0]} {Path(out) / 'longer'} --tokens 3M --seq-len 128 --batch-tokens 4096")
    click.echo("  rekindle upcycle YOUR_MODEL OUT --experts 8 --top-k 2 --dry-run")


@click.command(
    "lab",
    help="Rerun a paper's claims small, with seeds and intervals, and write a page that says what reproduced.\n\n"
    f"\b\n{_TEXT}\n\n\b\nrekindle lab sparse-upcycling --quick",
)
@click.argument("name", metavar="STUDY")
@click.option("--out", metavar="DIR", help="where runs and page go; a study cut off goes on there  [lab-STUDY]")
@click.option("--seeds", type=int, metavar="N", help="parents to start from  [as many as decide; with --quick 1]")
@click.option("--quick", is_flag=True, help="a small part of the tokens: about 5 minutes on 2 cores")
@VOICE
def lab(name: str, out: str | None, seeds: int | None, quick: bool) -> None:
    if name not in STUDIES:
        raise RekindleError(f"There is no study {name!r}.", hint=nearest(name, STUDIES) or ", ".join(STUDIES))
    if seeds is not None and seeds < 1:
        raise RekindleError(f"{seeds} seeds are too few.", hint="--seeds 5")
    page, verdict = run_study(name, Path(out or f"lab-{name}"), narrator(), seeds=seeds, quick=quick)
    click.echo(f"\n{verdict}\n\nThe page: {page}")


COMMANDS = {"demo": demo, "lab": lab}
