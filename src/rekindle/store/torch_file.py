"""What torch's own files hold (`optimizer.pt`, `pytorch_model.bin`, `ckpt.pt`), and where each tensor's bytes lie.

Such a file is a zip: a pickle, and the storages of tensors, each as it is in memory. The pickle is read by a reader
that imports nothing and runs nothing: the few names that tensors are made with mean records of ours, all others an
empty thing. So no torch is needed, and no tensor is touched.
"""

from __future__ import annotations

import io
import pickle
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from rekindle.store.dtypes import BITS, FROM_TORCH
from rekindle.store.header import Stored

LARGEST_PICKLE = 1 << 26  # bytes; a tensor takes about 200
_STORAGES = {
    "FloatStorage": "F32", "DoubleStorage": "F64", "HalfStorage": "F16", "BFloat16Storage": "BF16",
    "LongStorage": "I64", "IntStorage": "I32", "ShortStorage": "I16", "CharStorage": "I8", "ByteStorage": "U8",
    "BoolStorage": "BOOL",
}  # fmt: skip


class Storage(NamedTuple):
    """Values one after the other in the file; `sums` are the places in it where their CRC32 stands."""

    key: str
    dtype: str
    n: int
    offset: int
    nbytes: int
    sums: tuple[int, ...]


class View(NamedTuple):
    """A tensor: values of a storage from `start` on."""

    storage: str
    dtype: str
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    @property
    def plain(self) -> bool:
        """Are its values in a row?"""
        step, wanted = 1, []
        for n in reversed(self.shape):
            wanted.append(step)
            step *= n
        return all(n == 1 or a == b for n, a, b in zip(self.shape, self.strides, reversed(wanted), strict=True))


@dataclass(frozen=True)
class TorchFile:
    """`tree` is what was saved: dicts and lists, with a View for each tensor and an empty thing for what is unknown."""

    path: str
    tree: Any
    storages: dict[str, Storage]

    def stored(self, view: View) -> Stored | None:
        """Where a tensor's bytes are; None where they are not in a row, or not in the file."""
        storage = self.storages.get(view.storage)
        width = BITS[view.dtype] // 8
        if storage is None or not view.plain or (view.start + prod(view.shape)) * width > storage.nbytes:
            return None
        return Stored(self.path, view.dtype, view.shape, storage.offset + view.start * width, prod(view.shape) * width)

    def whole(self, view: View) -> bool:
        """Is this tensor all of its storage?"""
        nbytes = prod(view.shape) * BITS[view.dtype] // 8
        return (
            view.storage in self.storages
            and nbytes == self.storages[view.storage].nbytes
            and view.plain
            and not view.start
        )

    def named(self) -> Iterator[tuple[str, View]]:
        """All tensors by the keys that lead to them, joined by dots, in their order."""
        yield from named(self.tree)


def named(tree: Any) -> Iterator[tuple[str, View]]:
    """Each container is entered once, by the first way that leads to it."""
    waiting, seen = [("", tree)], set()
    while waiting:
        name, x = waiting.pop()
        if isinstance(x, View):
            yield name, x
        elif isinstance(x, dict | list | tuple) and id(x) not in seen:
            seen.add(id(x))
            items = x.items() if isinstance(x, dict) else enumerate(x)
            inner = [(f"{name}.{k}" if name else str(k), v) for k, v in items if isinstance(k, str | int)]
            waiting += reversed(inner)


def read_torch(path: str | Path) -> TorchFile | None:
    """None where this is not such a zip, is torn, or has anything in it that torch would not have written."""
    try:
        with open(path, "rb") as file:
            return _read(str(path), file) if file.read(4) == b"PK\x03\x04" else None
    except Exception:  # a torn pickle may run the unpickler into anything, a torn zip the zip's reader
        return None


def _read(path: str, file: io.BufferedReader) -> TorchFile | None:
    with zipfile.ZipFile(file) as opened:
        entries = {entry.filename: entry for entry in opened.infolist()}
        places = _places(file, opened)
    base = next(name for name in entries if name.endswith("/data.pkl")).removesuffix("data.pkl")

    def content(name: str) -> bytes:  # as stored, whatever its checksum: torch may leave that 0
        file.seek(places[name][0])
        return file.read(min(entries[name].file_size, LARGEST_PICKLE))

    if f"{base}byteorder" in entries and content(f"{base}byteorder") != b"little":
        return None
    reader = _Reader(io.BytesIO(content(f"{base}data.pkl")))
    tree = reader.load()
    storages, end = {}, 0
    for key, dtype, n in sorted(reader.storages, key=lambda found: places[f"{base}data/{found[0]}"][0]):
        entry, (offset, sums) = entries[f"{base}data/{key}"], places[f"{base}data/{key}"]
        nbytes = n * BITS[dtype] // 8
        sound = entry.compress_type == zipfile.ZIP_STORED and entry.file_size == entry.compress_size == nbytes
        if key in storages or not sound or offset < end:
            return None
        end = offset + nbytes
        storages[key] = Storage(key, dtype, n, offset, nbytes, sums)
    return TorchFile(path, tree, storages) if end <= opened.start_dir else None


