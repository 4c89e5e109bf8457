"""A checkpoint folder as what an archive keeps: files, each one tensor after the other, to the last byte.

A safetensors file is its header and then its tensors in the order of the data; a zip of torch's likewise, with what
stands between them; any other file is one tensor of bytes.
"""

from __future__ import annotations

import os
from bisect import bisect_right
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath

from rekindle.errors import RekindleError
from rekindle.store.dtypes import BITS
from rekindle.store.files import Files
from rekindle.store.header import build_header, read_header
from rekindle.store.links import check_links
from rekindle.store.reading import unreadable
from rekindle.store.stamps import Stamp, Stamps, check_unchanged, stamps
from rekindle.store.torch_file import TorchFile, View, read_torch

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
class Torch:
    """A file of torch's within a source: what it holds, and which tensor each of its storages is."""

    path: str
    content: TorchFile
    tensors: Mapping[str, int]

    def tensor(self, x: object) -> int | None:
        """The tensor that a View is all of."""
        return self.tensors.get(x.storage) if isinstance(x, View) and self.content.whole(x) else None


@dataclass(frozen=True)
class Source:
    """A folder to be packed; or anything else whose tensors can be read by place.

    `sums` are the tensors whose CRC32 stands in others: in which, and from which byte on. `seen` are stamps of its
    files, from before the first was opened, and `around` of its folders, from before they were listed: a file that
    comes or goes changes those. None of what is not on disc.
    """

    files: list[File]
    tensors: list[Tensor]
    read: Callable[[int, int, int], bytes]  # tensor, first byte, number of bytes
    torch: Sequence[Torch] = ()
    sums: Mapping[int, Sequence[tuple[int, int]]] = field(default_factory=dict)
    seen: Stamps = field(default_factory=dict)
    around: Stamps = field(default_factory=dict)

    def check_unchanged(self) -> None:
        """Raise RekindleError where a file is not what it was, or where one has come or gone."""
        check_unchanged(self.seen, self.seen)
        check_unchanged(self.around, self.around)


def file_key(path: str) -> str:
    return f"{path}:"  # no safetensors tensor is called so: its own keys come after a colon


def is_path(path: str) -> bool:
    """Whether an archive can call a file so: a plain relative path, the same below a folder on every system."""
    parts = PurePosixPath(path).parts
    odd = ".." in parts or path.startswith("/") or "\\" in path or "\0" in path
    return bool(parts) and not odd and path == "/".join(parts)


def check_names(base: Path, files: Iterable[Path]) -> None:
    """Refuse files below `base` whose names an archive cannot have."""
    if odd := next((path for path in files if not is_path(path.relative_to(base).as_posix())), None):
        what = "This file cannot be kept in an archive: it has a backslash in its name."
        why = "where another system unpacks it, that is a folder and a file in it"
        raise RekindleError(what, where=odd, why=why, hint="rename it, or pack a copy without it")


def open_source(folder: Path, reader: Files) -> Source:
    """Read the headers of a checkpoint folder, or of one file. Raises RekindleError where there is nothing to pack."""
    paths, around = ([folder], {}) if folder.is_file() else _walk(folder)
    if not paths:
        raise RekindleError(f"{folder} has no files.", hint="a checkpoint folder")
    base = folder.parent if folder.is_file() else folder
    check_names(base, paths)
    seen = stamps(paths)
    # of a single file the name may count its steps: what stands around its tensors is known by the suffix alone
    cut = [_cut(path, folder.suffix if folder.is_file() else path.relative_to(base).as_posix()) for path in paths]
    named = Counter(piece.tensor.key for pieces, _ in cut for piece in pieces)
    files: list[File] = []
    tensors: list[Tensor] = []
    places: list[tuple[str, int]] = []
    torch: list[Torch] = []
    sums: dict[int, list[tuple[int, int]]] = {}
    for path, (pieces, content) in zip(paths, cut, strict=True):
        first, relative = len(tensors), path.relative_to(base).as_posix()
        files.append(File(relative, first, len(pieces)))
        for tensor in (piece.tensor for piece in pieces):
            tensors.append(replace(tensor, key=tensor.key if named[tensor.key] == 1 else f"{relative}:{tensor.key}"))
        places += [(str(path), piece.start) for piece in pieces]
        sums |= {first + i: [(first + j, at) for j, at in piece.sums] for i, piece in enumerate(pieces) if piece.sums}
        if content:
            of = {piece.storage: first + i for i, piece in enumerate(pieces) if piece.storage is not None}
            torch.append(Torch(relative, content, of))
    if twice := [key for key, count in Counter(tensor.key for tensor in tensors).items() if count > 1]:
        raise RekindleError(f"Two things in this checkpoint are called {twice[0]!r}.", where=folder)

    def read(tensor: int, start: int, nbytes: int) -> bytes:
        path, first = places[tensor]
        return reader.read(path, first + start, nbytes)

    return Source(files, tensors, read, torch, sums, seen, around)


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


