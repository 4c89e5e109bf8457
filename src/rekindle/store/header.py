"""The header of a safetensors file: names, dtypes, shapes and places, read without touching the data.

The format: 8 bytes little-endian length, that many bytes of JSON, then the data without holes. Everything a
hostile or torn file can get wrong here is refused with a sentence; tests fuzz this reader against the
`safetensors` library.
"""

from __future__ import annotations

import json
import os
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from rekindle.store.dtypes import BITS, nbytes
from rekindle.store.reading import TORCH, broken, likeness, opened, refuse_pointer, unreadable

PAGE = 4096  # headers are padded to it, so that copies between our files lie alike on their pages
MAX_HEADER = 100_000_000  # bytes; the safetensors library's own limit


class Stored(NamedTuple):
    """A tensor's bytes on disk."""

    path: str
    dtype: str  # safetensors name
    shape: tuple[int, ...]
    offset: int  # from the start of the file
    nbytes: int


def read_header(path: str | Path) -> tuple[dict[str, Stored], dict[str, str]]:
    """Tensors by name, in file order, and the file's metadata. Raises RekindleError naming file and tensor."""
    try:
        with opened(path) as file:
            size = os.fstat(file.fileno()).st_size
            head = file.read(64)
            refuse_pointer(path, head)
            prefix = head[:8]
            length = int.from_bytes(prefix, "little")
            if (seems := likeness(head)) and head[8:9] != b"{":
                hint = "pytorch_model.bin is what transformers calls it" if head.startswith(TORCH) else None
                raise broken(path, f"it is {seems}, not a safetensors file", hint)
            if len(prefix) < 8:
                raise broken(path, f"it is {size} bytes long, too short to be a safetensors file")
            if length > MAX_HEADER:
                raise broken(path, f"its header claims {length} bytes, over the limit of {MAX_HEADER}")
            if 8 + length > size:
                raise broken(path, f"its header claims {length} bytes, but the file has {size}")
            file.seek(8)
            text = file.read(length)
    except OSError as error:
        raise unreadable(path, error) from None
    header = _parse_json(path, text)
    metadata = header.pop("__metadata__", None)
    metadata = {} if metadata is None else metadata
    if not isinstance(metadata, dict) or not all(isinstance(v, str) for v in metadata.values()):
        raise broken(path, "its __metadata__ is not text to text")
    return _places(str(path), header, start=8 + length, end=size), metadata


def _parse_json(path: object, text: bytes) -> dict[str, Any]:
    def no_duplicates(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        result = dict(pairs)
        if len(result) != len(pairs):
            names = [name for name, _ in pairs]
            raise broken(path, f"its header has {next(n for n in names if names.count(n) > 1)!r} twice")
        return result

    try:
        # safetensors headers begin with "{"; Python would also take a BOM, white space, NaN, -0 and half a surrogate
        if text[:1] != b"{":
            raise ValueError("it does not begin with {")
        whole = _whole if b"-" in text else None
        header = json.loads(
            text.decode("utf-8"), object_pairs_hook=no_duplicates, parse_constant=_no_constant, parse_int=whole
        )
        if b"\\u" in text:
            json.dumps(header, ensure_ascii=False).encode("utf-8")
    except (ValueError, RecursionError) as error:
        raise broken(path, f"its header is not JSON ({error})") from None
    return header


def _no_constant(name: str) -> None:
    raise ValueError(f"{name} is not JSON")


def _whole(digits: str) -> int:
    if digits[0] == "-":
        raise ValueError(f"{digits} is negative")
    return int(digits)


def _places(path: str, header: dict[str, Any], start: int, end: int) -> dict[str, Stored]:
    tensors: dict[str, Stored] = {}
    for name, entry in header.items():
        tensors[name] = _place(path, name, entry, start)
    at = start
    in_order = sorted(tensors.items(), key=lambda item: item[1][3:])  # by offset, then by size
    for name, tensor in in_order:
        if tensor.offset != at:
            verb = "overlaps the one before it" if tensor.offset < at else "leaves a hole before it"
            raise broken(path, f"the data of {name!r} {verb}")
        at += tensor.nbytes
    if at != end:
        raise broken(path, f"its tensors end at byte {at}, but the file has {end} (truncated, or bytes too many)")
    return tensors


def _place(path: str, name: str, entry: Any, start: int) -> Stored:
    try:
        dtype, shape, (begin, stop) = entry["dtype"], entry["shape"], entry["data_offsets"]
    except (TypeError, KeyError, ValueError):
        raise broken(path, f"the entry of {name!r} lacks dtype, shape or data_offsets") from None
    if len(entry) != 3:
        raise broken(path, f"the entry of {name!r} has more than dtype, shape and data_offsets")
    if not isinstance(dtype, str) or dtype not in BITS:
        raise broken(path, f"{name!r} has the unknown dtype {dtype!r}")
    if type(shape) is not list:
        raise broken(path, f"{name!r} has no list of whole numbers as its shape")
    for n in (*shape, begin, stop):
        if type(n) is not int or not 0 <= n < 2**63:
            raise broken(path, f"{name!r} has {n!r} in its shape or offsets")
    if 0 in shape and prod(n for n in shape if n) >= 2**63:
        raise broken(path, f"{name!r} {shape} is empty, but its other axes are beyond counting")
    try:
        expected = nbytes(dtype, tuple(shape))
    except ValueError as error:
        raise broken(path, f"{name!r} {dtype} {shape}: {error}") from None
    if stop - begin != expected:
        raise broken(path, f"{name!r} {dtype} {shape} needs {expected} bytes, but has {stop - begin}")
    return Stored(path, dtype, tuple(shape), start + begin, expected)


def build_header(tensors: dict[str, tuple[str, tuple[int, ...]]], metadata: dict[str, str]) -> tuple[bytes, int]:
    """The bytes of a header for {name: (dtype, shape)} in this order, padded to a page; and the length of the data."""
    header: dict[str, Any] = {"__metadata__": metadata} if metadata else {}
    at = 0
    for name, (dtype, shape) in tensors.items():
        size = nbytes(dtype, shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [at, at + size]}
        at += size
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode("utf-8")
    text += b" " * (-(8 + len(text)) % PAGE)
    return len(text).to_bytes(8, "little") + text, at
