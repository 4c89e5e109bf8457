"""Prove an archive, end to end: every byte of the file accounted for, every block decoded and as it was packed."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from rekindle.codec.archive import Archive, Step
from rekindle.codec.bits import Broken
from rekindle.codec.container import START, Span, before, checksum
from rekindle.codec.unpack import place
from rekindle.codec.workers import in_order
from rekindle.errors import CheckFailed


def check(path: Path, say: Callable[[str], object] = lambda text: None, *, workers: int = 1) -> list[str]:
    """What is wrong with an archive, in sentences; raises RekindleError where it is none, or is beyond reading.

    Blocks are decoded place by place through all steps, so that each finds its reference just decoded.
    """
    with Archive(path) as archive:
        wrong = [*archive.directory.torn, *_uncovered(archive)]
        steps = [archive.step(entry) for entry in archive.directory.steps]
        bad: dict[str, list[str]] = {step.entry.digest: [] for step in steps}
        blocks: list[tuple[tuple, Step, int]] = []
        for order, step in enumerate(steps):
            try:
                blocks += [((*place(step, number), order), step, number) for number in range(len(step.index.blocks))]
            except CheckFailed as error:
                bad[step.entry.digest].append(error.what)

        def read(at: int) -> None:
            _, step, number = blocks[at]
            try:
                step.block(number)
            except CheckFailed as error:
                bad[step.entry.digest].append(error.what)

        blocks.sort(key=lambda block: block[0])
        for _ in in_order(read, range(len(blocks)), workers):
            pass
        for name, step in zip(archive.names, steps, strict=True):
            found = bad[step.entry.digest]
            say(f"@{name}  damaged in {len(found)} block(s)" if found else f"@{name}  whole")
            wrong += found
    return list(dict.fromkeys(wrong))  # what depends on a damaged block says the same


def _uncovered(archive: Archive) -> list[str]:
    """Bytes of the file that no checksum covers, and directories before the last that are damaged."""
    spans = [Span(0, START, "")]
    for entry in archive.directory.steps:
        spans += [Span(entry.offset, entry.nbytes, ""), entry.index]
    wrong, at, older = [], archive.directory.at, archive.directory.before
    spans.append(at)
    while older is not None:
        spans.append(older)
        data = archive.read(older.offset, older.nbytes) if older.end <= at.offset else b""
        if checksum(data) != older.checksum:
            wrong.append(f"the directory at byte {older.offset}, an old one, is damaged")
            break
        try:
            at, older = older, before(data)
        except Broken as error:
            wrong.append(f"the directory at byte {at.offset}: {error}")
            break
    end = 0
    for span in sorted(spans, key=lambda span: span.offset):
        if span.offset != end and not wrong:
            wrong.append(f"bytes {end} to {span.offset} belong to nothing")
        end = span.end
    size = os.stat(archive.path).st_size
    return wrong + ([f"the file has {size} bytes, {end} are needed"] if size < end else [])