def _places(file: io.BufferedReader, opened: zipfile.ZipFile) -> dict[str, tuple[int, tuple[int, ...]]]:
    """Of each entry: where its data begins, and where its CRC32 stands. Raises ValueError where it is elsewhere."""
    found, at = {}, opened.start_dir
    for entry in opened.infolist():
        file.seek(entry.header_offset)
        name, extra = struct.unpack("<HH", file.read(30)[26:])
        offset = entry.header_offset + 30 + name + extra
        near = entry.header_offset + 14
        if entry.flag_bits & 8:  # then it follows the data, behind a signature or not
            file.seek(offset + entry.compress_size)
            near = offset + entry.compress_size + (4 if file.read(4) == b"PK\x07\x08" else 0)
        sums = (near, at + 16)
        for place in sums:
            file.seek(place)
            if file.read(4) != struct.pack("<I", entry.CRC):
                raise ValueError("its checksum is elsewhere")
        file.seek(at + 28)
        at += 46 + sum(struct.unpack("<HHH", file.read(6)))
        found[entry.filename] = offset, sums
    return found


class _Nothing:
    """Whatever a pickle asks for by a name that is not a tensor's: takes anything, does nothing."""

    def __new__(cls, *args: Any, **given: Any) -> _Nothing:
        return super().__new__(cls)

    def __init__(self, *args: Any, **given: Any) -> None:
        pass

    def __call__(self, *args: Any, **given: Any) -> _Nothing:
        return self

    def __setstate__(self, state: Any) -> None:
        pass

    def __setitem__(self, key: Any, value: Any) -> None:
        pass

    append = extend = add = __setstate__


class _Dict(dict[Any, Any]):
    """An OrderedDict or the like; its attributes are left out."""

    def __init__(self, *args: Any) -> None:
        super().__init__()

    def __setstate__(self, state: Any) -> None:
        pass


class _Reader(pickle._Unpickler):
    dispatch = {op: do for op, do in pickle._Unpickler.dispatch.items() if op != pickle.BYTEARRAY8[0]}

    def __init__(self, file: io.BytesIO):
        super().__init__(file, encoding="utf-8")
        self.storages: set[tuple[str, str, int]] = set()

    def find_class(self, module: str, name: str) -> Any:
        if module == "collections" and name in ("OrderedDict", "defaultdict"):
            return _Dict
        if module == "torch._utils" and name in _MADE:
            return _MADE[name]
        if module == "torch" and name in _STORAGES:
            return _STORAGES[name]
        if module == "torch" and name in FROM_TORCH:
            return FROM_TORCH[name]
        return "U8" if (module, name) == ("torch.storage", "UntypedStorage") else _Nothing

    def persistent_load(self, pid: Any) -> tuple[str, str]:
        kind, dtype, key, _, n = pid
        if kind != "storage" or type(key) is not str or type(n) is not int or not 0 <= n < 2**60 or dtype not in BITS:
            raise pickle.UnpicklingError("no storage")
        self.storages.add((key, dtype, n))
        return key, dtype


def _view(storage: tuple[str, str], start: int, shape: Any, strides: Any, *_: Any) -> View:
    shape, strides = tuple(shape), tuple(strides)
    if any(type(n) is not int or not 0 <= n < 2**60 for n in (start, *shape, *strides)) or len(shape) != len(strides):
        raise pickle.UnpicklingError("no tensor")
    return View(*storage, start, shape, strides)


def _untyped(storage: Any, start: Any, shape: Any, strides: Any, grad: Any, hooks: Any, dtype: Any, *_: Any) -> Any:
    made = _view(storage, start, shape, strides)
    return made._replace(dtype=dtype) if dtype in BITS else _Nothing()


_MADE = {
    "_rebuild_tensor_v2": _view,
    "_rebuild_tensor_v3": _untyped,
    "_rebuild_parameter": lambda data, *_: data,
}
