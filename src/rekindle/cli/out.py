"""What is said and where: results on stdout, all else on stderr."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import click

from rekindle.config import Resolved
from rekindle.report.text import count, nbytes, plain, table

__all__ = ["FORMAT", "count", "echo", "narrator", "nbytes", "plain", "result", "say", "table"]

FORMAT = click.option(
    "--format", "format_", type=click.Choice(["human", "json"]), default="human", help="of the result"
)


def say(text: str) -> None:
    """A remark: stderr."""
    click.echo(text, err=True)


def result(data: dict[str, Any], human: str, format_: str) -> None:
    """The answer: stdout."""
    click.echo(json.dumps(data, indent=2, default=str) if format_ == "json" else human)


def echo(title: str, *options: Resolved[Any]) -> None:
    """Every resolved value with its origin, as the first thing a run says."""
    say(title)
    rows = [(name, str(o["value"]), o["origin"]) for r in options for name, o in r.options().items()]
    say(table(rows, indent=2))


def narrator() -> Callable[[str], None]:
    """Says what happens, with the minutes since now."""
    start = time.monotonic()

    def narrate(text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - start), 60)
        say(f"{minutes}:{seconds:02d}  {text}")

    return narrate
