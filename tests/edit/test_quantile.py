"""The quantile inverts the distribution, and the parabolas are as near to it as float32 is."""

from __future__ import annotations

import math

import numpy as np
import pytest

from rekindle.edit.quantile import CELLS, EXACT, SHIFT, Parabolas, _log, quantile


def test_quantile_inverts_the_distribution():
    u = np.random.default_rng(0).random(20_000)
    back = np.array([0.5 * math.erfc(-x / math.sqrt(2)) for x in quantile(u)])
    np.testing.assert_allclose(back, u, rtol=1e-13)


def test_quantile_is_finite_and_odd_at_the_ends():
    ends = np.array([2.0**-53, 1 - 2.0**-53, 0.5 - 2.0**-53, 0.5 + 2.0**-53])
    x = quantile(ends)
    assert x[0] == -x[1] == pytest.approx(-8.209536, abs=1e-6)
    assert -x[2] == x[3] == pytest.approx(math.sqrt(2 * math.pi) * 2.0**-53)


def test_logarithm_of_basic_operations():
    x = np.concatenate([np.geomspace(1e-16, 0.5, 10_000), [2.0**-53, 0.5, math.sqrt(0.5)]])
    np.testing.assert_allclose(_log(x), np.log(x), rtol=1e-15, atol=1e-16)


def test_parabolas_are_the_quantile_in_every_cell():
    inside = np.concatenate([[0, 1, (1 << SHIFT) - 1], np.random.default_rng(0).integers(0, 1 << SHIFT, 61)])
    draws = ((np.arange(CELLS)[:, None] << SHIFT) + inside).astype(np.uint32)
    found, exact = np.empty(draws.size, np.float32), quantile((draws.ravel() + 0.5) * 2.0**-32)
    left = Parabolas(draws.size).evaluate(draws.ravel(), found)
    cells = np.unique(left // len(inside))
    assert len(left) == 2 * EXACT * len(inside)
    np.testing.assert_array_equal(cells, [*range(EXACT), *range(CELLS - EXACT, CELLS)])
    found[left] = exact[left]
    assert np.all(np.abs(found - exact) <= 2.0**-22 * np.abs(exact) + 2.0**-33)