def _walk(folder: Path) -> tuple[list[Path], dict[str, Stamp]]:
    """Its files, and stamps of its folders from before they were listed."""
    if not folder.is_dir():
        raise RekindleError(f"There is no checkpoint {folder}.", hint="a folder with safetensors files")

    def refuse(error: OSError) -> None:
        raise unreadable(error.filename, error) from None

    found, around = [], stamps([folder])
    for parent, folders, names in os.walk(folder, onerror=refuse):
        folders.sort()
        around |= stamps(Path(parent) / name for name in folders)
        if links := [name for name in folders if (Path(parent) / name).is_symlink()]:
            raise RekindleError("This is a link to a folder.", where=Path(parent) / links[0], hint="pack a copy")
        found += [Path(parent) / name for name in sorted(names)]
    check_links(folder, found)
    if odd := [path for path in found if not path.is_file()]:
        raise RekindleError(
            "This is no plain file, or a link to nothing.", where=odd[0], hint="remove it, or pack a copy"
        )
    return found, around


@dataclass(frozen=True)
class _Piece:
    """Bytes of a file from `start` on; of torch's, the `storage` that they are and where in other pieces its sum is."""

    tensor: Tensor
    start: int
    storage: str | None = None
    sums: Sequence[tuple[int, int]] = ()

    @property
    def end(self) -> int:
        return self.start + self.tensor.nbytes


def _cut(path: Path, relative: str) -> tuple[list[_Piece], TorchFile | None]:
    """Everything that a file consists of, in its order."""
    size = path.stat().st_size
    if path.suffix == ".safetensors":
        stored = sorted(read_header(path)[0].items(), key=lambda item: (item[1].offset, item[1].nbytes))
        known = [_Piece(Tensor(name, x.dtype, x.shape, x.nbytes), x.offset) for name, x in stored]
        return _filled(known, relative, size), None
    content = read_torch(path)
    if content is not None:
        pieces = _filled(_storages(content), relative, size)
        try:
            return [replace(piece, sums=_sums(piece, pieces, content)) for piece in pieces], content
        except ValueError:
            pass
    return _filled([], relative, size), None


def _filled(known: Iterable[_Piece], relative: str, size: int) -> list[_Piece]:
    """With the bytes before, between and behind, under names that no tensor has."""
    pieces: list[_Piece] = []
    for piece in (*known, None):
        at, start = (pieces[-1].end if pieces else 0), (piece.start if piece else size)
        if start > at or not pieces:
            key = file_key(f"{file_key(relative)}{len(pieces)}" if pieces else relative)
            pieces.append(_Piece(Tensor(key, "U8", (start - at,), start - at), at))
        pieces += [piece] if piece else []
    return pieces


def _storages(content: TorchFile) -> list[_Piece]:
    """Those of more than one value, each by the name of the first tensor in it."""
    first: dict[str, tuple[str, View]] = {}
    for name, view in content.named():
        first.setdefault(view.storage, (name, view))
    pieces, taken = [], set()
    for key, x in content.storages.items():
        name, view = first.get(key, (f"data/{key}", None))
        name = f"{name}:{key}" if name in taken else name
        taken.add(name)
        dtype, shape = (view.dtype, view.shape) if view and content.whole(view) else (x.dtype, (x.n,))
        if x.n > 1:
            pieces.append(_Piece(Tensor(name, dtype, shape, x.nbytes), x.offset, key))
    return pieces


def _sums(piece: _Piece, pieces: Sequence[_Piece], content: TorchFile) -> list[tuple[int, int]]:
    """Raises ValueError where a sum lies in a tensor."""
    found = []
    for place in content.storages[piece.storage].sums if piece.storage is not None else ():
        i = bisect_right(pieces, place, key=lambda x: x.start) - 1
        if pieces[i].storage is not None or place + 4 > pieces[i].end:
            raise ValueError
        found.append((i, place - pieces[i].start))
    return found
