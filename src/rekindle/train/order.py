"""The order in which training sees its text, computed on the spot, never held or stored; and what else is drawn."""

from __future__ import annotations

import hashlib
import math

import numpy as np

_STEP = np.uint64(0x9E3779B97F4A7C15)  # of splitmix64


def sample_windows(first: int, count: int, windows: int, seed: int) -> np.ndarray:
    """Which window each of the samples `first` to `first + count` of an endless order reads [count].

    A pure function of its arguments: epoch e is a permutation of all windows keyed by (seed, e), so that a run
    continues anywhere from its step alone, and any rank can read its own share.
    """
    sample = np.arange(first, first + count, dtype=np.uint64)
    epochs, place = np.divmod(sample, np.uint64(windows))
    order = np.empty(count, dtype=np.int64)
    for epoch in np.unique(epochs):
        chosen = epochs == epoch
        order[chosen] = permuted(place[chosen], windows, (seed, int(epoch)))
    return order


def permuted(index: np.ndarray, size: int, key: tuple[int, ...]) -> np.ndarray:
    """Where a keyed permutation of range(size) sends each index.

    A four-round Feistel network on pairs (left, right) of [0, a) x [0, b) with a * b just above `size`, walked along
    its cycle until it is back below `size` (Black and Rogaway 2002, "Ciphers with arbitrary finite domains").
    """
    b = math.isqrt(size - 1) + 1
    a = -(-size // b)
    round_keys = np.frombuffer(hashlib.blake2b(repr(key).encode(), digest_size=32).digest(), dtype="<u8")

    def encrypt(x: np.ndarray) -> np.ndarray:
        left, right = np.divmod(x, np.uint64(b))
        for number, round_key in enumerate(round_keys):
            if number % 2 == 0:
                left = (left + (_mixed(right + round_key) >> np.uint64(1))) % np.uint64(a)
            else:
                right = (right + (_mixed(left + round_key) >> np.uint64(1))) % np.uint64(b)
        return left * np.uint64(b) + right

    out = encrypt(index.astype(np.uint64))
    while (outside := out >= size).any():
        out[outside] = encrypt(out[outside])
    return out.astype(np.int64)


def drawn(seed: int, rows: np.ndarray, width: int) -> np.ndarray:
    """Random words [n, width], uint64: those of a row are a function of (seed, row), whatever rows are beside it."""
    key = np.frombuffer(hashlib.blake2b(repr(seed).encode(), digest_size=8).digest(), dtype="<u8")
    states = _mixed(key + rows.astype(np.uint64) * _STEP)
    return _mixed(states[:, None] + np.arange(1, width + 1, dtype=np.uint64) * _STEP)


def _mixed(x: np.ndarray) -> np.ndarray:
    """The finaliser of splitmix64 (Steele et al. 2014): every input bit reaches every output bit."""
    x = (x ^ (x >> np.uint64(30))) * np.uint64(0xBF58476D1CE4E5B9)
    x = (x ^ (x >> np.uint64(27))) * np.uint64(0x94D049BB133111EB)
    return x ^ (x >> np.uint64(31))
