"""A step of an archive as a folder again, every file as it was, to the byte."""

from __future__ import annotations

import os
from contextlib import ExitStack
from itertools import accumulate
from pathlib import Path

import numpy as np

from rekindle.codec.archive import Step
from rekindle.codec.container import write_all
from rekindle.codec.workers import in_order
from rekindle.store.publish import alone, publishing


def unpack(step: Step, out: Path, *, overwrite: bool = False, workers: int = 1) -> None:
    """Write a step into the folder OUT. Raises CheckFailed where the archive is damaged, and leaves no OUT then."""
    index, lock = step.index, out.absolute().parent / f".{out.name}.unpack"
    with alone(lock, f"unpacking to {out}"), publishing(out, overwrite=overwrite) as partial, ExitStack() as stack:
        places: list[tuple[int, int]] = []  # of each tensor: file descriptor and offset in it
        for file in index.files:
            path = partial / file.path
            path.parent.mkdir(parents=True, exist_ok=True)
            fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o644)
            stack.callback(os.close, fd)
            sizes = [tensor.nbytes for tensor in index.tensors[file.first : file.first + file.count]]
            places += [(fd, end - size) for end, size in zip(accumulate(sizes), sizes, strict=True)]

        def write(number: int) -> None:
            block, at = step.block(number), 0
            for part in index.blocks[number].parts:
                fd, offset = places[part.tensor]
                word = index.tensors[part.tensor].word
                write_all(fd, block[at : at + part.count].view(np.uint8).data, offset + part.start * word)
                at += part.count

        for _ in in_order(write, sorted(range(len(index.blocks)), key=lambda number: place(step, number)), workers):
            pass


def place(step: Step, number: int) -> tuple[str, int, bool]:
    """Where a block is, for an order in which what it is coded by comes just before it."""
    part = step.index.blocks[number].parts[0]
    beside = step.index.beside.get(part.tensor)
    return step.index.tensors[part.tensor if beside is None else beside].key, part.start, beside is not None
