"""An archive opened for reading: steps, tensors by name, slices of them, without reading the rest."""

from __future__ import annotations

import os
import threading
import weakref
from bisect import bisect_right
from collections import OrderedDict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np

from rekindle.codec.bits import Broken, Words
from rekindle.codec.block import Block, words
from rekindle.codec.coder import decode
from rekindle.codec.container import Directory, StepEntry, checksum, read_bytes, read_directory, read_span
from rekindle.codec.index import BlockEntry, Index, Part, is_real, read_index, unshrink
from rekindle.codec.kernel import kernel
from rekindle.codec.source import Source, Tensor
from rekindle.errors import CheckFailed, RekindleError
from rekindle.store.dtypes import COMPUTED

VALUES = {
    **COMPUTED, "I8": np.int8, "I16": np.int16, "I32": np.int32, "I64": np.int64,
    "U8": np.uint8, "U16": np.uint16, "U32": np.uint32, "U64": np.uint64, "BOOL": np.bool_,
}  # fmt: skip
CACHE = 64  # decoded blocks kept: what a chain and the moments beside each other are read by twice


class Archive:
    """`archive[1200]` is a step, `archive[1200]["model.norm.weight"]` a tensor as a numpy array (bfloat16 as its bits).

    Steps go by their number; by their position from 0 where no checkpoint in the archive has one.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if self.path.is_dir():
            raise RekindleError("This is a folder, not an archive.", where=path)
        try:
            self._fd = os.open(self.path, os.O_RDONLY | os.O_CLOEXEC)
        except OSError as error:
            raise RekindleError(f"The archive cannot be read: {error.strerror}.", where=path) from None
        try:
            self.directory: Directory = read_directory(self._fd, self.path)
        except Broken as error:
            os.close(self._fd)
            raise CheckFailed(f"This archive is damaged: {error}.", where=path) from None
        except BaseException:
            os.close(self._fd)
            raise
        self._close = weakref.finalize(self, os.close, self._fd)
        self._steps: dict[str, Step] = {}
        self._blocks: OrderedDict[tuple[str, int], Words] = OrderedDict()
        self._lock = threading.Lock()

    def __enter__(self) -> Archive:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        self.close()

    def close(self) -> None:
        self._close()
        self._fd = -1

    def __len__(self) -> int:
        return len(self.directory.steps)

    def __iter__(self) -> Iterator[int]:
        """The names that steps go by."""
        return iter(self.names)

    @property
    def names(self) -> list[int]:
        return names_of(self.directory.steps)

    def __getitem__(self, name: int) -> Step:
        if name not in self.names:
            known = ", ".join(map(str, self.names)) or "none yet"
            lost = "; ".join(self.directory.torn)
            raise RekindleError(f"The archive has no step {name!r}.", where=self.path,
                                why=f"it is damaged, and may have lost it: {lost}" if lost else None,
                                hint=f"one of {known}")  # fmt: skip
        return self.step(self.directory.steps[self.names.index(name)])

    def step(self, entry: StepEntry) -> Step:
        with self._lock:
            return self._steps.setdefault(entry.digest, Step(self, entry))

    def by_digest(self, digest: str) -> Step:
        return self.step(next(entry for entry in self.directory.steps if entry.digest == digest))

    @property
    def fd(self) -> int:
        if self._fd < 0:
            raise RekindleError("The archive was closed.", where=self.path)
        return self._fd

    def read(self, offset: int, nbytes: int) -> bytes:
        return read_bytes(self.fd, offset, nbytes)

    def index_of(self, entry: StepEntry) -> Index:
        return read_index(unshrink(read_span(self.fd, entry.index)), entry.nbytes)

    def remembered(self, key: tuple[str, int]) -> Words | None:
        with self._lock:
            if key in self._blocks:
                self._blocks.move_to_end(key)
            return self._blocks.get(key)

    def remember(self, key: tuple[str, int], block: Words) -> None:
        with self._lock:
            self._blocks[key] = block
            while len(self._blocks) > CACHE:
                self._blocks.popitem(last=False)


def names_of(steps: Sequence[StepEntry]) -> list[int]:
    if any(entry.step is not None for entry in steps):
        return [entry.step for entry in steps if entry.step is not None]
    return list(range(len(steps)))


@dataclass
class Step:
    """One checkpoint of an archive. Everything read of it is checked against the checksum of what was packed."""

    archive: Archive
    entry: StepEntry

    @cached_property
    def index(self) -> Index:
        try:
            index = self.archive.index_of(self.entry)
            if index.digest(self.entry.step) != self.entry.digest:
                raise Broken("it holds something else than its directory says")
        except Broken as error:
            raise self._damaged(str(error)) from None
        return index

    @cached_property
    def covers(self) -> dict[int, tuple[list[int], list[int]]]:
        """Tensor -> the first words of its parts, and the blocks that these are in."""
        found: dict[int, tuple[list[int], list[int]]] = {}
        for number, block in enumerate(self.index.blocks):
            for part in block.parts:
                starts, blocks = found.setdefault(part.tensor, ([], []))
                starts.append(part.start)
                blocks.append(number)
        return found

    @cached_property
    def by_key(self) -> dict[str, int]:
        return {tensor.key: i for i, tensor in enumerate(self.index.tensors)}

    @cached_property
    def by_parts(self) -> dict[tuple[Part, ...], BlockEntry]:
        return {block.parts: block for block in self.index.blocks}

    @cached_property
    def reference(self) -> Step | None:
        return None if self.entry.reference is None else self.archive.by_digest(self.entry.reference)

    @property
    def name(self) -> str:
        return f"{self.archive.path}@{self.entry.step if self.entry.step is not None else self.entry.digest[:8]}"

    def __iter__(self) -> Iterator[str]:
        return (tensor.key for tensor in self.index.tensors if not tensor.key.endswith(":"))

    def __getitem__(self, key: str | tuple[Any, ...]) -> np.ndarray:
        """`step["name"]`, or rows of it: `step["name", 10:20]`."""
        name, *some = key if isinstance(key, tuple) else (key, slice(None))
        if len(some) != 1 or not isinstance(some[0], slice):
            raise RekindleError(f"{some} are no rows.", hint=f"step[{name!r}, 10:20]")
        rows = some[0]
        if name not in self.by_key:
            raise RekindleError(f"{self.name} has no tensor {name!r}.", hint="rekindle archive info shows them")
        tensor = self.index.tensors[self.by_key[name]]
        dtype = np.dtype(VALUES.get(tensor.dtype, f"<u{tensor.word}"))
        if not tensor.shape:
            return self.words(self.by_key[name], 0, tensor.n).view(dtype).reshape(())
        start, stop, stride = rows.indices(tensor.shape[0])
        if stride < 1:
            raise RekindleError(f"Rows {start}:{stop}:{stride} run backwards.", hint=f"step[{name!r}][::-1]")
        count = max(stop - start, 0)
        row = tensor.n // tensor.shape[0] if tensor.n else 0
        found = self.words(self.by_key[name], start * row, count * row)
        return found.view(dtype).reshape(count, *tensor.shape[1:])[::stride]

    def words(self, tensor: int, start: int, count: int) -> Words:
        """Words of a tensor, by position; raises CheckFailed where the archive is damaged."""
        like = self.index.tensors[tensor]
        if not count:
            return np.empty(0, f"<u{like.word}")
        starts, blocks = self.covers[tensor]
        found = []
        for i in range(bisect_right(starts, start) - 1, bisect_right(starts, start + count - 1)):
            block, at = self.block(blocks[i]), 0
            for part in self.index.blocks[blocks[i]].parts:
                if part.tensor == tensor and part.start == starts[i]:
                    first = max(start - part.start, 0)
                    found.append(block[at + first : at + min(start + count - part.start, part.count)])
                at += part.count
        return found[0] if len(found) == 1 else np.concatenate(found)

    def gather(self, parts: Sequence[Part], tensors: Sequence[int]) -> Words:
        """Words at the places of `parts`, of other tensors."""
        found = [self.words(t, part.start, part.count) for t, part in zip(tensors, parts, strict=True)]
        return found[0] if len(found) == 1 else np.concatenate(found)

    def block(self, number: int) -> Words:
        """A block decoded, and checked."""
        key = (self.entry.digest, number)
        known = self.archive.remembered(key)
        if known is not None:
            return known
        entry, tensors = self.index.blocks[number], self.index.tensors
        first = tensors[entry.parts[0].tensor]
        beside = None
        if entry.parts[0].tensor in self.index.beside:
            beside = self.gather(entry.parts, [self.index.beside[part.tensor] for part in entry.parts])
        like = words(b"", 8 * first.word)
        try:
            data = self.archive.read(self.entry.offset + entry.offset, entry.nbytes)
            if checksum(data) != entry.stored:
                raise Broken("the checksum of its bytes is another one")
            given = Block(like, is_real(first.dtype), self.reference_of(entry.parts), beside)
            found = decode(kernel(), memoryview(data), entry.n, given)
            if checksum(found) != entry.decoded:
                raise Broken("what it decodes to has another checksum")
        except Broken as error:
            raise self._damaged(f"block {number}, of {first.key!r}: {error}") from None
        found.flags.writeable = False  # others read it too
        self.archive.remember(key, found)
        return found

    def reference_of(self, parts: Sequence[Part]) -> Words | None:
        """The same places of the step before, where all of these tensors are there and alike."""
        if self.reference is None:
            return None
        found = matches(self.reference, [self.index.tensors[part.tensor] for part in parts])
        return None if found is None else self.reference.gather(parts, found)

    def source(self) -> Source:
        """As what may be packed again, into another archive or against another step."""

        def read(tensor: int, start: int, nbytes: int) -> bytes:
            word = self.index.tensors[tensor].word
            return self.words(tensor, start // word, nbytes // word).tobytes()

        return Source(self.index.files, self.index.tensors, read)

    def _damaged(self, why: str) -> CheckFailed:
        return CheckFailed(f"{self.name} is damaged: {why}.", hint="another copy; other steps may be whole")


def matches(reference: Step, tensors: Sequence[Tensor]) -> list[int] | None:
    """Positions of the same tensors, of the same dtype and shape, in another step; None where one is missing."""
    found = [reference.by_key.get(tensor.key) for tensor in tensors]
    for i, tensor in zip(found, tensors, strict=True):
        if i is None or (other := reference.index.tensors[i]).dtype != tensor.dtype or other.shape != tensor.shape:
            return None
    return [i for i in found if i is not None]
