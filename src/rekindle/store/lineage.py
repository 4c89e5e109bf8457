"""A checkpoint's life as a graph: what went on from what, what it cost, and one lineage made of several.

A lineage is the list of records in a manifest: each behind those that it goes on from, and each once. Two records are
one step where all that they say is the same and so are their ancestors. Two that differ only in how far they came are
states of one training run: both stay, since something may have been made of either, and the farther one counts.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

from rekindle.store.manifest import PREVIOUS, Manifest, Record, Source

_REACHED = ("tokens", "flops", "summary")  # in which two states of one training run differ


@dataclass(frozen=True)
class Spent:
    """What training has cost."""

    tokens: int
    flops: float


def parents(lineage: Sequence[Record]) -> list[list[int]]:
    """Of each record, the places of those that it goes on from: none where it begins, several where lives meet."""
    found = []
    for place, record in enumerate(lineage):
        said = [source.after for source in record.sources.values()] if record.sources else [record.after]
        places = dict.fromkeys(place - 1 if after == PREVIOUS else after for after in said)
        found.append([after for after in places if after is not None and after >= 0])
    return found


def ancestors(lineage: Sequence[Record], place: int) -> list[int]:
    """The places of all records behind the one at `place`, each once, oldest first."""
    behind, seen, waiting = parents(lineage), set[int](), [place]
    while waiting:
        new = [after for after in behind[waiting.pop()] if after not in seen]
        seen.update(new)
        waiting += new
    return sorted(seen)


def before(lineage: Sequence[Record], place: int) -> list[Record]:
    """The lineage of what the record at `place` was applied to: its ancestors alone."""
    found: list[Record] = []
    here: dict[int, int] = {}
    for old in ancestors(lineage, place):
        here[old] = len(found)
        found.append(_moved(lineage, old, here, len(found)))
    return found


def stem(lineage: Sequence[Record]) -> list[int]:
    """The places on the way back from the last record, oldest first, up to where it begins or where lives met."""
    behind, found = parents(lineage), [len(lineage) - 1] if lineage else []
    while found and len(behind[found[-1]]) == 1 and not lineage[found[-1]].sources:
        found.append(behind[found[-1]][0])
    return found[::-1]


def sources(lineage: Sequence[Record], place: int) -> dict[str, Source]:
    """What the step at `place` was made of, by key, one source under the empty key; none where it names none.

    A step behind the first of a recipe names none, and neither does what began from nothing.
    """
    record = lineage[place]
    if record.sources or record.source is None:
        return record.sources
    after = next(iter(parents(lineage)[place]), None)
    return {"": Source(source=record.source, fingerprint=record.source_fingerprint, after=after)}


def last_sources(lineage: Sequence[Record]) -> list[str]:
    """The SRC, or all of them in order, that the last command was given; none for what began from nothing."""
    for place in reversed(stem(lineage)):
        if named := sources(lineage, place):
            return [source.source for source in named.values()]
    return []


def origins(lineage: Sequence[Record]) -> list[str]:
    """The sources that have no record of their own, as they were given: what was spent on them is unknown."""
    named = (source for place in range(len(lineage)) for source in sources(lineage, place).values())
    return list(dict.fromkeys(source.source for source in named if source.after is None))


def sunk(lineage: Sequence[Record], data: str | None = None) -> Spent:
    """Tokens and FLOPs of all training in a lineage: each step once, and each run as far as it came.

    With `data` of the training on that text alone, named as --data was. Records that say the same but for what they
    found at the same number of tokens are runs of their own.
    """
    counted = [lineage[place] for states in runs(lineage) for place in _farthest(lineage, states)]
    counted = [record for record in counted if data is None or record.options.get("data", {}).get("value") == data]
    return Spent(sum(record.tokens for record in counted), math.fsum(record.flops for record in counted))


def runs(lineage: Sequence[Record]) -> list[list[int]]:
    """The places of all steps, each once; together those that are states of one training run."""
    found: dict[str, dict[str, int]] = {}
    for place, (mark, run) in enumerate(_marks(lineage)):
        found.setdefault(run, {}).setdefault(mark, place)
    return [list(states.values()) for states in found.values()]


def united(lineages: Iterable[Sequence[Record]]) -> tuple[list[Record], list[int | None]]:
    """One lineage of several, in which each step is once, and the place in it where each of them ends.

    The place is None for a lineage of no records.
    """
    found: list[Record] = []
    places: dict[str, int] = {}
    ends: list[int | None] = []
    for lineage in lineages:
        here: dict[int, int] = {}
        for place, (mark, _) in enumerate(_marks(lineage)):
            if mark not in places:
                places[mark] = len(found)
                found.append(_moved(lineage, place, here, len(found)))
            here[place] = places[mark]
        ends.append(here[len(lineage) - 1] if lineage else None)
    return found, ends


def extended(made_of: Mapping[str, tuple[str, str | None, Manifest | None]], record: Record) -> list[Record]:
    """The lineage of what `record` made of its sources, {key: (as given, fingerprint, its manifest)}.

    The only source of a step has the empty key.
    """
    lineages = [manifest.lineage if manifest else [] for *_, manifest in made_of.values()]
    if list(made_of) == [""]:
        ((source, fingerprint, _),) = made_of.values()
        return [*lineages[0], replace(record, source=source, source_fingerprint=fingerprint)]
    found, ends = united(lineages)
    named = {
        key: Source(source=source, fingerprint=fingerprint, after=end)
        for (key, (source, fingerprint, _)), end in zip(made_of.items(), ends)
    }
    return [*found, replace(record, sources=named)]


def _farthest(lineage: Sequence[Record], states: Sequence[int]) -> list[int]:
    most = max(lineage[place].tokens for place in states)
    return [place for place in states if lineage[place].tokens == most]


def _moved(lineage: Sequence[Record], place: int, here: Mapping[int, int], to: int) -> Record:
    """The record at `place`, for a lineage in which it stands at `to` and its ancestors where `here` says."""
    record = lineage[place]
    if record.sources:
        after = {key: None if s.after is None else here[s.after] for key, s in record.sources.items()}
        return replace(record, sources={key: replace(s, after=after[key]) for key, s in record.sources.items()})
    old = place - 1 if record.after == PREVIOUS else record.after
    new = None if old is None or old < 0 else here[old]
    return replace(record, after=PREVIOUS if new == to - 1 or (new is None and to == 0) else new)


def _marks(lineage: Sequence[Record]) -> list[tuple[str, str]]:
    """Of each record, what it has in common with the same step, and with other states of the same run."""
    found: list[tuple[str, str]] = []
    for record, behind in zip(lineage, parents(lineage)):
        said = record.to_dict() | {"after": [found[place][0] for place in behind]}
        for source in said.get("sources", {}).values():
            source["after"] = None if source["after"] is None else found[source["after"]][0]
        reached = [said.pop(name) for name in _REACHED]
        run = _digest(said)
        found.append((_digest([run, reached]), run))
    return found


def _digest(data: object) -> str:
    return hashlib.sha256(json.dumps(data, sort_keys=True, default=str).encode()).hexdigest()
