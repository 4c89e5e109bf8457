"""Random values that are a function of (seed, key, position): the same bytes in any order, on any machine.

Philox is a counter-based generator (Salmon et al. 2011), so any block can be drawn on its own. A position has 32 bits
of it, two positions a word; what becomes of the bits is made of integer operations, table look-ups and + - x / and
square roots, which IEEE 754 rounds alike everywhere. Normal values, uniform values and orders of one name (seed, key)
are drawn apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator

import numpy as np
from numpy.typing import NDArray

from rekindle.edit.quantile import Parabolas, quantile

CHUNK = 1 << 15  # values drawn together: even, as a word holds two, and at least 8; their 0.7 MB fit the cache


def normal_block(seed: int, key: str, lo: int, hi: int) -> NDArray[np.float32]:
    """Standard normal values at positions lo to hi of the stream named by (seed, key).

    Each is the quantile x of (draw + 1/2) / 2^32, so |x| < 6.34, to within 2^-22 |x| + 2^-33; where |x| > 2.66, it is
    rounded once, from float64.
    """
    out = np.empty(hi - lo, np.float32)
    parabolas = Parabolas(min(CHUNK, hi - lo))
    tails = []
    for at, draws in _draws("normal", seed, key, lo, hi):
        tail = parabolas.evaluate(draws, out[at : at + len(draws)])
        tails.append((at + tail, draws[tail]))
    if tails:  # together: a few hundred values at a time would cost more than all the others
        where, draws = (np.concatenate(parts) for parts in zip(*tails, strict=True))
        out[where] = quantile((draws + 0.5) * 2.0**-32)
    return out


def uniform_block(seed: int, key: str, lo: int, hi: int) -> NDArray[np.float32]:
    """Multiples of 2^-24 in [0, 1), equally likely, at positions lo to hi of the stream named by (seed, key)."""
    out = np.empty(hi - lo, np.float32)
    for at, draws in _draws("uniform", seed, key, lo, hi):
        out[at : at + len(draws)] = draws >> 8
    out *= 2.0**-24
    return out


def permutation(seed: int, key: str, n: int) -> NDArray[np.intp]:
    """The numbers below n in the order of their draws of 64 bits, the smaller number first where two are equal."""
    return np.argsort(_philox("order", seed, key).random_raw(n), kind="stable")


def choice(seed: int, key: str, n: int, k: int) -> NDArray[np.intp]:
    """k of the numbers below n, ascending: the first k of their permutation."""
    assert 0 <= k <= n, (k, n)
    return np.sort(permutation(seed, key, n)[:k])


def _draws(use: str, seed: int, key: str, lo: int, hi: int) -> Iterator[tuple[int, NDArray[np.uint32]]]:
    """Positions lo to hi in chunks: (offset from lo, draws of 32 bits), the low half of a word before the high half."""
    skip = lo % 8
    source = _philox(use, seed, key, counter=lo // 8)
    for start in range(lo - skip, hi, CHUNK):
        size = min(CHUNK, hi - start)
        words = source.random_raw((size + 1) // 2).astype("<u8", copy=False)
        yield start + skip - lo, words.view("<u4")[skip:size]
        skip = 0


def _philox(use: str, seed: int, key: str, counter: int = 0) -> np.random.Philox:
    digest = hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=16, person=use.encode()).digest()
    return np.random.Philox(key=int.from_bytes(digest, "little"), counter=counter)
