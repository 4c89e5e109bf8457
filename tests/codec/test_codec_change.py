"""Changes of weights in memory: near, small, and never taken for those of something else."""

from __future__ import annotations

from contextlib import suppress

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from rekindle.codec import change as changes
from rekindle.codec.bits import Broken
from rekindle.codec.change import change, changed


def moved(known: np.ndarray, seed: int) -> np.ndarray:
    """As an optimizer moves weights."""
    rng = np.random.default_rng(seed)
    return known + (1e-3 * rng.normal(size=known.shape) * rng.gamma(2, 1, known.shape)).astype(np.float32)


def rms(x: np.ndarray) -> float:
    return float(np.sqrt(np.mean(x.astype(np.float64) ** 2)))


def test_two_and_a_half_bits_leave_a_fifth_of_the_change_and_errors_do_not_add_up():
    weights = 0.1 * np.random.default_rng(0).normal(size=50_000).astype(np.float32)
    known = weights.copy()
    for link in range(20):
        before, weights = weights, moved(weights, link)
        message, made = change(weights, known, [20_000, 29_900, 100])
        assert np.array_equal(changed(message, known), made)
        assert np.array_equal(made[-100:], weights[-100:])  # small: to the bit
        assert 1.9 < 8 * len(message) / weights.size < 2.8
        assert rms(made - weights) < 0.3 * rms(weights - before)
        known = made


@given(
    npst.arrays(np.float32, st.integers(1, 400), elements=st.floats(width=32)),
    st.integers(0, 3),
    st.integers(1, 150),
)
def test_what_is_made_is_what_was_told_whatever_the_values(values, seed, cut):
    known = np.random.default_rng(seed).permutation(values)
    sizes = [min(cut, values.size), values.size - min(cut, values.size)]
    message, made = change(values, known, sizes)
    assert np.array_equal(changed(message, known).view("<u4"), made.view("<u4"))
    with np.errstate(all="ignore"):
        unsound = ~np.isfinite(values - known)
    assert np.array_equal(made.view("<u4")[unsound], values.view("<u4")[unsound])


def test_long_tensors_are_coded_in_stretches(monkeypatch):
    monkeypatch.setattr(changes, "STRETCH", 1000)
    known = np.zeros(2500, np.float32)
    message, made = change(moved(known, 0), known, [2500])
    assert np.array_equal(changed(message, known), made)
    assert message.count(bytes([232, 3, 0, 0])) >= 2


def test_where_nothing_moved_nothing_is_said():
    known = moved(np.zeros(100_000, np.float32), 0)
    message, made = change(known.copy(), known, [100_000])
    assert len(message) < 20
    assert np.array_equal(made, known)


@given(st.data())
def test_a_message_that_was_cut_or_changed_is_refused_or_has_the_right_size(data):
    known = np.zeros(300, np.float32)
    message = bytearray(change(moved(known, 1), known, [300])[0])
    for _ in range(data.draw(st.integers(0, 3))):
        message[data.draw(st.integers(0, len(message) - 1))] = data.draw(st.integers(0, 255))
    cut = bytes(message[: data.draw(st.integers(0, len(message)))])
    with suppress(Broken):
        assert changed(cut, known).size == 300


@pytest.mark.parametrize("size", [299, 301])
def test_what_is_known_must_be_what_the_sender_knew(size):
    known = np.zeros(300, np.float32)
    message, _ = change(moved(known, 1), known, [300])
    with pytest.raises(Broken):
        changed(message, np.zeros(size, np.float32))
