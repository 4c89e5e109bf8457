"""A checkpoint's life as a chain of steps, in words, and the commands that repeat it."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from rekindle.report.runs import Run
from rekindle.report.words import count, scientific
from rekindle.store.manifest import Record


@dataclass(frozen=True)
class Link:
    """One step of the chain as the page shows it."""

    verb: str
    detail: str
    command: str
    options: list[tuple[str, str, str]]  # name, value, origin


def chain(records: Sequence[Record]) -> list[Link]:
    """The steps, oldest first; a source that Rekindle did not make comes before the first."""
    origin = records[0].source if records else None
    start = [Link("from", origin, "", [])] if origin else []
    return start + [Link(r.verb, _detail(r), r.command, _options(r.options)) for r in records]


def brief(records: Sequence[Record]) -> str:
    """init → train 3.00M → upcycle → train 2.50M"""
    origin = [records[0].source] if records and records[0].source else []
    steps = [f"{r.verb}\u00a0{count(r.tokens)}" if r.tokens else r.verb for r in records]
    return " → ".join([*origin, *steps])


def commands(runs: Iterable[Run]) -> list[str]:
    """Every command behind the runs, once, each after those it needs."""
    return list(dict.fromkeys(r.command for run in runs for r in run.lineage if r.command))


def _detail(record: Record) -> str:
    spent = [f"{count(record.tokens)} tokens"] if record.tokens else []
    spent += [f"{scientific(record.flops)} FLOPs"] if record.flops else []
    return ", ".join(spent) or record.summary.rstrip(".")


def _options(options: dict[str, Any]) -> list[tuple[str, str, str]]:
    found = []
    for name, given in options.items() if isinstance(options, dict) else ():
        entry = given if isinstance(given, dict) else {"value": given}
        value = entry.get("value")
        text = ", ".join(map(str, value)) if isinstance(value, list) else str(value)
        found.append((str(name), text, str(entry.get("origin", ""))))
    return found
