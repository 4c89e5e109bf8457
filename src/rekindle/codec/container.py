"""The file: two slots, then steps, each of its blocks, its index, and a directory of all steps so far.

    0      slot A   magic "REKINDLE" | version u32 | 0 u32 | commit u64 | directory: offset u64, length u64, XXH3-64
                    | XXH3-64 of the 48 bytes before; zero up to 4096
    4096   slot B   the same
    8192   step, step, ...

A commit writes a step and a directory behind the last, flushes, and only then the slot that the last commit did not
write: a kill leaves the archive as it was. What follows the last directory is a torn tail, and is written over.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import xxhash

from rekindle.codec.bits import Broken
from rekindle.codec.index import shrink, unshrink
from rekindle.errors import CheckFailed, RekindleError
from rekindle.store.publish import sync

MAGIC, FORMAT = b"REKINDLE", 1
SLOT, START = 4096, 8192
MOST_STEPS = 2**62
LONGEST = 100  # steps from a keyframe on: so many have at most to be decoded to read one
TAIL = "bytes follow the last finished step"
_SLOT = struct.Struct("<8sIIQQQQ")  # and the checksum of these


@dataclass(frozen=True)
class Span:
    """Bytes of the file, and their XXH3-64."""

    offset: int
    nbytes: int
    checksum: str

    @property
    def end(self) -> int:
        return self.offset + self.nbytes


@dataclass(frozen=True)
class StepEntry:
    """A step in the directory: its number where it has one, data and index, and what it is coded against."""

    step: int | None
    offset: int  # of its data
    nbytes: int
    index: Span
    digest: str  # SHA-256 of what it holds: files, tensors, checksums of all values
    reference: str | None  # digest of the step before, None for a keyframe
    raw: int  # bytes unpacked
    tier: str
    mode: str = "lossless"


@dataclass(frozen=True)
class Directory:
    commit: int
    at: Span
    steps: tuple[StepEntry, ...]
    before: Span | None  # the directory that this one replaced
    torn: tuple[str, ...]  # what is not as a finished commit leaves it

    @property
    def end(self) -> int:
        return self.at.end


def checksum(data: Any) -> str:
    return xxhash.xxh3_64_hexdigest(data)


def is_archive(path: Path) -> bool:
    """Whether a file says that it is one, in either slot."""
    with path.open("rb") as file:
        head = file.read(START)
    return MAGIC in (head[: len(MAGIC)], head[SLOT : SLOT + len(MAGIC)])


def create(path: Path) -> None:
    """An archive without steps, in a new file."""
    with path.open("x+b", buffering=0) as file:
        file.write(bytes(START))
        commit(file.fileno(), Directory(0, Span(0, START, ""), (), None, ()), ())
        commit(file.fileno(), read_directory(file.fileno(), path), ())
    sync(path.absolute().parent)


def commit(fd: int, last: Directory, steps: tuple[StepEntry, ...], data_end: int | None = None) -> None:
    """Write a directory of `steps` behind the data and make it the archive's."""
    before = last.at if last.commit else None
    body = shrink({"steps": [_entry(step) for step in steps], "before": before and _span(before)})
    offset = last.end if data_end is None else data_end
    try:
        write_all(fd, body, offset)
        os.fsync(fd)
    except BaseException:
        os.ftruncate(fd, last.end)
        raise
    number = last.commit + 1  # from here on nothing is taken back: the slot may be on the disc already
    slot = _SLOT.pack(MAGIC, FORMAT, 0, number, offset, len(body), int(checksum(body), 16))
    write_all(fd, slot + struct.pack("<Q", int(checksum(slot), 16)), SLOT * (number % 2))
    os.fsync(fd)


def read_directory(fd: int, path: Path) -> Directory:
    """The last whole commit. Raises RekindleError where the file is no archive, or of a later format."""
    size = os.fstat(fd).st_size
    head = os.pread(fd, START, 0)
    slots = [_slot(head[at : at + SLOT], path) for at in (0, SLOT)]
    torn = [f"slot {'AB'[i]} is damaged" for i, slot in enumerate(slots) if slot is None]
    for number, at in sorted((slot for slot in slots if slot), reverse=True):
        try:
            steps, before = _directory(unshrink(read_span(fd, at)), at)
        except Broken as error:
            torn.append(f"the directory of commit {number}: {error}")
            continue
        if size > at.end:
            torn.append(f"{size - at.end} {TAIL}")
        return Directory(number, at, steps, before, tuple(torn))
    if not is_archive(path):
        raise RekindleError("This file is no archive.", where=path, hint="rekindle pack CKPT... ARCHIVE")
    raise CheckFailed("This archive is damaged beyond use: neither of its directories can be read.", where=path)


