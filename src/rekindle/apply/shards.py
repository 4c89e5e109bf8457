"""A plan cut into shards, each with its header and offsets fixed before the first byte is written."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path, PurePath

from rekindle.edit.expressions import Expr
from rekindle.store.header import build_header


@dataclass(frozen=True)
class Shard:
    file: str  # inside OUT: "model.safetensors", "optimizer/optimizer-00001-of-00002.safetensors"
    tensors: dict[str, Expr]

    @cached_property
    def nbytes(self) -> int:
        """Bytes of data."""
        return sum(expr.nbytes for expr in self.tensors.values())

    def header(self) -> tuple[bytes, int]:
        """The header's bytes, and the size of the whole file."""
        head, data = build_header({n: (x.dtype, x.shape) for n, x in self.tensors.items()}, {"format": "pt"})
        return head, len(head) + data


def cut(tensors: Mapping[str, Expr], max_bytes: int, stem: str = "model") -> list[Shard]:
    """Shards of at most `max_bytes` of data, in order; a tensor that is larger gets a shard of its own."""
    sizes = [expr.nbytes for expr in tensors.values()]
    if sum(sizes) <= max_bytes or len(sizes) < 2:
        return [Shard(f"{stem}.safetensors", dict(tensors))]
    groups: list[dict[str, Expr]] = [{}]
    size = 0
    for (name, expr), nbytes in zip(tensors.items(), sizes, strict=True):
        if groups[-1] and size + nbytes > max_bytes:
            groups.append({})
            size = 0
        groups[-1][name] = expr
        size += nbytes
    n = len(groups)
    return [Shard(f"{stem}-{i:05d}-of-{n:05d}.safetensors", group) for i, group in enumerate(groups, 1)]


def write_index(shards: Sequence[Shard], folder: Path, stem: str = "model") -> None:
    """The index of several shards; one file needs none."""
    if len(shards) == 1:
        return
    weight_map = {name: PurePath(shard.file).name for shard in shards for name in shard.tensors}
    index = {"metadata": {"total_size": sum(shard.nbytes for shard in shards)}, "weight_map": weight_map}
    (folder / f"{stem}.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")
