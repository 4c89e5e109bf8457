"""A sample of what is stored tells it from another of its size, without reading all of it: a guard against a mix-up.

It is no proof: a change between the places that are looked at is not seen. One training step changes nearly every
value, and a fine-tune of some tensors all of these, so that what was trained again is. Paths and times do not count:
copies of a file are the same on any machine.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import numpy as np

from rekindle.store.files import Files
from rekindle.store.header import Stored
from rekindle.store.legacy import Held
from rekindle.store.reading import unreadable

SAMPLE = 1 << 12  # bytes read at a place: a page
PLACES = 1 << 14  # in all tensors together, 64 MiB; but one in each, however many there are
MOST = 16  # places in one tensor
OF_FILE = 256  # places in a whole file


def sampled(stored: Mapping[str, Stored | Held], most: int = MOST) -> str:
    """A digest of these by name: of their sizes, and of the bytes at up to `most` places of each."""
    names = sorted(stored)
    state = hashlib.sha256(repr([(name, stored[name].nbytes) for name in names]).encode())
    with Files() as files:
        for sample in samples([stored[name] for name in names], files, most):
            state.update(sample)
    return state.hexdigest()[:16]


def sampled_files(paths: Mapping[str, Path]) -> str:
    """The same of whole files, of which a megabyte is read."""
    return sampled({name: _whole(path) for name, path in paths.items()}, OF_FILE)


def samples(stored: Sequence[Stored | Held], files: Files, most: int = MOST, *, ends: bool = True) -> Iterator[bytes]:
    """Bytes of each tensor at places spread over it, all of a small one; of a step of an archive what names it.

    Without its `ends` the places are half a step inside, as in the records of parts.
    """
    most = max(1, min(most, PLACES // max(1, len(stored))))
    for x in stored:
        if isinstance(x, Held) and x.mark:
            yield x.mark.encode()
            continue
        nbytes, count = min(SAMPLE, x.nbytes), min(most, -(-x.nbytes // SAMPLE))
        for i in range(count):
            at = (x.nbytes - nbytes) * (2 * i + (not ends)) // max(1, 2 * (count - ends))
            if isinstance(x, Held):
                yield np.asarray(x.array).reshape(-1).view(np.uint8)[at : at + nbytes].tobytes()
            else:
                yield files.read(x.path, x.offset + at, nbytes)


def _whole(path: Path) -> Stored:
    """A file as one tensor of bytes."""
    try:
        size = os.stat(path).st_size
    except OSError as error:
        raise unreadable(path, error) from None
    return Stored(str(path), "U8", (size,), 0, size)
