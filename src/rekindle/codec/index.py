"""The index of one step: its files, tensors and blocks, as JSON; and what must hold of one from outside."""

from __future__ import annotations

import hashlib
import json
import math
import zlib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from rekindle.codec.bits import Broken
from rekindle.codec.source import File, Tensor, is_path
from rekindle.store.dtypes import BITS, nbytes

LARGEST_BLOCK = 1 << 24  # bytes decoded
LARGEST_INDEX = 1 << 28  # bytes of JSON
INFLATES, SURELY = 64, 1 << 20  # so many times its bytes an index becomes at most, or this; ours 3 to 15 times


@dataclass(frozen=True)
class Part:
    """Words `start` to `start + count` of a tensor."""

    tensor: int
    start: int
    count: int


@dataclass(frozen=True)
class BlockEntry:
    """`nbytes` in the archive from `offset` of the step's data, and XXH3-64 of these, and of the values decoded."""

    offset: int
    nbytes: int
    stored: str
    decoded: str
    parts: tuple[Part, ...]

    @property
    def n(self) -> int:
        return sum(part.count for part in self.parts)


@dataclass(frozen=True)
class Index:
    files: list[File]
    tensors: list[Tensor]
    beside: Mapping[int, int]  # tensor -> the one whose values tell of its own
    blocks: list[BlockEntry]
    errors: Mapping[int, tuple[float, float]] = field(default_factory=dict)  # of tensors that were changed: see Errors

    def to_json(self) -> dict[str, Any]:
        errors = {"errors": [[i, *found] for i, found in self.errors.items()]} if self.errors else {}
        return errors | {
            "files": [[f.path, f.count] for f in self.files],
            "tensors": [[t.key, t.dtype, list(t.shape)] for t in self.tensors],
            "beside": [[a, b] for a, b in self.beside.items()],
            "blocks": [
                [b.nbytes, b.stored, b.decoded, [[p.tensor, p.start, p.count] for p in b.parts]] for b in self.blocks
            ],
        }

    def digest(self, step: int | None) -> str:
        """SHA-256 of what a step holds, however it is coded."""
        content = self.to_json() | {"step": step}
        content["blocks"] = [[decoded, parts] for _, _, decoded, parts in content["blocks"]]
        return hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()


def read_index(data: Any, length: int) -> Index:
    """An index from JSON, of `length` bytes of blocks; raises Broken where anything in it does not hold."""
    try:
        files, first = [], 0
        for path, count in data["files"]:
            files.append(File(_path(path), first, _whole(count, 1)))
            first += count
        tensors = [_tensor(key, dtype, shape) for key, dtype, shape in data["tensors"]]
        if first != len(tensors):
            raise Broken("its files are not of its tensors")
        beside = {_whole(a, 0): _whole(b, 0) for a, b in data["beside"]}
        errors = {_whole(i, 0): (_finite(most), _finite(share)) for i, most, share in data.get("errors", [])}
        blocks, offset = [], 0
        for size, stored, decoded, parts in data["blocks"]:
            made = tuple(Part(_whole(t, 0), _whole(s, 0), _whole(c, 1)) for t, s, c in parts)
            blocks.append(BlockEntry(offset, _whole(size, 1), _hash(stored), _hash(decoded), made))
            offset += size
    except (AttributeError, KeyError, OverflowError, TypeError, ValueError) as error:
        raise Broken(f"its index is malformed: {error}") from None
    if offset != length:
        raise Broken("its blocks are not as long as its data")
    for names in ([f.path for f in files], [t.key for t in tensors]):
        if len(set(names)) != len(names):
            raise Broken("its index has a name twice")
    index = Index(files, tensors, beside, blocks, errors)
    _check(index)
    return index


def _check(index: Index) -> None:
    """Every word of every tensor in one block, words of one kind in a block, and nothing beside itself."""
    n, at = len(index.tensors), [0] * len(index.tensors)
    for a, b in index.beside.items():
        if a >= n or b >= n or b in index.beside or _kind(index.tensors[a]) != _kind(index.tensors[b]):
            raise Broken("its index pairs tensors that are no pair")
    if any(i >= n for i in index.errors):
        raise Broken("its index has an error of no tensor")
    for block in index.blocks:
        if not block.parts or any(part.tensor >= n for part in block.parts):
            raise Broken("a block is of no tensor")
        like = index.tensors[block.parts[0].tensor]
        if block.n * like.word > LARGEST_BLOCK:
            raise Broken("a block is too large")
        for part in block.parts:
            tensor = index.tensors[part.tensor]
            paired = (part.tensor in index.beside) == (block.parts[0].tensor in index.beside)
            if at[part.tensor] != part.start or _kind(tensor)[:2] != _kind(like)[:2] or not paired:
                raise Broken("its blocks do not cover its tensors")
            at[part.tensor] += part.count
    if any(seen != tensor.n for seen, tensor in zip(at, index.tensors, strict=True)):
        raise Broken("its blocks do not cover its tensors")


def is_real(dtype: str) -> bool:
    return dtype.startswith(("F", "BF"))


def _kind(tensor: Tensor) -> tuple[int, bool, int]:
    return tensor.word, is_real(tensor.dtype), tensor.n


def _tensor(key: Any, dtype: Any, shape: Any) -> Tensor:
    if not isinstance(key, str) or dtype not in BITS or not isinstance(shape, list):
        raise Broken("its index has a tensor without a name, dtype or shape")
    shape = tuple(_whole(axis, 0) for axis in shape)
    if math.prod(axis for axis in shape if axis) >= 2**60:
        raise Broken(f"{key!r} {list(shape)} is beyond counting")
    return Tensor(key, dtype, shape, nbytes(dtype, shape))


def _whole(number: Any, least: int) -> int:
    if type(number) is not int or not least <= number < 2**62:
        raise Broken(f"its index has {number!r} for a number")
    return number


def _finite(number: Any) -> float:
    if type(number) not in (int, float) or not math.isfinite(number):
        raise Broken(f"its index has {number!r} for an error")
    return float(number)


def _hash(text: Any) -> str:
    if not isinstance(text, str) or len(text) != 16:
        raise Broken("its index has no checksum")
    return text


def _path(path: Any) -> str:
    """A plain relative path, as it is unpacked below a folder."""
    if not isinstance(path, str) or not is_path(path):
        raise Broken(f"its index has {path!r} for a file")
    return path


def shrink(data: Any) -> bytes:
    text = json.dumps(data, separators=(",", ":")).encode()
    shrunk = zlib.compress(text, 6)
    return shrunk if len(text) <= _most(shrunk) else zlib.compress(text, 0)


def unshrink(data: bytes) -> Any:
    """Raises Broken where it is no JSON, or too long to be an index."""
    try:
        inflate = zlib.decompressobj()
        text = inflate.decompress(data, _most(data))
        if not inflate.eof or inflate.unused_data:
            raise Broken("its index does not inflate, or to more than an index is")
        return json.loads(text)
    except (zlib.error, ValueError, RecursionError) as error:
        raise Broken(f"its index is malformed: {error}") from None


def _most(data: bytes) -> int:
    """Bytes that may come out of these: what is parsed takes memory that the file must account for."""
    return min(LARGEST_INDEX, max(SURELY, INFLATES * len(data)))
