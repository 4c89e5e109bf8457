"""Add checkpoints to an archive, each coded against the one before."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from itertools import chain
from pathlib import Path

from rekindle.codec.archive import Archive, Step, matches
from rekindle.codec.bits import Broken, Words
from rekindle.codec.block import Block, Tier, words
from rekindle.codec.coder import encode
from rekindle.codec.compact import compact, is_sparse
from rekindle.codec.container import MOST_STEPS, TAIL, Directory, Span, StepEntry, checksum, commit, write_all
from rekindle.codec.index import BlockEntry, Index, Part, is_real, read_index, shrink
from rekindle.codec.kernel import kernel
from rekindle.codec.layout import layout, pairs, row_of
from rekindle.codec.modes import changed
from rekindle.codec.shrunk import LOSSLESS, Shrunk
from rekindle.codec.source import Source
from rekindle.codec.workers import in_order
from rekindle.errors import CheckFailed, RekindleError
from rekindle.store import lock as locks
from rekindle.store.lock import alone
from rekindle.store.stamps import unchanged
from rekindle.store.system import explained

KEYFRAME_EVERY = 10
ELSEWHERE = "an archive elsewhere"  # where this one cannot be written
Reference = tuple[Step, Source | None]  # the step that a new one is coded against, and its source where that is at hand


def add_step(
    path: Path,
    source: Source,
    step: int | None,
    *,
    keyframe_every: int = KEYFRAME_EVERY,
    before: Source | None = None,
    tier: Tier = "fast",
    mode: str = LOSSLESS,
    workers: int = 1,
    note: Callable[[str], object] = lambda text: None,
) -> StepEntry:
    """Code a checkpoint behind the last one of an archive; `before` is the last one's source, where it is at hand.

    `note` is told what a mode leaves as it is. Where that is all, the step is called lossless.
    Raises RekindleError where its step is there already, where the disc is full, where another process adds, or where
    the source is changed meanwhile: the archive is as it was then.
    """
    path = path.resolve()
    with explained(path, ELSEWHERE), alone(lock_of(path), f"changing {path.name}"), Archive(path) as archive:
        last = archive.directory
        check_whole(path, last)
        check_name(path, last, step)
        due = links(last) % keyframe_every == 0 or links(last) > keyframe_every
        reference = None if due else (archive.step(last.steps[-1]), before)
        if mode != LOSSLESS:
            reference = reference and (reference[0], None)  # the last one's source is not what was packed
        shrunk = changed(source, reference and reference[0], mode)
        if shrunk.kept:
            note(shrunk.kept)
        fd = os.open(path, os.O_RDWR | os.O_CLOEXEC)
        try:
            os.ftruncate(fd, last.end)  # a torn tail
            try:
                with unchanged(source.check_unchanged):
                    entry = write_step(fd, last.end, shrunk, step, reference, tier, workers)
                entry = replace(entry, mode=mode if shrunk.errors.pieces else LOSSLESS)
                if entry.digest in [there.digest for there in last.steps]:
                    raise RekindleError("The archive has this very checkpoint already.", where=path)
            except BaseException:
                os.ftruncate(fd, last.end)
                raise
            commit(fd, last, (*last.steps, entry), entry.index.end)
        finally:
            os.close(fd)
        with suppress(OSError), Archive(path) as grown:  # the step is there; a full disc is no reason to refuse it
            if is_sparse(grown.directory):
                compact(grown)
    return entry


def links(directory: Directory) -> int:
    """Steps since the last keyframe, itself counted; 0 where there is none."""
    for back, entry in enumerate(reversed(directory.steps), 1):
        if entry.reference is None:
            return back
    return 0


def lock_of(path: Path, *, long: bool = False) -> Path:
    """The lock of whoever changes an archive, whatever link leads to it: for one change, or for all of a run's.

    The long one is of those whose changes belong together, `pack`, `archive add` and a training. Each of their changes
    takes the other one too, and so does whoever makes only one.
    """
    return (locks.long_lock_of if long else locks.lock_of)(path.resolve())


def check_whole(path: Path, directory: Directory) -> None:
    """Refuse to change an archive of which an older commit is all that can be read; a torn tail may go."""
    if damaged := [line for line in directory.torn if not line.endswith(TAIL)]:
        raise CheckFailed("This archive is damaged, and is not changed.", where=path, why="; ".join(damaged),
                          hint="unpack what is whole, and pack it anew")  # fmt: skip


def check_name(path: Path, directory: Directory, step: int | None) -> None:
    """Steps are all numbered, or none is; and each number is there once."""
    if step is not None and not 0 <= step < MOST_STEPS:
        raise RekindleError(f"{step} is no step.", hint="--step with a number from 0 up")
    there = [entry.step for entry in directory.steps]
    if step is not None and step in there:
        raise RekindleError(
            f"The archive has step {step} already.", where=path, hint="leave it out, or --step with another number"
        )
    if there and (step is None) != (there[0] is None):
        has, others = ("no", "have one") if step is None else ("a", "have none")
        raise RekindleError(f"This checkpoint has {has} step number, and those in the archive {others}.", where=path,
                            hint="--step N" if step is None else "another archive")  # fmt: skip


def write_step(
    fd: int, offset: int, shrunk: Shrunk, step: int | None, reference: Reference | None, tier: Tier, workers: int
) -> StepEntry:
    """Blocks and index from `offset` on."""
    source = shrunk.source
    beside = pairs(source.tensors)
    known = [reference is not None and matches(reference[0], [tensor]) is not None for tensor in source.tensors]
    plan = layout(source.tensors, beside, known, shrunk.centres)
    stages = [
        [parts for parts in plan if late == any(p.tensor in shrunk.last for p in parts)] for late in (False, True)
    ]
    coded = (_coded(shrunk, stage, beside, reference, tier, workers) for stage in stages)
    blocks, at = [], 0
    for parts, (data, decoded) in zip(chain(*stages), chain.from_iterable(coded), strict=True):
        write_all(fd, data, offset + at)
        blocks.append(BlockEntry(at, len(data), checksum(data), decoded, parts))
        at += len(data)
    index = Index(source.files, source.tensors, beside, blocks, shrunk.errors.to_index())
    readable(index, at)
    body = shrink(index.to_json())
    write_all(fd, body, offset + at)
    return StepEntry(
        step=step,
        offset=offset,
        nbytes=at,
        index=Span(offset + at, len(body), checksum(body)),
        digest=index.digest(step),
        reference=None if reference is None else reference[0].entry.digest,
        raw=sum(tensor.nbytes for tensor in source.tensors),
        tier=tier,
    )


def readable(index: Index, length: int) -> None:
    """Refuse to write what a reader would refuse, such as a file's name."""
    try:
        read_index(json.loads(json.dumps(index.to_json())), length)
    except Broken as error:
        raise RekindleError(f"This checkpoint cannot be kept in an archive: {error}.") from None


