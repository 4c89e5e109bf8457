"""Frequencies of symbols, rounded to sum to 4096, and their bytes.

tables := map, then each table.   map := number of contexts with a table of their own u8, those contexts u8 ...;
all others share the first table.   table := lowest symbol u8, highest u8, a varint for each from one to the other.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rekindle.codec.bits import Broken

TOTAL = 4096
FEW = 512  # symbols below which a context gets no table of its own
MOST = 64  # contexts with a table of their own

Freqs = NDArray[np.uint16]


def round_to_total(counts: NDArray[np.uint32]) -> Freqs:
    """Frequencies [tables, 256] for counts [tables, 256]: each symbol that occurs has at least 1."""
    freqs = np.zeros(counts.shape, np.int64)
    for row, found in zip(freqs, counts.astype(np.int64), strict=True):
        total = int(found.sum())
        if not total:
            row[0] = TOTAL
            continue
        row[:] = np.where(found > 0, np.maximum((found * TOTAL + total // 2) // total, 1), 0)
        while excess := int(row.sum()) - TOTAL:
            most = int(row.argmax())
            row[most] -= min(excess, int(row[most]) // 2)
    return freqs.astype(np.uint16)


def own_tables(counts: NDArray[np.uint32]) -> NDArray[np.uint8]:
    """The contexts worth a table, of counts [256, 256]: the most frequent ones."""
    per_context = counts.sum(axis=1)
    often = np.argsort(-per_context.astype(np.int64), kind="stable")[:MOST]
    return np.sort(often[per_context[often] >= FEW]).astype(np.uint8)


def table_of(own: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Context -> table [256]."""
    found = np.zeros(256, np.uint8)
    found[own] = np.arange(1, len(own) + 1)
    return found


def merge(counts: NDArray[np.uint32], own: NDArray[np.uint8]) -> NDArray[np.uint32]:
    """Counts [1 + own, 256]: the shared table, then those of their own."""
    shared = counts.sum(axis=0) - counts[own].sum(axis=0)
    return np.vstack([shared[None], counts[own]]).astype(np.uint32)


def write_tables(own: NDArray[np.uint8], freqs: Freqs) -> bytes:
    out = bytearray([len(own), *own.tolist()])
    for row in freqs.tolist():
        used = [symbol for symbol, freq in enumerate(row) if freq]
        out += bytes([used[0], used[-1]])
        for freq in row[used[0] : used[-1] + 1]:
            out += bytes([freq]) if freq < 128 else bytes([freq & 127 | 128, freq >> 7])
    return bytes(out)


def read_tables(data: memoryview) -> tuple[NDArray[np.uint8], Freqs, int]:
    """Contexts with their own table, frequencies, and how many bytes that took; raises Broken."""
    try:
        number, at = data[0], 1
        own = np.frombuffer(data[at : at + number], np.uint8)
        at += number
        if len(own) != number or (np.diff(own.astype(int)) <= 0).any():
            raise Broken("its contexts are out of order")
        freqs = np.zeros((number + 1, 256), np.int64)
        for row in freqs:
            lowest, highest = data[at], data[at + 1]
            at += 2
            for symbol in range(lowest, highest + 1):
                row[symbol] = data[at]
                at += 1
                if row[symbol] > 127:
                    row[symbol] += (data[at] << 7) - 128
                    at += 1
    except IndexError:
        raise Broken("its tables are cut off") from None
    if (freqs.sum(axis=1) != TOTAL).any():
        raise Broken("its frequencies do not sum to 4096")
    return own, freqs.astype(np.uint16), at
