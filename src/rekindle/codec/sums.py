"""The CRC32 that torch's zips keep of each storage, made anew where values were changed before they are packed."""

from __future__ import annotations

import struct
import zlib
from dataclasses import replace

from rekindle.codec.index import is_real
from rekindle.codec.shrunk import Shrunk
from rekindle.codec.source import Source


def summed(given: Source, shrunk: Shrunk) -> Shrunk:
    """`shrunk`, made of `given`, with right sums. Tensors that hold sums must be read when all others have been."""
    sums = _Sums(given, shrunk.source)
    if not sums.places:
        return shrunk

    def read(tensor: int, start: int, nbytes: int) -> bytes:
        data = shrunk.source.read(tensor, start, nbytes)
        if tensor in sums.places:
            return sums.mended(tensor, start, data)
        if tensor in sums.pieces:
            sums.note(tensor, start, data)
        return data

    return replace(shrunk, source=replace(shrunk.source, read=read), last=sums.places)


class _Sums:
    def __init__(self, given: Source, made: Source):
        self.given, self.made = given, made
        floats = {i: places for i, places in given.sums.items() if is_real(given.tensors[i].dtype)}  # others stay
        self.places: dict[int, list[tuple[int, int]]] = {}  # of each holder: where, and whose
        for tensor, places in floats.items():
            for holder, at in places:
                self.places.setdefault(holder, []).append((at, tensor))
        # of each tensor, by first byte: number of bytes, sum of what they were, of what they have become
        self.pieces: dict[int, dict[int, tuple[int, int, int]]] = {tensor: {} for tensor in floats}

    def note(self, tensor: int, start: int, data: bytes) -> None:
        before = zlib.crc32(self.given.read(tensor, start, len(data)))
        self.pieces[tensor][start] = len(data), before, zlib.crc32(data)

    def mended(self, holder: int, start: int, data: bytes) -> bytes:
        """What stands between storages, with the sums that have become others."""
        whole = bytearray(self.made.read(holder, 0, self.made.tensors[holder].nbytes))
        for at, tensor in self.places[holder]:
            before, after = self.of(tensor)
            if whole[at : at + 4] == struct.pack("<I", before):  # torch may have left it 0
                whole[at : at + 4] = struct.pack("<I", after)
        return bytes(whole[start : start + len(data)])

    def of(self, tensor: int) -> tuple[int, int]:
        end, before, after = 0, 0, 0
        for start, (size, was, now) in sorted(self.pieces[tensor].items()):
            assert start == end, "a sum is asked for before its tensor was read"
            before, after, end = _joined(before, was, size), _joined(after, now, size), start + size
        assert end == self.made.tensors[tensor].nbytes
        return before, after


def _joined(first: int, second: int, size: int) -> int:
    """CRC32 of two texts in a row, of theirs and the second's length: it is linear in the state it begins with."""
    zeros = bytes(size)
    return zlib.crc32(zeros, first) ^ zlib.crc32(zeros) ^ second