def read_span(fd: int, span: Span) -> bytes:
    """Its bytes; raises Broken where they are not those that were written."""
    data = read_bytes(fd, span.offset, span.nbytes)
    if checksum(data) != span.checksum:
        raise Broken("its checksum is another one")
    return data


def read_bytes(fd: int, offset: int, nbytes: int) -> bytes:
    if offset + nbytes > os.fstat(fd).st_size:
        raise Broken("the file ends before it")
    data = os.pread(fd, nbytes, offset)
    while len(data) < nbytes:
        more = os.pread(fd, nbytes - len(data), offset + len(data))
        if not more:
            raise Broken("the file ends before it")
        data += more
    return data


def _slot(data: bytes, path: Path) -> tuple[int, Span] | None:
    """Commit and place of its directory, None where the slot is damaged."""
    if len(data) < SLOT or data[_SLOT.size + 8 :].strip(b"\0"):
        return None
    if int(checksum(data[: _SLOT.size]), 16) != struct.unpack_from("<Q", data, _SLOT.size)[0]:
        return None
    magic, version, zero, number, offset, nbytes, check = _SLOT.unpack_from(data)
    if magic != MAGIC or zero:
        return None
    if version != FORMAT:
        raise RekindleError(f"This archive has format {version}; this Rekindle reads {FORMAT}.", where=path,
                            hint="pip install --upgrade rekindle")  # fmt: skip
    return number, Span(offset, nbytes, f"{check:016x}")


def _directory(data: Any, at: Span) -> tuple[tuple[StepEntry, ...], Span | None]:
    try:
        steps = tuple(_read_entry(entry) for entry in data["steps"])
        before = _read_span(data["before"]) if data["before"] is not None else None
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        raise Broken(f"its directory is malformed: {error}") from None
    named = [step.step for step in steps]
    if (len(set(named)) != len(named) or None in named) and set(named) != {None}:
        raise Broken("its directory has a step twice")
    depth: dict[str | None, int] = {None: 0}
    for step in steps:
        if step.reference not in depth:
            raise Broken("a step is coded against one that does not come before it")
        if depth[step.reference] == LONGEST:
            raise Broken(f"a step is more than {LONGEST} from its keyframe")
        if (
            step.digest in depth
            or step.offset < START
            or step.offset + step.nbytes != step.index.offset
            or step.index.end > at.offset
        ):
            raise Broken("a step is not where its directory says")
        depth[step.digest] = depth[step.reference] + 1
    return steps, before


def before(data: bytes) -> Span | None:
    """The directory that this one replaced; raises Broken."""
    try:
        found = unshrink(data)["before"]
        return None if found is None else _read_span(found)
    except (KeyError, TypeError, ValueError) as error:
        raise Broken(f"its directory is malformed: {error}") from None


def _entry(step: StepEntry) -> dict[str, Any]:
    mode = {} if step.mode == "lossless" else {"mode": step.mode}
    return mode | {
        "step": step.step, "offset": step.offset, "nbytes": step.nbytes, "index": _span(step.index),
        "digest": step.digest, "reference": step.reference, "raw": step.raw, "tier": step.tier,
    }  # fmt: skip


def _read_entry(data: Mapping[str, Any]) -> StepEntry:
    numbers = [data["offset"], data["nbytes"], data["raw"], 0 if data["step"] is None else data["step"]]
    texts = [data["digest"], data["tier"], data["reference"] or "", data.get("mode", "lossless")]
    if any(type(n) is not int or not 0 <= n < MOST_STEPS for n in numbers) or any(type(t) is not str for t in texts):
        raise ValueError("a step has something else for a number")
    return StepEntry(data["step"], data["offset"], data["nbytes"], _read_span(data["index"]), data["digest"],
                     data["reference"], data["raw"], data["tier"], texts[-1])  # fmt: skip


def _span(span: Span) -> list[Any]:
    return [span.offset, span.nbytes, span.checksum]


def _read_span(data: Any) -> Span:
    offset, nbytes, check = data
    if any(type(n) is not int or not 0 <= n < 2**62 for n in (offset, nbytes)) or type(check) is not str:
        raise ValueError("a place is none")
    return Span(offset, nbytes, check)


def write_all(fd: int, data: bytes | memoryview, offset: int) -> None:
    view = memoryview(data)
    while view:
        done = os.pwrite(fd, view, offset)
        view, offset = view[done:], offset + done
