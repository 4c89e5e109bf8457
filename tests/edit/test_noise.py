"""Noise is a function of (seed, key, position), and has the distribution it should."""

from __future__ import annotations

import hashlib
import itertools
import math
from collections import Counter

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekindle.edit import noise
from rekindle.edit.noise import choice, normal_block, permutation, uniform_block

BLOCKS = pytest.mark.parametrize("block", [normal_block, uniform_block])
PAST_TWO_CHUNKS = 2 * noise.CHUNK + 1001
DIGEST = "56435c5fab75158c4559d968013b6f837f8c043b8aa224d531a95463b12d00a8"


@BLOCKS
@given(lo=st.integers(0, PAST_TWO_CHUNKS), length=st.integers(0, PAST_TWO_CHUNKS))
def test_any_block_is_a_cut_of_the_whole(block, lo, length):
    whole = block(3, "layer/router", 0, 2 * PAST_TWO_CHUNKS)
    cut = block(3, "layer/router", lo, lo + length)
    assert cut.dtype == np.float32
    np.testing.assert_array_equal(cut, whole[lo : lo + length])


@BLOCKS
@pytest.mark.parametrize("chunk", [8, 10, 4096])
def test_chunks_leave_no_trace(block, chunk, monkeypatch):
    whole = block(3, "k", 5, 10_000)
    monkeypatch.setattr(noise, "CHUNK", chunk)
    np.testing.assert_array_equal(block(3, "k", 5, 10_000), whole)


def test_positions_far_out_have_noise_too():
    far = 10**15 + 3
    np.testing.assert_array_equal(normal_block(0, "k", far, far + 50)[10:], normal_block(0, "k", far + 10, far + 50))


def test_seed_key_and_use_name_the_stream():
    names = list(itertools.product((0, 1), ("a", "b")))
    assert len({normal_block(*name, 0, 100).tobytes() for name in names}) == 4
    assert len({permutation(*name, 100).tobytes() for name in names}) == 4
    normal, uniform = normal_block(0, "a", 0, 10_000), uniform_block(0, "a", 0, 10_000)
    assert abs(np.corrcoef(normal, uniform)[0, 1]) < 4 / math.sqrt(10_000)


def test_moments_and_tails_are_gaussian():
    z = normal_block(0, "moments", 0, 1_000_000).astype(np.float64)
    n = math.sqrt(len(z))
    assert abs(z.mean()) < 4 / n
    assert abs(z.var() - 1) < 4 * math.sqrt(2) / n
    assert abs((z**3).mean()) < 4 * math.sqrt(15) / n
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96) / n
    for x in (0.5, 1, 2, 3):
        assert_as_rare_as(np.count_nonzero(abs(z) > x), len(z), math.erfc(x / math.sqrt(2)))


def test_neighbours_know_nothing_of_each_other():
    z = normal_block(0, "neighbours", 0, 1_000_000).astype(np.float64)
    for values in (z, z**2 - 1):
        for lag in range(1, 10):  # within a word, a counter, and beyond
            product = values[lag:] * values[:-lag]
            assert abs(product.mean()) < 4 * product.std() / math.sqrt(len(product))


def test_distributions_by_kolmogorov_and_smirnov():
    """sqrt(n) times the largest distance exceeds 1.95 once in a thousand streams."""
    n = 200_000
    z, u = np.sort(normal_block(1, "ks", 0, n)), np.sort(uniform_block(1, "ks", 0, n))
    phi = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in z])
    for found in (phi, u):
        above, below = np.arange(1, n + 1) / n - found, found - np.arange(n) / n
        assert math.sqrt(n) * max(above.max(), below.max()) < 1.95
    assert 0 <= u[0] < u[-1] < 1
    np.testing.assert_array_equal(u * 2**24 % 1, 0)


@pytest.mark.slow
def test_rare_values_are_as_rare_as_they_should_be():
    """100 million: 6334 beyond 4 sigma, 57 beyond 5."""
    n, step = 10**8, 10**6
    blocks = (normal_block(0, "tails", lo, lo + step) for lo in range(0, n, step))
    found = np.sum([[np.count_nonzero(side * z > x) for x in (4, 5) for side in (-1, 1)] for z in blocks], axis=0)
    for count, x in zip(found, (4, 4, 5, 5), strict=True):
        assert_as_rare_as(count, n, math.erfc(x / math.sqrt(2)) / 2)


def assert_as_rare_as(count: int, n: int, p: float) -> None:
    assert abs(count - n * p) < 4 * math.sqrt(n * p * (1 - p))


@given(st.integers(0, 2**64), st.integers(0, 300), st.data())
def test_choice_is_the_start_of_a_permutation(seed, n, data):
    k = data.draw(st.integers(0, n))
    order = permutation(seed, "k", n).tolist()
    assert sorted(order) == list(range(n))
    assert choice(seed, "k", n, k).tolist() == sorted(order[:k])


def test_all_orders_are_equally_likely():
    counts = Counter(tuple(permutation(0, f"{i}", 3).tolist()) for i in range(3000))
    assert len(counts) == 6
    assert sum((count - 500) ** 2 / 500 for count in counts.values()) < 20.5  # chi-squared, 5 degrees: 1 in a thousand


def test_equal_draws_keep_their_order(monkeypatch):
    class Source:
        def random_raw(self, n):
            return np.array([5, 1, 5, 1, 5], np.uint64)

    monkeypatch.setattr(noise, "_philox", lambda *_: Source())
    assert permutation(0, "k", 5).tolist() == [1, 3, 0, 2, 4]


def test_bytes_are_those_of_the_first_day():
    """Golden values: noise in published checkpoints can be drawn again."""
    assert normal_block(0, "golden", 5, 8).tolist() == [0.16636039316654205, -1.7357187271118164, -0.6068424582481384]
    assert uniform_block(0, "golden", 5, 8).tolist() == [0.4435451626777649, 0.9595953226089478, 0.9507723450660706]
    assert permutation(0, "golden", 8).tolist() == [2, 4, 0, 3, 6, 5, 1, 7]
    assert choice(0, "golden", 1000, 4).tolist() == [164, 359, 508, 882]
    many = normal_block(0, "golden", 0, 1_000_000)  # through each cell, and far into the tails
    assert hashlib.sha256(many.astype("<f4").tobytes()).hexdigest() == DIGEST
