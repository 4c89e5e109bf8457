"""Which values go into a block together.

A large tensor is cut into blocks of 1 to 4 MiB of its own, of whole rows; small ones of one kind share a block: those
whose like is in the reference with each other, and first moments with first moments.
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence

from rekindle.codec.grid import columns_of
from rekindle.codec.index import Part, is_real
from rekindle.codec.source import Tensor

BLOCK = 1 << 21  # bytes; up to twice as many where rows are long, and 4 times that: LARGEST_BLOCK
SMALL = BLOCK // 32

FIRST, SECOND = ".exp_avg", ".exp_avg_sq"


def pairs(tensors: Sequence[Tensor]) -> dict[int, int]:
    """First moments and the second moments that tell of them: tensor -> tensor beside it."""
    at = {tensor.key: i for i, tensor in enumerate(tensors)}
    found = {}
    for i, tensor in enumerate(tensors):
        other = at.get(tensor.key.removesuffix(FIRST) + SECOND) if tensor.key.endswith(FIRST) else None
        if other is not None and (tensors[other].dtype, tensors[other].shape) == (tensor.dtype, tensor.shape):
            found[i] = other
    return found


def layout(
    tensors: Sequence[Tensor], beside: Mapping[int, int], known: Sequence[bool], few: Collection[int] = ()
) -> list[tuple[Part, ...]]:
    """The parts of every block; `known` tells of which tensors the reference has the like.

    Tensors of `few` values never share a block, and have larger ones: four times, since they shrink so much.
    """
    blocks: list[tuple[Part, ...]] = []
    shared: dict[tuple[int, bool, str, bool], list[Part]] = {}
    sizes: dict[tuple[int, bool, str, bool], int] = {}
    for i, tensor in enumerate(tensors):
        if tensor.nbytes > SMALL or i in few:
            pieces = math.ceil(tensor.nbytes / (4 * BLOCK if i in few else BLOCK))
            row = columns_of(tensor.shape, tensor.n)
            row = row if row and tensor.n // row >= pieces else 1
            ends = [tensor.n // row * k // pieces * row for k in range(pieces + 1)]
            blocks += [(Part(i, a, b - a),) for a, b in zip(ends, ends[1:])]
        elif tensor.n:
            kind = (tensor.word, is_real(tensor.dtype), _moment(tensor, i in beside), known[i])
            if sizes.get(kind, 0) + tensor.nbytes > BLOCK:
                blocks.append(tuple(shared.pop(kind)))
                sizes[kind] = 0
            shared.setdefault(kind, []).append(Part(i, 0, tensor.n))
            sizes[kind] = sizes.get(kind, 0) + tensor.nbytes
    return blocks + [tuple(parts) for parts in shared.values()]


def row_of(tensors: Sequence[Tensor], parts: Sequence[Part]) -> int:
    """Values in a row, where a block is whole rows of one matrix; else 0."""
    tensor = tensors[parts[0].tensor]
    row = columns_of(tensor.shape, tensor.n)
    return row if row and len(parts) == 1 and not (parts[0].start % row or parts[0].count % row) else 0


def _moment(tensor: Tensor, first: bool) -> str:
    return "first" if first else "second" if tensor.key.endswith(SECOND) else "file" if tensor.key.endswith(":") else ""
