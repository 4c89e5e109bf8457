"""What the parts of a result have in common, on any machine: digests of the plan and of what it is made from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from rekindle.apply.parts import Identity
from rekindle.edit.expressions import Leaf
from rekindle.store.files import Files
from rekindle.store.folder import Folder
from rekindle.store.legacy import Held
from rekindle.store.reading import unreadable

SAMPLE = 1 << 12  # bytes read at a place: a page
PLACES = 1 << 14  # in all tensors together, 64 MiB; but one in each, however many there are
MOST = 16  # places in one tensor


def identity(plan: str, leaves: Iterable[Leaf], folder: Folder) -> Identity:
    """Reads a sample of each tensor, and whole the files that travel along.

    Times of change are left out, since copies of a file have different ones. The samples stand in for them: they tell a
    step of a training, or a fine-tune of some tensors, from another whose files have the same names and sizes.
    """
    stored = {(leaf.source, Path(leaf.stored.path).name, leaf.name): leaf for leaf in leaves}
    found = [stored[key] for key in sorted(stored)]
    sizes = {leaf.stored.path: _size(leaf.stored.path) for leaf in found}
    state = hashlib.sha256(repr([(Path(path).name, size) for path, size in sizes.items()]).encode())
    with Files() as files:
        for sample in _samples(found, files):
            state.update(sample)
    return Identity(plan=digest(plan), sources=state.hexdigest()[:16], passengers=_passengers(folder))


def digest(data: str | bytes) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:16]


def _samples(leaves: Sequence[Leaf], files: Files) -> Iterator[bytes]:
    """Bytes of each tensor at places spread over it; all of a small one."""
    most = max(1, min(MOST, PLACES // max(1, len(leaves))))
    for leaf in leaves:
        if isinstance(leaf.stored, Held) and leaf.stored.mark:
            yield leaf.stored.mark.encode()
            continue
        count = min(most, -(-leaf.nbytes // SAMPLE))
        for i in range(count):
            at = (leaf.nbytes - min(SAMPLE, leaf.nbytes)) * (2 * i + 1) // (2 * count)
            nbytes = min(SAMPLE, leaf.nbytes - at)
            if isinstance(leaf.stored, Held):
                yield np.asarray(leaf.stored.array).reshape(-1).view(np.uint8)[at : at + nbytes].tobytes()
            else:
                yield files.read(leaf.stored.path, leaf.stored.offset + at, nbytes)


def _passengers(folder: Folder) -> str:
    state = hashlib.sha256()
    for path in folder.passengers():
        try:
            state.update(f"{path.relative_to(folder.path)}={digest(path.read_bytes())};".encode())
        except OSError as error:
            raise unreadable(path, error) from None
    return state.hexdigest()[:16]


def _size(path: str) -> int:
    try:
        return os.stat(path).st_size
    except OSError as error:
        raise unreadable(path, error) from None
