"""The mathematics of pooling heads: what is pooled without loss, what is least lossy, which heads are alike."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekindle.methods.alignment import Maps, aligned, first, groups_of_alike, lost, mean

seeds = st.integers(0, 10_000)
shapes = st.tuples(st.integers(1, 4), st.sampled_from([2, 4, 6]))  # members, head dim


def definite(random, count, size):
    a = random.standard_normal((count, size, size + 2))
    return a @ a.transpose(0, 2, 1)


def moment_of(rows_NAD):
    """E[y_i y_j'] for white inputs [N, A, N, A]."""
    return np.einsum("iad,jbd->iajb", rows_NAD, rows_NAD)


def plane_maps(random, count, size, rotary_dim):
    """Maps that RoPE on the first `rotary_dim` dims lets pass: rotations and scales of planes, anything else beyond."""
    half = rotary_dim // 2
    maps = np.zeros((count, size, size))
    for n in range(count):
        for i in range(half):
            angle, scale = random.uniform(0, 2 * np.pi), random.uniform(0.5, 2)
            c, s = scale * np.cos(angle), scale * np.sin(angle)
            maps[n][np.ix_([i, i + half], [i, i + half])] = [[c, -s], [s, c]]
        rest = np.eye(size - rotary_dim) + random.standard_normal((size - rotary_dim,) * 2) / (2 * size)
        maps[n][rotary_dim:, rotary_dim:] = rest
    return maps


def case(seed, members, size):
    random = np.random.default_rng(seed)
    rows = random.standard_normal((members, size, 3 * size))
    return random, moment_of(rows), definite(random, members, size)


@given(seeds, shapes, st.data())
def test_heads_equal_up_to_free_maps_are_pooled_without_loss(seed, shape, data):
    members, size = shape
    rotary_dim = data.draw(st.sampled_from([0, 2, size]))
    random = np.random.default_rng(seed)
    head = random.standard_normal((size, 3 * size))
    rows = plane_maps(random, members, size, rotary_dim) @ head
    weight = definite(random, members, size)
    maps = aligned(moment_of(rows), weight, rotary_dim)
    pooled = np.einsum("nab,nbd->ad", maps.encode_NAA, rows)
    np.testing.assert_allclose(maps.decode_NAA @ pooled, rows, atol=1e-8)
    assert lost(moment_of(rows), weight, maps).lost == pytest.approx(
        0, abs=1e-9 * lost(moment_of(rows), weight, maps).there
    )


@given(seeds, shapes, st.booleans())
def test_equal_heads_are_pooled_as_they_are(seed, shape, rope):
    members, size = shape
    random = np.random.default_rng(seed)
    rows = np.repeat(random.standard_normal((1, size, 3 * size)), members, axis=0)
    weight = definite(random, members, size)
    maps = aligned(moment_of(rows), weight, size if rope else 0)
    np.testing.assert_allclose(maps.decode_NAA, mean(members, size).decode_NAA, atol=1e-7)
    np.testing.assert_allclose(maps.encode_NAA.sum(axis=0), np.eye(size), atol=1e-7)


@given(seeds, shapes, st.data())
def test_what_is_lost_is_what_samples_lose(seed, shape, data):
    """The formula, against inputs whose second moment is exactly the identity."""
    members, size = shape
    random = np.random.default_rng(seed)
    rows = random.standard_normal((members, size, 5))
    weight = definite(random, members, size)
    maps = Maps(*random.standard_normal((2, members, size, size)))
    y_XNA = np.einsum("nad,xd->xna", rows, np.eye(5))  # the sum over unit inputs is E[x x'] = 1
    z_XA = np.einsum("nab,xnb->xa", maps.encode_NAA, y_XNA)
    back_XNA = np.einsum("nab,xb->xna", maps.decode_NAA, z_XA)

    def weighed(e):
        return np.einsum("xna,nab,xnb->", e, weight, e)

    found = lost(moment_of(rows), weight, maps)
    np.testing.assert_allclose(found, [weighed(y_XNA - back_XNA), weighed(back_XNA), weighed(y_XNA)], rtol=1e-6)


@given(seeds, shapes, st.data())
def test_no_free_maps_lose_less(seed, shape, data):
    members, size = shape
    rotary_dim = data.draw(st.sampled_from([0, 2, size]))
    random, moment, weight = case(seed, members, size)
    if rotary_dim:  # queries come at all angles, so a plane counts as a whole
        weight = weight * np.eye(size)
        half = rotary_dim // 2
        weight[:, np.arange(half) + half, np.arange(half) + half] = weight[:, np.arange(half), np.arange(half)]
    best = aligned(moment, weight, rotary_dim)
    least = lost(moment, weight, best)
    ridge = 4e-3 * least.there  # directions that nothing reads count a little
    for other in (mean(members, size), first(members, size)):
        assert least.lost <= lost(moment, weight, other).lost + ridge
    nudge = 0.1 * plane_maps(random, members, size, rotary_dim)
    nudged = Maps(best.encode_NAA, best.decode_NAA + nudge)
    assert least.lost <= lost(moment, weight, nudged).lost + ridge
    pooled = plane_maps(random, members, size, rotary_dim)
    assert least.lost <= lost(moment, weight, Maps(best.encode_NAA + 0.1 * pooled, best.decode_NAA)).lost + ridge


@given(seeds, shapes, st.floats(0, 6))
def test_maps_under_rope_pass_through_its_turns(seed, shape, position):
    members, size = shape
    _, moment, weight = case(seed, members, size)
    angles = position * 10000 ** (-np.arange(size // 2) / (size // 2))
    cos, sin = np.diag(np.cos(angles)), np.diag(np.sin(angles))
    rope = np.block([[cos, -sin], [sin, cos]])
    for side in aligned(moment, weight, size):
        np.testing.assert_allclose(side @ rope, rope @ side, atol=1e-9)


@given(seeds, shapes, st.booleans())
def test_decoders_are_of_unit_size(seed, shape, rope):
    """Queries stay as large as they were, so that training goes on from weights of the size it knows."""
    members, size = shape
    _, moment, weight = case(seed, members, size)
    decode = aligned(moment, weight, size if rope else 0).decode_NAA
    np.testing.assert_allclose((decode.transpose(0, 2, 1) @ decode).mean(axis=0), np.eye(size), atol=1e-7)


@pytest.mark.parametrize("rotary_dim", [0, 2, 4])
def test_heads_of_zeros_are_pooled_to_zeros(rotary_dim):
    moment, weight = np.zeros((2, 4, 2, 4)), np.zeros((2, 4, 4))
    maps = aligned(moment, weight, rotary_dim)
    assert all(np.isfinite(side).all() for side in maps)
    assert lost(moment, weight, maps) == (0, 0, 0)


def test_a_head_that_nothing_reads_does_not_count():
    random, moment, weight = case(0, 2, 4)
    weight[1] = 0
    maps = aligned(moment, weight, 0)
    kept = lost(moment, weight, maps)
    assert kept.lost < 1e-4 * kept.there


# -- which heads are alike -----------------------------------------------------------------------------------------


@given(seeds, st.sampled_from([(4, 2), (6, 2), (6, 3), (12, 4), (8, 1)]))
def test_planted_groups_are_found(seed, counts):
    heads, groups = counts
    random = np.random.default_rng(seed)
    planted = random.permutation(np.arange(heads) % groups)
    cost = np.where(planted[:, None] == planted, 0.1, 1.0) * random.uniform(0.9, 1.1, (heads, heads))
    cost = np.triu(cost, 1) + np.triu(cost, 1).T
    found = groups_of_alike(cost, groups, seed=0)
    expected = sorted(np.flatnonzero(planted == group).tolist() for group in range(groups))
    assert found.tolist() == expected


@given(seeds)
def test_groups_are_the_best_there_are_for_few_heads(seed):
    """Six heads in three pairs: all 15 ways."""
    random = np.random.default_rng(seed)
    cost = np.triu(random.uniform(0, 1, (6, 6)), 1)
    cost += cost.T
    found = groups_of_alike(cost, 3, seed=0)
    ways = ([(0, a), *rest] for a in range(1, 6) for rest in _pairs(sorted(set(range(1, 6)) - {a})))
    assert sum(cost[i, j] for i, j in found) == pytest.approx(min(sum(cost[i, j] for i, j in way) for way in ways))


def _pairs(four):
    a = four[0]
    return [[(a, b), tuple(c for c in four if c not in (a, b))] for b in four[1:]]


def test_the_same_seed_finds_the_same_groups():
    cost = np.random.default_rng(0).uniform(0, 1, (16, 16))
    cost = np.triu(cost, 1) + np.triu(cost, 1).T
    again = [groups_of_alike(cost, 4, seed=7).tolist() for _ in range(2)]
    assert again[0] == again[1]
    assert sorted(itertools.chain(*again[0])) == list(range(16))
