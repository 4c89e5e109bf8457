"""What the parts of a result have in common, on any machine: digests of the plan and of what it is made from."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from pathlib import Path

from rekindle.apply.parts import Identity
from rekindle.edit.expressions import Leaf
from rekindle.store.files import Files
from rekindle.store.folder import Folder
from rekindle.store.reading import unreadable
from rekindle.store.sample import samples


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
        for sample in samples([leaf.stored for leaf in found], files, ends=False):
            state.update(sample)
    return Identity(plan=digest(plan), sources=state.hexdigest()[:16], passengers=_passengers(folder))


def digest(data: str | bytes) -> str:
    return hashlib.sha256(data.encode() if isinstance(data, str) else data).hexdigest()[:16]


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
