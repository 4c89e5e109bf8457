"""Safetensors files made by hand, well formed or not, and what the `safetensors` library says of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import safetensors

from rekindle.store.dtypes import BITS
from rekindle.store.header import read_header


def with_header(text: str | bytes, data: bytes = b"", length: int | None = None) -> bytes:
    """A file of this header, whatever it says; `length` is the number written before it."""
    text = text.encode("utf-8", "surrogatepass") if isinstance(text, str) else text
    length = len(text) if length is None else length
    return length.to_bytes(8, "little") + text + data


def one_tensor(**changes: Any) -> bytes:
    """A file of one float32 tensor with parts of its entry changed."""
    entry = {"dtype": "F32", "shape": [2], "data_offsets": [0, 8]} | changes
    return with_header(json.dumps({"a": entry}), b"12345678")


def file_of(tensors: dict[str, tuple[str, tuple[int, ...], bytes]], metadata: dict[str, str] | None = None) -> bytes:
    """A valid file of {name: (dtype, shape, bytes)}."""
    header: dict[str, Any] = {} if metadata is None else {"__metadata__": metadata}
    at = 0
    for name, (dtype, shape, data) in tensors.items():
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + len(data)]}
        at += len(data)
    return with_header(json.dumps(header, ensure_ascii=False), b"".join(data for _, _, data in tensors.values()))


def library(raw: bytes) -> dict[str, tuple[str, tuple[int, ...], bytes]] | None:
    """What the library reads, or None where it refuses."""
    try:
        read = safetensors.deserialize(raw)
    except safetensors.SafetensorError:
        return None
    return {name: (entry["dtype"], tuple(entry["shape"]), bytes(entry["data"])) for name, entry in read}


def ours(raw: bytes, place: Path) -> dict[str, tuple[str, tuple[int, ...], bytes]]:
    """What our reader says of the same bytes; raises RekindleError where it refuses."""
    place.write_bytes(raw)
    return {
        name: (stored.dtype, stored.shape, raw[stored.offset : stored.offset + stored.nbytes])
        for name, stored in read_header(place)[0].items()
    }


DTYPES = sorted(BITS)
