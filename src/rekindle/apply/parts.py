"""One result written by several machines: which shards are whose, and the record that each part leaves.

Each machine plans the whole and writes its own shards, so none needs to know of the others.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

from rekindle.apply.shards import Shard
from rekindle.apply.write import Written
from rekindle.errors import RekindleError
from rekindle.store.folder import PARTS


@dataclass(frozen=True)
class Part:
    """The index-th of `of` parts, counted from 1."""

    index: int
    of: int

    def __str__(self) -> str:
        return f"{self.index}/{self.of}"

    @property
    def stem(self) -> str:
        return f"{self.index}-of-{self.of}"

    def share(self, shards: Sequence[Shard]) -> list[Shard]:
        """Its own shards, in order."""
        owner = owners(shards, self.of)
        return [shard for shard in shards if owner[shard.file] == self.index]


def parse_part(text: str) -> Part:
    """ "2/8"; raises RekindleError for anything else."""
    match = re.fullmatch(r"(\d{1,6})/(\d{1,6})", text)
    if not match or not 1 <= int(match[1]) <= int(match[2]):
        raise RekindleError(f"part is {text!r}, but it must be such as 2/8, the second of eight.", hint="--part 1/8")
    return Part(int(match[1]), int(match[2]))


def owners(shards: Sequence[Shard], of: int) -> dict[str, int]:
    """{file: index of the part that writes it}, balanced by bytes: the largest first, to whoever has least."""
    load = [0] * of
    owner = {}
    for shard in sorted(shards, key=lambda shard: -shard.nbytes):
        least = load.index(min(load))
        load[least] += shard.nbytes
        owner[shard.file] = least + 1
    return {shard.file: owner[shard.file] for shard in shards}


@dataclass(frozen=True, kw_only=True)
class Identity:
    """What all parts of a result have in common."""

    plan: str  # digest of the tensors and their layout
    sources: str  # digest of the files they are made from: names, sizes, samples of each tensor
    passengers: str  # digest of the files that travel along


@dataclass(frozen=True, kw_only=True)
class Record:
    """What a part leaves behind, and what `join` goes by."""

    part: Part
    identity: Identity
    owners: dict[str, int]  # of every shard of the result
    written: dict[str, Written]  # its own
    measured: dict[str, str]  # name of each measurement it needed -> digest of what was found

    def write(self, path: Path) -> None:
        path.write_text(json.dumps(asdict(self), indent=1) + "\n", encoding="utf-8")


def read_record(path: Path) -> Record:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
        written = {file: Written(**entry) for file, entry in data["written"].items()}
        part, identity = Part(**data["part"]), Identity(**data["identity"])
        owners, measured = dict(data["owners"]), dict(data["measured"])
        return Record(part=part, identity=identity, owners=owners, written=written, measured=measured)
    except (OSError, ValueError, TypeError, KeyError, AttributeError, RecursionError) as error:
        raise RekindleError(
            f"The record of a part cannot be read: {error}.", where=path, hint="write that part again, with --overwrite"
        ) from None


def read_records(out: Path) -> list[Record]:
    """Of the parts of OUT that are finished, in order."""
    records = map(read_record, (out / PARTS).glob("*-of-*.json"))
    return sorted(records, key=lambda record: (record.part.of, record.part.index))


def missing_parts(records: Sequence[Record]) -> list[int]:
    """Parts that have shards to write and have not finished."""
    owed = {index for record in records for index in record.owners.values()}
    return sorted(owed - {record.part.index for record in records})


def clashes(
    records: Iterable[Record], part: Part, identity: Identity, measured: Mapping[str, str]
) -> list[RekindleError]:
    """Why these and this part cannot make one result."""
    problems = []
    for other in records:
        what, theirs = f"Part {other.part} and part {part}", other.identity
        hint = "the same command for every part, or another OUT"
        if other.part.of != part.of:
            problems.append(RekindleError(f"{what} divide the result differently.", hint=hint))
        elif theirs.plan != identity.plan:
            why = "the method, its options, the layout or the shapes of the source differ"
            problems.append(RekindleError(f"{what} are of different plans.", why=why, hint=hint))
        elif theirs.sources != identity.sources:
            why = "files have other names, sizes or values"
            problems.append(RekindleError(f"{what} are made from different source files.", why=why, hint=hint))
        elif theirs.passengers != identity.passengers:
            why = "a tokenizer, or another file that travels along, differs"
            problems.append(RekindleError(f"{what} are made from folders that differ.", why=why, hint=hint))
        elif any(other.measured.get(name, digest) != digest for name, digest in measured.items()):
            why = "machines add in different orders"
            hint = "finish one part first: the others take its measurements, where they find OUT/parts"
            problems.append(RekindleError(f"{what} measured different values.", why=why, hint=hint))
    return problems
