"""Chosen rows and columns against numpy's, by any cut; gathered rows; copies with and without a past."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_expressions import Memory, expressions, moments_of, whole

from rekindle.edit.arithmetic import Fresh, Normal, Scale, Twin
from rekindle.edit.choose import Chosen
from rekindle.edit.expressions import Leaf
from rekindle.edit.joining import beside, joined
from rekindle.edit.measure import Statistics
from rekindle.store.dtypes import from_float
from rekindle.store.header import Stored


@given(st.data())
def test_rows_of_anything_in_any_order(data):
    reader = Memory()
    x, array = data.draw(expressions(reader))
    index = np.array(data.draw(st.lists(st.integers(0, len(array) - 1), min_size=1, max_size=12)))
    chosen = Chosen(x, index)
    step = data.draw(st.integers(1, len(index)))
    np.testing.assert_array_equal(whole(chosen, reader, step), array[index])
    again = index[::-1] % len(index)
    np.testing.assert_array_equal(whole(Chosen(chosen, again), reader, step), array[index][again])


@given(st.data())
def test_columns_of_anything_in_any_order(data):
    reader = Memory()
    x, array = data.draw(expressions(reader))
    index = np.array(data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=9)))
    chosen = Chosen(x, index, axis=1)
    np.testing.assert_array_equal(whole(chosen, reader, data.draw(st.integers(1, len(array)))), array[:, index])
    rows = np.arange(len(array))[::-1]
    np.testing.assert_array_equal(whole(Chosen(chosen, rows), reader), array[:, index][rows])


def test_units_of_a_vector():
    reader = Memory()
    array = np.arange(7, dtype=np.float32)
    index = np.array([6, 0, 0, 3])
    np.testing.assert_array_equal(whole(Chosen(reader.leaf(array), index), reader, 3), array[index])


def test_neighbours_are_read_together():
    reader = Memory()
    leaf = reader.leaf(np.arange(40, dtype=np.float32).reshape(10, 4))
    reads = []
    reader.read = lambda path, offset, nbytes, old=reader.read: (reads.append(nbytes), old(path, offset, nbytes))[1]
    whole(Chosen(leaf, np.array([4, 9, 3, 5, 8, 4])), reader)
    assert reads == [3 * 16, 2 * 16], "rows 3 to 5, then 8 and 9"


def test_new_rows_are_drawn_where_they_are_wanted():
    """As Drop-Upcycling mixes them: the same values as drawn whole."""
    reader = Memory()
    array = np.ones((6, 4), np.float32)
    new = Normal("F32", (3, 4), 0.5, 0, "new")
    index = np.array([5, 7, 0, 6, 8, 2])
    drawn = np.concatenate([array, whole(new, reader)])
    mixed = Chosen(joined([reader.leaf(array), new]), index)
    np.testing.assert_array_equal(whole(mixed, reader, 2), drawn[index])
    side = Normal("F32", (4, 3), 0.5, 0, "side")
    across = Chosen(beside([reader.leaf(array.T.copy()), side]), index, axis=1)
    drawn = np.concatenate([array.T, whole(side, reader)], axis=1)
    np.testing.assert_array_equal(whole(across, reader, 3), drawn[:, index])


# -- moments ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda x: Chosen(x, np.array([2, 0, 2])), lambda g: g[[2, 0, 2]]),
        (lambda x: Chosen(x, np.array([3, 1]), axis=1), lambda g: g[:, [3, 1]]),
        (lambda x: Chosen(Twin(x, 4), np.array([1])), lambda g: g[[1]] / 4),
        (lambda x: Fresh(x), lambda g: 0 * g),
        (lambda x: Twin(Fresh(x), 2), lambda g: 0 * g),
        (lambda x: Twin(Scale(x, 8.0), 2), lambda g: g / 16),
    ],
    ids=["rows", "columns", "twin", "fresh", "fresh twin", "scaled twin"],
)
def test_moment_rules_of_units(build, expected):
    reader = Memory()
    g = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    first, second = moments_of(build(reader.leaf(np.zeros((3, 4), np.float32))), reader, g)
    np.testing.assert_allclose(first, expected(g), rtol=1e-6)
    np.testing.assert_allclose(second, expected(g) ** 2, rtol=1e-6)


@pytest.mark.parametrize("axis", [0, 1])
def test_new_units_are_empty_beside_moments_of_any_dtype(axis):
    reader = Memory()
    g = np.arange(1, 17, dtype=np.float32).reshape(4, 4)
    stored = reader.leaf(from_float(g, "BF16"), "BF16")
    new = Normal("BF16", (2, 4) if axis == 0 else (4, 2), 1.0, 0, "new")
    x = reader.leaf(np.zeros((4, 4), np.uint16), "BF16")
    mixed = Chosen((beside if axis else joined)([x, new]), np.array([4, 2, 5, 0]), axis)
    moment = mixed.moment(1, lambda leaf, order: stored)
    assert moment.dtype == "F32"
    kept = np.take(g, [2, 0], axis)
    np.testing.assert_array_equal(np.take(whole(moment, reader), [1, 3], axis), kept)
    assert not np.take(whole(moment, reader), [0, 2], axis).any()


def test_copies_are_the_bytes_and_are_measured_once():
    reader = Memory()
    leaf = reader.leaf(np.ones((2, 2), np.float32))
    for copy in (Twin(leaf, 3), Fresh(leaf), Twin(Fresh(leaf), 3)):
        assert copy.spans() == leaf.spans()
        assert Statistics(copy).name == Statistics(leaf).name
        assert type(copy.transposed()) is type(copy)


# -- statistics ------------------------------------------------------------------------------------------------


@given(st.integers(1, 40), st.integers(1, 50), st.floats(-3, 3), st.floats(0.1, 3), st.sampled_from(["F32", "BF16"]))
def test_statistics_are_numpys(rows, columns, mean, std, dtype):
    reader = Memory()
    array = (np.random.default_rng(rows).standard_normal((rows, columns)) * std + mean).astype(np.float32)
    stored = from_float(array, dtype)
    values = array if dtype == "F32" else (stored.astype(np.uint32) << 16).view(np.float32)
    found = Statistics(reader.leaf(stored, dtype)).find(reader, None)
    assert found["mean"] == pytest.approx(values.mean(dtype=np.float64), rel=1e-6, abs=1e-6)
    assert found["std"] == pytest.approx(values.std(dtype=np.float64), rel=1e-5, abs=1e-6)


@pytest.mark.parametrize("shape", [(3, 1 << 16), (1 << 17, 2), (200_000,)])
def test_statistics_of_tensors_larger_than_a_look(shape):
    reader = Memory()
    array = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    found = Statistics(reader.leaf(array)).find(reader, None)
    assert found["std"] == pytest.approx(array.std(dtype=np.float64), rel=1e-6)


def test_values_that_are_none_do_not_count():
    """They are reported where they are written; noise must not become NaN all over the tensor for one of them."""
    reader = Memory()
    array = np.arange(12, dtype=np.float32).reshape(3, 4)
    array[1] = [np.nan, np.inf, -np.inf, np.nan]
    found = Statistics(reader.leaf(array)).find(reader, None)
    finite = array[np.isfinite(array)]
    assert (found["mean"], found["std"]) == (pytest.approx(finite.mean()), pytest.approx(finite.std()))
    nothing = Statistics(reader.leaf(np.full((2, 2), np.nan, np.float32))).find(reader, None)
    assert (nothing["mean"], nothing["std"]) == (0, 0)


def test_statistics_look_at_little_at_a_time():
    reads = []

    class Endless:
        def read(self, path, offset, nbytes):
            reads.append(nbytes)
            return bytes(nbytes)

    Statistics(Leaf("x", Stored("x", "BF16", (5000, 4096), 0, 5000 * 4096 * 2))).find(Endless(), None)
    assert sum(reads) == 5000 * 4096 * 2
    assert max(reads) <= 1 << 20
