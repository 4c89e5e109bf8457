"""What is said and where: results on stdout, all else on stderr."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Callable
from typing import Any, TypeVar

import click

from rekindle import progress
from rekindle.config import Resolved
from rekindle.ranks import is_main_rank
from rekindle.report.text import count, nbytes, plain, table

__all__ = ["FORMAT", "count", "echo", "narrator", "nbytes", "plain", "result", "say", "table"]

F = TypeVar("F", bound=Callable[..., Any])


class _Voice:
    """What the verb that runs was told of how it is to speak."""

    quiet = False
    progress: progress.Mode = "auto"


def _heard(context: click.Context, parameter: click.Parameter, value: Any) -> None:
    setattr(_Voice, parameter.name or "", value)
    progress.use("off" if _Voice.quiet else _Voice.progress)
    context.call_on_close(_forget)


def _forget() -> None:
    _Voice.quiet, _Voice.progress = False, "auto"
    progress.use(None)


def VOICE(function: F) -> F:
    """--progress, --quiet and --debug (which `main` reads): the flags of every verb."""
    modes = click.Choice(["auto", "bar", "lines", "off"])
    text = "of long work; auto: a bar on a terminal, else a line a minute  [auto]"
    function = click.option(
        "-q", "--quiet", is_flag=True, expose_value=False, callback=_heard, help="say only the result, notes and errors"
    )(function)
    function = click.option("--debug", is_flag=True, hidden=True, expose_value=False)(function)
    return click.option("--progress", type=modes, default="auto", expose_value=False, callback=_heard, help=text)(
        function
    )


def FORMAT(function: F) -> F:
    """--format and those of every verb: the flags of a verb that has a result."""
    formats = click.Choice(["human", "json"])
    return click.option("--format", "format_", type=formats, default="human", help="of the result")(VOICE(function))


def say(text: str) -> None:
    """A remark: stderr. A note is one that --quiet does not silence."""
    if is_main_rank() and (not _Voice.quiet or text.startswith("note:")):
        click.echo(text, err=True)


def result(data: dict[str, Any], human: str, format_: str) -> None:
    """The answer: stdout."""
    if is_main_rank():
        click.echo(json.dumps(_finite(data), indent=2, default=str) if format_ == "json" else human)


def _finite(data: Any) -> Any:
    """JSON has no NaN and no infinity: null stands for both."""
    if isinstance(data, dict):
        return {key: _finite(value) for key, value in data.items()}
    if isinstance(data, list | tuple):
        return [_finite(value) for value in data]
    return None if isinstance(data, float) and not math.isfinite(data) else data


def echo(title: str, *options: Resolved[Any]) -> None:
    """Each value that is no default, with its origin, as the first thing a run says."""
    say(title)
    found = [(name, str(o["value"]), o["origin"]) for r in options for name, o in r.options().items()]
    rows = [row for row in found if row[2] != "default"]
    if rows:
        say(table(rows, indent=2))
    if others := len(found) - len(rows):
        say(f"  {'... and ' if rows else ''}{others} default{'s' * (others > 1)}: --help shows them")


def note_default_data(options: Resolved[Any], does: str) -> None:
    """Say which text is read where nobody named one."""
    if options.origins["data"] == "default" and options.config.data == "stdlib":
        say(f"note: no --data: {does} the standard library of this Python")


def narrator() -> Callable[[str], None]:
    """Says what happens, with the minutes since now."""
    start = time.monotonic()

    def narrate(text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - start), 60)
        say(f"{minutes}:{seconds:02d}  {text}")

    return narrate
