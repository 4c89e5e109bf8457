"""Coefficients without a search: closed forms."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekindle.methods.merging import series as merging
from rekindle.methods.merging.post_hoc import exponent
from rekindle.search.cma import directions
from rekindle.search.coefficients import along, ema, lengths, onto, power, rivals, uniform
from rekindle.search.evolution import child, restored
from rekindle.search.problem import Scored

ALPHAS = st.lists(st.floats(-3, 3), min_size=2, max_size=30).map(np.array)
KINDS = st.sampled_from(["one", "convex"])


@given(ALPHAS, KINDS)
def test_the_sum_is_one_after_every_operator(alpha, kind):
    for found in (onto(alpha, kind), restored(alpha, kind)):
        assert abs(found.sum() - 1) < 1e-6
        assert kind == "one" or found.min() >= 0
    rng = np.random.default_rng(alpha.size)
    pool = [Scored(0.0, onto(alpha, kind)), Scored(1.0, uniform(alpha.size))]
    for _ in range(20):
        born = child(pool, rng, alpha.shape, kind)
        assert abs(born.sum() - 1) < 1e-6
        assert kind == "one" or born.min() >= 0
        groups = child([Scored(0.0, born), *pool], rng, (3, alpha.size), kind)  # bred from what all groups share
        assert np.abs(groups.sum(axis=1) - 1).max() < 1e-6
        assert kind == "one" or groups.min() >= 0


@given(st.integers(2, 6).flatmap(lambda n: st.lists(st.lists(st.floats(-3, 3), min_size=n, max_size=n), min_size=1)))
def test_groups_are_projected_one_by_one(rows):
    alpha = np.array(rows)
    for kind in ("one", "convex"):
        assert np.array_equal(onto(alpha, kind), np.stack([onto(own, kind) for own in alpha]))
        assert np.array_equal(along(alpha, kind), np.stack([along(own, kind) for own in alpha]))
        assert np.array_equal(restored(alpha, kind), np.stack([restored(own, kind) for own in alpha]))


@given(ALPHAS)
def test_onto_is_the_nearest(alpha):
    """Of a projection: nothing on the set lies nearer, and what lies on it stays."""
    rng = np.random.default_rng(0)
    for kind in ("one", "convex"):
        found = onto(alpha, kind)
        assert np.allclose(onto(found, kind), found, atol=1e-12)
        for other in rng.dirichlet(np.ones(alpha.size), 20):
            assert np.linalg.norm(alpha - found) <= np.linalg.norm(alpha - other) + 1e-9
    assert onto(alpha, "free") is alpha
    assert abs(along(alpha, "one").sum()) < 1e-9 * alpha.size * 3


def test_an_ema_is_the_recursive_one_up_to_its_first_term():
    """alpha_k = (1 - g) g^(K - k), and what is left at the beginning spread over all."""
    gamma, count = 0.7, 12
    recursive = np.array(merging.ema(count, gamma))
    recursive[0] = (1 - gamma) * gamma ** (count - 1)
    assert np.allclose(ema(count, gamma), recursive / recursive.sum())
    assert ema(count, gamma).sum() == pytest.approx(1)


def test_a_power_function_s_width():
    """EDM2's table: sigma_rel .05 and .10 are the exponents 16.97 and 6.94."""
    assert exponent(0.05) == pytest.approx(16.97, abs=0.01)
    assert exponent(0.10) == pytest.approx(6.94, abs=0.01)
    for sigma in (0.03, 0.1, 0.2):
        g = exponent(sigma)
        assert np.sqrt(g + 1) / ((g + 2) * np.sqrt(g + 3)) == pytest.approx(sigma)
    steps = np.arange(1, 2001)
    weights = power(steps, 0.1)
    mean = float(weights @ steps)
    spread = np.sqrt(weights @ (steps - mean) ** 2)
    assert spread / steps[-1] == pytest.approx(0.1, abs=0.002)


@pytest.mark.parametrize("count", [2, 3, 7, 40])
def test_rivals_are_averages_of_any_length(count):
    found = rivals([f"step-{k}" for k in range(1, count + 1)], list(range(1, count + 1)))
    assert list(found) == ["last", "single", "uniform", "EMA", "WSM", "post-hoc EMA"]
    for kind, some in found.items():
        for name, alpha in some.items():
            assert alpha.shape == (count,), (kind, name)
            assert alpha.sum() == pytest.approx(1), (kind, name)
            assert alpha.min() >= -1e-12, (kind, name)
    assert len(found["single"]) == count
    assert lengths(count)[-1] == count


def test_directions_keep_the_sum_and_turn_nothing_else():
    for count in (2, 5, 17):
        turn = directions(count, "one")
        assert np.allclose(turn.T @ turn, np.eye(count - 1))
        assert np.allclose(turn.sum(axis=0), 0)
