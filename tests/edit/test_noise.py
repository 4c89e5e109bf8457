"""Noise is a function of (seed, key, position), and Gaussian."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekindle.edit import noise
from rekindle.edit.noise import normal_block, quantile


@given(st.integers(0, 100_000), st.integers(0, 40_000))
def test_any_block_is_a_cut_of_the_whole(lo, length):
    whole = normal_block(3, "layer/router", 0, 150_000)
    np.testing.assert_array_equal(normal_block(3, "layer/router", lo, lo + length), whole[lo : lo + length])


def test_seed_and_key_name_the_stream():
    streams = [normal_block(seed, key, 0, 100) for seed in (0, 1) for key in ("a", "b")]
    assert len({stream.tobytes() for stream in streams}) == 4


def test_moments_and_tails_are_gaussian():
    z = normal_block(0, "moments", 0, 1_000_000)
    n = math.sqrt(len(z))
    assert abs(z.mean()) < 4 / n
    assert abs(z.var() - 1) < 4 * math.sqrt(2) / n
    assert abs((z**3).mean()) < 4 * math.sqrt(15) / n
    assert abs((z**4).mean() - 3) < 4 * math.sqrt(96) / n
    for x in (0.5, 1, 2, 3):
        p = math.erfc(x / math.sqrt(2))
        assert abs((abs(z) > x).mean() - p) < 4 * math.sqrt(p) / n


def test_quantile_inverts_the_distribution():
    bits = np.random.default_rng(0).integers(0, 2**64, 20_000, dtype=np.uint64)
    u = ((bits >> np.uint64(12)) + 0.5) / 2**52
    back = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in quantile(bits)])
    np.testing.assert_allclose(back, u, rtol=1e-13)


def test_quantile_is_finite_and_odd_at_the_ends():
    ends = np.array([0, 2**64 - 1, 2**63 - 1, 2**63], dtype=np.uint64)
    x = quantile(ends)
    assert x[0] == -x[1] == pytest.approx(-8.209536, abs=1e-6)
    assert abs(x[2]) < 1e-15
    assert abs(x[3]) < 1e-15


def test_logarithm_of_basic_operations():
    x = np.concatenate([np.geomspace(1e-16, 0.5, 10_000), [2.0**-53, 0.5, math.sqrt(0.5)]])
    np.testing.assert_allclose(noise._log(x), np.log(x), rtol=1e-15, atol=1e-16)


def test_bytes_are_those_of_the_first_day():
    """A golden value: noise in published checkpoints can be drawn again."""
    assert normal_block(0, "golden", 5, 8).tolist() == [-0.9863728881447342, -0.06346974402096071, -0.2819760587488223]
