"""What is said and where: results on stdout, all else on stderr."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import click

from rekindle.config import Resolved

FORMAT = click.option(
    "--format", "format_", type=click.Choice(["human", "json"]), default="human", help="of the result"
)


def say(text: str) -> None:
    """A remark: stderr."""
    click.echo(text, err=True)


def result(data: dict[str, Any], human: str, format_: str) -> None:
    """The answer: stdout."""
    click.echo(json.dumps(data, indent=2, default=str) if format_ == "json" else human)


_UNSEEN = re.compile(r"[\x00-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ud800-\udfff]")


def plain(text: object) -> str:
    """Text that came from a file, with what steers a terminal or turns its lines spelled out."""
    return _UNSEEN.sub(lambda found: ascii(found[0])[1:-1], str(text))


def echo(title: str, *options: Resolved[Any]) -> None:
    """Every resolved value with its origin, as the first thing a run says."""
    say(title)
    rows = [(name, str(o["value"]), o["origin"]) for r in options for name, o in r.options().items()]
    say(table(rows, indent=2))


def table(rows: Sequence[Sequence[str]], indent: int = 0, right: Iterable[int] = ()) -> str:
    """Columns padded to their widest cell; those in `right` are flush right."""
    rows = [[str(cell) for cell in row] for row in rows]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            c.rjust(w) if i in set(right) else c.ljust(w) for i, (c, w) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append(" " * indent + "  ".join(cells).rstrip())
    return "\n".join(lines)


def nbytes(n: float) -> str:
    """1.23 GB"""
    for unit in ("bytes", "kB", "MB", "GB", "TB"):
        if n < 1000 or unit == "TB":
            return f"{n:.0f} {unit}" if unit == "bytes" else f"{n:.2f} {unit}"
        n /= 1000
    raise AssertionError


def count(n: float) -> str:
    """1.23B"""
    for unit in ("", "k", "M", "B", "T"):
        if n < 1000 or unit == "T":
            return f"{n:.0f}" if not unit else f"{n:.2f}{unit}"
        n /= 1000
    raise AssertionError


def narrator() -> Callable[[str], None]:
    """Says what happens, with the minutes since now."""
    start = time.monotonic()

    def narrate(text: str) -> None:
        minutes, seconds = divmod(int(time.monotonic() - start), 60)
        say(f"{minutes}:{seconds:02d}  {text}")

    return narrate
