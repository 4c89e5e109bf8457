"""A step of an archive as an opened folder: its tensors stay packed, and are decoded where rows of them are read."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod
from pathlib import Path, PurePath

import numpy as np
from numpy.typing import NDArray

from rekindle.codec.archive import Step
from rekindle.codec.source import File
from rekindle.store.dtypes import RAW
from rekindle.store.folder import Folder
from rekindle.store.header import Stored
from rekindle.store.legacy import Held
from rekindle.store.weights import SUFFIXES, is_of_a_model
from rekindle.store.weights_alone import open_source


@dataclass(frozen=True)
class Rows:
    """Rows of a tensor, as of an array [rows, width]: a slice of it decodes the blocks that it lies in."""

    step: Step
    tensor: int
    dtype: np.dtype
    width: int = 1

    def reshape(self, rows: int, width: int) -> Rows:
        return replace(self, width=width)

    def __getitem__(self, rows: slice) -> NDArray:
        start, count = rows.start * self.width, (rows.stop - rows.start) * self.width
        return self.step.words(self.tensor, start, count).view(self.dtype).reshape(-1, self.width)


def open_step(step: Step, folder: Path) -> Folder | None:
    """Opens a step; `folder` gets its files, but for the weights and a trainer's own state, which stay packed.

    None where weights cannot stay packed: pickles, and dtypes that are not numbers of whole bytes.
    """
    index = step.index
    files = [file for file in index.files if not _of_a_trainer(file)]
    for file in files:
        _write(step, file, folder / file.path, head=_is_packed(file))
    opened = open_source(folder)
    held: dict[str, Stored | Held] = {}
    places = {(str(folder / file.path), offset): i for file in files for i, offset in _offsets(step, file)}
    for name, stored in opened.tensors.items():
        i = places.get((stored.path, stored.offset)) if isinstance(stored, Stored) else None
        if i is None or stored.dtype not in RAW or index.tensors[i].n != prod(stored.shape):
            return None
        rows, mark = Rows(step, i, np.dtype(RAW[stored.dtype])), f"{step.entry.digest}/{index.tensors[i].key}"
        held[name] = Held(str(step.archive.path), stored.dtype, stored.shape, rows, stored.nbytes, mark)
    weights = {stored.path for stored in opened.tensors.values()}
    for file in filter(_is_packed, files):
        (folder / file.path).unlink()
        if str(folder / file.path) not in weights:
            _write(step, file, folder / file.path)
    return replace(opened, tensors=held)


def _write(step: Step, file: File, path: Path, head: bool = False) -> None:
    """A file of a step; of a safetensors file its header alone, and as many bytes as it had."""
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = step.index.tensors[file.first : file.first + file.count]
    with path.open("xb") as out:
        for i, tensor in enumerate(tensors[:1] if head else tensors, file.first):
            out.write(step.words(i, 0, tensor.n).tobytes())
        out.truncate(sum(tensor.nbytes for tensor in tensors))


def _offsets(step: Step, file: File) -> Iterator[tuple[int, int]]:
    """The tensors of a file, and the byte in it where each begins."""
    at = 0
    for i in range(file.first, file.first + file.count):
        yield i, at
        at += step.index.tensors[i].nbytes


def _is_packed(file: File) -> bool:
    return file.path.endswith(".safetensors")


def _of_a_trainer(file: File) -> bool:
    name = PurePath(file.path).name
    return name.endswith(SUFFIXES) and not is_of_a_model(name)
