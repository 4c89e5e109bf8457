"""A checkpoint folder as what an archive keeps: files, each one tensor after the other, to the last byte.

A safetensors file is its header and then its tensors in the order of the data; any other file is one tensor of bytes.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from rekindle.errors import RekindleError
from rekindle.store.dtypes import BITS
from rekindle.store.files import Files
from rekindle.store.header import Stored, build_header, read_header, unreadable

WORDS = {"F64": 8, "I64": 8, "U64": 8, "C64": 4}  # bytes, where not those of a value of 2 or 4, or else 1


@dataclass(frozen=True)
class Tensor:
    """`key` names it within its checkpoint, and so finds its like in the one before."""

    key: str
    dtype: str
    shape: tuple[int, ...]
    nbytes: int

    @property
    def word(self) -> int:
        """Bytes of the unsigned words that its values are coded as."""
        return WORDS.get(self.dtype, BITS[self.dtype] // 8 if BITS[self.dtype] in (16, 32) else 1)

    @property
    def n(self) -> int:
        return self.nbytes // self.word


@dataclass(frozen=True)
class File:
    """A file of the folder: `path` relative to it, and which tensors it is, the first of them and how many."""

    path: str
    first: int
    count: int


@dataclass(frozen=True)
class Place:
    path: str
    start: int


@dataclass(frozen=True)
class Source:
    """A folder to be packed; or anything else whose tensors can be read by place."""

    files: list[File]
    tensors: list[Tensor]
    read: Callable[[int, int, int], bytes]  # tensor, first byte, number of bytes


def file_key(path: str) -> str:
    return f"{path}:"  # no safetensors tensor is called so: its own keys come after a colon


def open_source(folder: Path, reader: Files) -> Source:
    """Read the headers of a checkpoint folder, or of one file. Raises RekindleError where there is nothing to pack."""
    paths = [folder] if folder.is_file() else _walk(folder)
    if not paths:
        raise RekindleError(f"{folder} has no files.", hint="a checkpoint folder")
    base = folder.parent if folder.is_file() else folder
    found: list[tuple[File, list[tuple[str, Tensor, Place]]]] = []
    first = 0
    for path in paths:
        parts = _parts(path, path.relative_to(base).as_posix())
        found.append((File(path.relative_to(base).as_posix(), first, len(parts)), parts))
        first += len(parts)
    named = Counter(name for _, parts in found for name, _, _ in parts)
    tensors, places = [], []
    for file, parts in found:
        for name, tensor, place in parts:
            key = name if named[name] == 1 else f"{file.path}:{name}"
            tensors.append(Tensor(key, tensor.dtype, tensor.shape, tensor.nbytes))
            places.append(place)
    if twice := [key for key, count in Counter(tensor.key for tensor in tensors).items() if count > 1]:
        raise RekindleError(f"Two things in this checkpoint are called {twice[0]!r}.", where=folder)

    def read(tensor: int, start: int, nbytes: int) -> bytes:
        place = places[tensor]
        return reader.read(place.path, place.start + start, nbytes)

    return Source([file for file, _ in found], tensors, read)


Held = tuple[str, tuple[int, ...], memoryview]  # dtype, shape, bytes


def held_source(files: Mapping[str, bytes | Mapping[str, Held]]) -> Source:
    """A folder that is not on disc: each file's bytes, or the tensors of a safetensors file."""
    listed, tensors, data = [], [], []
    for path, content in files.items():
        held = {} if isinstance(content, bytes) else content
        head = content if isinstance(content, bytes) else build_header({n: x[:2] for n, x in held.items()}, {})[0]
        listed.append(File(path, len(tensors), 1 + len(held)))
        tensors.append(Tensor(file_key(path), "U8", (len(head),), len(head)))
        tensors += [Tensor(name, dtype, shape, len(raw)) for name, (dtype, shape, raw) in held.items()]
        data += [memoryview(head), *(raw for _, _, raw in held.values())]

    def read(tensor: int, start: int, nbytes: int) -> bytes:
        return bytes(data[tensor][start : start + nbytes])

    return Source(listed, tensors, read)


def _walk(folder: Path) -> list[Path]:
    if not folder.is_dir():
        raise RekindleError(f"There is no checkpoint {folder}.", hint="a folder with safetensors files")

    def refuse(error: OSError) -> None:
        raise unreadable(error.filename, error) from None

    found = []
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        if links := [name for name in folders if (Path(parent) / name).is_symlink()]:
            raise RekindleError("This is a link to a folder.", where=Path(parent) / links[0], hint="pack a copy")
        found += [Path(parent) / name for name in sorted(names)]
    if odd := [path for path in found if not path.is_file()]:
        raise RekindleError(
            "This is no plain file, or a link to nothing.", where=odd[0], hint="remove it, or pack a copy"
        )
    return found


def _parts(path: Path, relative: str) -> list[tuple[str, Tensor, Place]]:
    """Name, tensor and place of everything that a file consists of, in its order."""
    size = path.stat().st_size
    stored = _stored(path) if path.suffix == ".safetensors" else []
    start = stored[0][1].offset if stored else size
    whole = Tensor("", "U8", (start,), start)
    parts = [(file_key(relative), whole, Place(str(path), 0))]
    for name, x in stored:
        parts.append((name, Tensor("", x.dtype, x.shape, x.nbytes), Place(str(path), x.offset)))
    return parts


def _stored(path: Path) -> list[tuple[str, Stored]]:
    """Tensors in the order of their bytes."""
    tensors, _ = read_header(path)
    return sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].nbytes))
