"""Virtual groups: experts of 1/G of the feed-forward's width that together still are whole feed-forwards.

The F hidden units are cut into G shards. A set is one copy of each shard, and the experts of a set share a row of the
router, a prototype: their scores are equal, so the K best experts are whole sets when K is a multiple of the set.

Preserves the parent's function then: each of the K chosen has the weight 1/K on average, so a set of G shards adds up
to 1/G of the feed-forward, and its down-projections are multiplied by G. Where some shards are shared by all tokens,
the others are the set. Two things are said beforehand: G that is no power of two rounds narrow dtypes, and the
paper's spread of the factor over all three matrices is exact only for activations that are homogeneous (not SiLU).

Departures from the paper, with reasons:
- the whole factor on the down-projection by default: it is exact, and the optimizer rescales its state with it;
- routing weights renormalised after the choice: the paper found the opposite order better in training, but with it
  the factor E G^2 / K is right only for a router that says nothing.

Source: He et al. 2024, "Upcycling Large Language Models into Mixture of Experts", arXiv 2410.07524.

E experts   K experts per token   F hidden units   G shards of them   D hidden size
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np

from rekindle.edit import Expr
from rekindle.edit.choose import Chosen
from rekindle.edit.feedforward import FeedForward
from rekindle.errors import RekindleError

MATRICES = ("gate", "up", "down")
ALIGNED = 16  # bytes of a row


def virtual_groups(ffn: FeedForward, experts: int, granularity: int, shared: int, scale: str) -> list[FeedForward]:
    """E experts: the shards from `shared` on, set after set, weighted for sets of G - shared."""
    width, size = ffn.width // granularity, granularity - shared
    by = {"down": float(size)} if scale == "down" else dict.fromkeys(MATRICES, size ** (1 / 3))
    cut = [ffn.units(i * width, (i + 1) * width) for i in range(shared, granularity)]
    one_set = [shard.scaled(by).twin(of=experts // size) for shard in cut]
    return one_set * (experts // size)


def prototypes(rows_CD: Expr, size: int) -> Expr:
    """The router [E, D] of C sets: each of the C rows for all experts of its set."""
    return rows_CD if size == 1 else Chosen(rows_CD, np.repeat(np.arange(rows_CD.shape[0]), size))


def rounds(size: int, dtypes: Sequence[str]) -> bool:
    """Whether multiplying by `size` rounds weights of these dtypes by more than float32 does."""
    return size & (size - 1) != 0 and not set(dtypes) <= {"F32", "F64"}


def indivisible(ffn: FeedForward, experts: int, top_k: int, shards: int, size: int) -> Iterator[RekindleError]:
    """Every reason why these numbers make no whole shards and sets."""
    width, row = ffn.width, ffn["down"].nbytes // ffn["down"].shape[0]
    fitting = [g for g in range(1, 257) if width % g == 0 and (g == 1 or row // g % ALIGNED == 0)]
    hint = f"--granularity {', '.join(map(str, fitting))}"
    if width % shards:
        yield RekindleError(f"{width} hidden units cannot be cut into {shards} equal shards.", hint=hint)
        return  # other shards make other sets
    if shards > 1 and row // shards % ALIGNED:
        what = f"Shards of {width // shards} hidden units are {row // shards} bytes wide, no multiple of {ALIGNED}."
        why = "the grouped kernels that transformers runs experts with take no others"
        yield RekindleError(what, why=why, hint=hint)
    for flag, number in (("experts", experts), ("top-k", top_k)):
        if number % size:
            less, more = number // size * size, -(-number // size) * size
            what = f"--{flag} {number} is no multiple of {size}, the experts that together are one feed-forward."
            why = "part of a feed-forward would be missing, and part counted twice" if flag == "top-k" else None
            yield RekindleError(what, why=why, hint=f"--{flag} {f'{less} or ' if less else ''}{more}")
