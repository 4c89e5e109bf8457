"""What the context model saves: the bits of an archive's weights and moments, beside those of order-0 coding.

Order 0 knows how often each symbol occurs in its tensor and nothing else; of values that are coded as they are, the
symbols are the bytes of each place.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from rekindle.codec.archive import Archive, Step
from rekindle.codec.block import Codec
from rekindle.codec.kernel import kernel
from rekindle.codec.layout import FIRST, SECOND
from rekindle.codec.palette import read_palette, symbols_of

STREAMS = ("weights", "exp_avg", "exp_avg_sq")


def measure(archive: Path) -> dict[str, Any]:
    """{"raw", "bytes", "streams": {stream: {"values", "order0", "coded"}}} of all steps but keyframes; bits."""
    found = {name: {"values": 0, "order0": 0.0, "coded": 0} for name in STREAMS}
    with Archive(archive) as steps:
        links = [steps[name] for name in steps if steps[name].reference is not None]
        for step in links:
            counts: dict[int, np.ndarray] = {}
            for number, tensor, coded in symbols(step):
                held = counts.setdefault(tensor, np.zeros((len(coded), 256), np.int64))
                held += np.stack([np.bincount(row, minlength=256) for row in coded])
                stream = found[stream_of(step.index.tensors[tensor].key)]
                stream["values"] += coded.shape[1]
                stream["coded"] += 8 * step.index.blocks[number].nbytes
            for tensor, held in counts.items():
                found[stream_of(step.index.tensors[tensor].key)]["order0"] += entropy(held)
        return {
            "raw": sum(step.entry.raw for step in links),
            "bytes": sum(step.entry.nbytes + step.entry.index.nbytes for step in links),
            "streams": found,
        }


def stream_of(key: str) -> str:
    return "exp_avg_sq" if key.endswith(SECOND) else "exp_avg" if key.endswith(FIRST) else "weights"


def entropy(counts: np.ndarray) -> float:
    """Bits of all symbols, each coded by its share of its row [rows, symbols]."""
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    return float(-(counts * np.log2(np.where(shares > 0, shares, 1.0))).sum())


def symbols(step: Step) -> Iterator[tuple[int, int, np.ndarray]]:
    """Number, tensor and symbols [places, n] of each block of floats that one tensor has to itself."""
    index = step.index
    for number, entry in enumerate(index.blocks):
        tensor = entry.parts[0].tensor
        if len(entry.parts) > 1 or index.tensors[tensor].dtype != "F32":
            continue  # small tensors, and files
        data = step.archive.read(step.entry.offset + entry.offset, entry.nbytes)
        values = step.block(number)
        if data[0] == Codec.PALETTE:
            palette, origin = read_palette(memoryview(data)[1:])
            reference = step.reference_of(entry.parts) if origin else None
            yield number, tensor, symbols_of(values, palette, reference)[None]
        else:
            top, rest = kernel().split(values)
            yield number, tensor, np.concatenate([top[None], rest])