def _coded(
    shrunk: Shrunk,
    plan: Sequence[tuple[Part, ...]],
    beside: dict[int, int],
    reference: Reference | None,
    tier: Tier,
    workers: int,
) -> Iterator[tuple[bytes, str]]:
    """Each block's bytes, and the checksum of its values; a few at a time, in order."""
    source = shrunk.source

    def one(parts: tuple[Part, ...]) -> tuple[bytes, str]:
        first = source.tensors[parts[0].tensor]
        values = _read(source, parts, [part.tensor for part in parts])
        side = None
        if parts[0].tensor in beside:
            side = _read(source, parts, [beside[part.tensor] for part in parts])
        like = _reference(source, parts, reference)
        few, columns = shrunk.centres.get(parts[0].tensor), row_of(source.tensors, parts)
        block = Block(values, is_real(first.dtype), like, side, few, columns)
        return encode(kernel(), block, tier), checksum(values)

    return in_order(one, plan, workers)


def _read(source: Source, parts: Sequence[Part], tensors: Sequence[int]) -> Words:
    word = source.tensors[tensors[0]].word
    data = [source.read(t, part.start * word, part.count * word) for t, part in zip(tensors, parts, strict=True)]
    return words(data[0] if len(data) == 1 else b"".join(data), 8 * word)


def _reference(source: Source, parts: Sequence[Part], reference: Reference | None) -> Words | None:
    """The same places of the step before: from its source where that is what was packed, else from the archive."""
    if reference is None:
        return None
    step, at_hand = reference
    found = matches(step, [source.tensors[part.tensor] for part in parts])
    if found is None:
        return None
    there = tuple(replace(part, tensor=t) for part, t in zip(parts, found, strict=True))
    packed = step.by_parts.get(there)
    if at_hand is not None and packed is not None:
        values = _read(at_hand, there, found)
        if checksum(values) == packed.decoded:
            return values
    return step.gather(there, found)
