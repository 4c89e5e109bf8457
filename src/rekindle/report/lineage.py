"""A checkpoint's life in words: lines of steps that part and meet again, and the commands that repeat it."""

from __future__ import annotations

import string
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

from rekindle.report.runs import Run
from rekindle.report.words import count, scientific
from rekindle.store.lineage import parents, runs, sources
from rekindle.store.manifest import Record


@dataclass(frozen=True)
class Link:
    """One step as the page shows it, or several states of one run that went into the same."""

    verb: str
    detail: str
    brief: str  # both in a word or two
    command: str = ""
    options: list[tuple[str, str, str]] = field(default_factory=list)  # name, value, origin


@dataclass(frozen=True)
class Line:
    """Steps one behind the other. Only what others go on from has a name: a life of one line has none."""

    name: str
    after: list[str]  # the names of the lines that it goes on from
    links: list[Link]


def lines(records: Sequence[Record]) -> list[Line]:
    """The life behind the last record, oldest first; a source that Rekindle did not make is a step before its first."""
    steps = _steps(records)
    uses = Counter(before for behind, _ in steps.values() for before in behind)
    found: dict[str | int, list[str | int]] = {}  # the first step of each line -> all of it
    line_of: dict[str | int, str | int] = {}
    for step, (behind, _) in steps.items():
        joins = len(behind) == 1 and uses[behind[0]] == 1
        line_of[step] = line_of[behind[0]] if joins else step
        found.setdefault(line_of[step], []).append(step)
    names = {first: _letter(i) if uses[line[-1]] else "" for i, (first, line) in enumerate(found.items())}
    return [
        Line(names[first], [names[line_of[before]] for before in steps[first][0]], [steps[step][1] for step in line])
        for first, line in found.items()
    ]


def brief(records: Sequence[Record]) -> str:
    """init → train 3.00M → upcycle → train 2.50M; lines that meet later are named, and come first."""
    told = []
    for line in lines(records):
        steps = " → ".join([*([" + ".join(line.after)] if line.after else []), *(link.brief for link in line.links)])
        told.append(f"{line.name}: {steps}" if line.name else steps)
    return "; ".join(told)


def commands(runs: Iterable[Run]) -> list[str]:
    """Every command behind the runs, once, each after those it needs."""
    return list(dict.fromkeys(r.command for run in runs for r in run.lineage if r.command))


def _steps(records: Sequence[Record]) -> dict[str | int, tuple[list[str | int], Link]]:
    """What is shown as one step: the steps that it goes on from, and its words. Strangers go by their names."""
    found: dict[str | int, tuple[list[str | int], Link]] = {}
    states = _states(records)
    together = {place: group[0] for group in states for place in group}
    for place, behind in enumerate(parents(records)):
        if together.setdefault(place, place) != place:
            continue
        named = sources(records, place).values()
        for source in named:
            if source.after is None:
                found.setdefault(source.source, ([], Link("from", source.source, source.source)))
        before = [s.source if s.after is None else together[s.after] for s in named] or [together[p] for p in behind]
        group = next((group for group in states if group[0] == place), [place])
        found[place] = list(dict.fromkeys(before)), _link([records[state] for state in group])
    return found


def _states(records: Sequence[Record]) -> list[list[int]]:
    """The places of states of one run that went into the same and nothing else, where there are several.

    Several that came equally far are runs of their own: which of these an earlier state is of is not known.
    """
    children: list[list[int]] = [[] for _ in records]
    for place, behind in enumerate(parents(records)):
        for after in behind:
            children[after].append(place)
    found = []
    for places in runs(records):
        alike = dict[tuple[int, ...], list[int]]()
        for place in places if records[places[0]].verb == "train" else ():
            alike.setdefault(tuple(children[place]), []).append(place)
        found += [group for group in alike.values() if 1 < len(group) == len({records[p].tokens for p in group})]
    return found


def _link(states: Sequence[Record]) -> Link:
    record, tokens = states[0], sorted(state.tokens for state in states)
    options = _options(record.options)
    if len(states) == 1:
        brief = f"{record.verb}\u00a0{count(record.tokens)}" if record.tokens else record.verb
        return Link(record.verb, _detail(record), brief, record.command, options)
    span = f"{count(tokens[0])} to {count(tokens[-1])}"
    detail = f"{len(states)} states of one run, {span} tokens"
    return Link(record.verb, detail, f"{record.verb}\u00a0({len(states)} states, {span})", record.command, options)


def _letter(number: int) -> str:
    """A, B, ... Z, A2, B2, ..."""
    again, letter = divmod(number, len(string.ascii_uppercase))
    return string.ascii_uppercase[letter] + (str(again + 1) if again else "")


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
