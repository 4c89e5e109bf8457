"""The words that take packed tensors apart and put them together: what is unchanged is a plain copy again."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_expressions import Memory, moments_of, whole

from rekindle.edit.arithmetic import Cast, Fill, Scale, Sum, Twin
from rekindle.edit.expressions import BLOCK, Columns, Rows, Transposed
from rekindle.edit.joining import Beside, Joined, beside, joined
from rekindle.store.dtypes import from_float


def stored(shape, seed=0):
    """(reader, leaf, its array)"""
    reader = Memory()
    array = np.random.default_rng(seed).standard_normal(shape).astype(np.float32)
    return reader, reader.leaf(array), array


@given(st.lists(st.integers(1, 5), min_size=1, max_size=6), st.booleans())
def test_cut_into_rows_and_joined_is_the_tensor(heights, vector):
    _, leaf, _ = stored((sum(heights),) if vector else (sum(heights), 3))
    stops = np.cumsum(heights).tolist()
    parts = [leaf.rows(stop - height, stop) for height, stop in zip(heights, stops, strict=True)]
    assert joined(parts) is leaf
    assert joined([joined(parts[:2]), *parts[2:]]) is leaf


@given(st.integers(1, 4), st.integers(1, 3), st.integers(1, 3))
def test_cut_head_by_head_and_joined_is_the_tensor(heads, size, parts):
    _, leaf, array = stored((heads * parts * size, 4))
    roles = [
        joined([leaf.rows((h * parts + p) * size, (h * parts + p + 1) * size) for h in range(heads)])
        for p in range(parts)
    ]
    reader = stored((heads * parts * size, 4))[0]
    for p, role in enumerate(roles):
        expected = array.reshape(heads, parts, size, 4)[:, p].reshape(heads * size, 4)
        np.testing.assert_array_equal(whole(role, reader, 2), expected)
    assert joined([role.rows(h * size, (h + 1) * size) for h in range(heads) for role in roles]) is leaf


def test_stacks_are_taken_apart_and_stacked_again():
    _, leaf, _ = stored((2, 6, 4))
    parts = [leaf.rows(at, at + 3, (3, 4)) for at in range(0, 12, 3)]
    assert joined(parts, leaf.shape) is leaf
    assert joined(parts[:2]).spans() == leaf.rows(0, 6).spans()
    assert joined(parts).shape == (12, 4)


@st.composite
def trees(draw, reader, depth=4):
    """(expression, the array it means), by the words alone: each may give back something simpler than it was told."""
    if depth == 0:
        array = np.random.default_rng(draw(st.integers(0, 99))).standard_normal(draw(SHAPES)).astype(np.float32)
        return reader.leaf(array), array
    x, a = draw(trees(reader, depth - 1))
    word = draw(st.sampled_from(["rows", "columns", "transposed", "joined", "beside", "scaled", "again"]))
    if word in ("rows", "columns"):
        axis = int(word == "columns")
        lo = draw(st.integers(0, a.shape[axis] - 1))
        hi = draw(st.integers(lo + 1, a.shape[axis]))
        return (x.columns(lo, hi), a[:, lo:hi]) if axis else (x.rows(lo, hi), a[lo:hi])
    if word in ("joined", "beside"):
        axis = int(word == "beside")
        cut = draw(st.integers(0, a.shape[axis]))
        take = x.columns if axis else x.rows
        parts = [take(lo, hi) for lo, hi in ((0, cut), (cut, a.shape[axis])) if lo < hi]
        if draw(st.booleans()):
            parts.reverse()
            a = np.concatenate(np.split(a, [cut], axis)[::-1], axis)
        return (beside(parts) if axis else joined(parts)), a
    if word == "scaled":
        return Scale(x, 2.0), a * np.float32(2)
    if word == "again":
        return joined([x, x]), np.concatenate([a, a])
    return x.transposed(), a.T


SHAPES = st.tuples(st.integers(1, 5), st.integers(1, 5))


@given(st.data())
def test_words_mean_what_arrays_do(data):
    reader = Memory()
    expr, array = data.draw(trees(reader))
    assert expr.shape == array.shape
    np.testing.assert_array_equal(whole(expr, reader, data.draw(st.integers(1, expr.num_rows))), array)
    spans = expr.spans()
    assert spans is None or b"".join(reader.read(*span) for span in spans) == array.tobytes()
    assert whole(expr.moment(1, lambda leaf, order: leaf), reader).shape == array.shape


def test_other_orders_and_tensors_are_not_merged():
    reader, leaf, array = stored((4, 3))
    other = reader.leaf(array + 1)
    first, second = leaf.rows(0, 2), leaf.rows(2, 4)
    swapped = joined([second, first])
    assert isinstance(swapped, Joined)
    np.testing.assert_array_equal(whole(swapped, reader), np.concatenate([array[2:], array[:2]]))
    np.testing.assert_array_equal(
        whole(joined([first, other.rows(2, 4)]), reader), np.concatenate([array[:2], array[2:] + 1])
    )


def test_a_row_that_became_a_vector_stays_one():
    reader, leaf, array = stored((2, 3))
    vectors = [Rows(leaf, 0, 1, (3,)), Rows(leaf, 1, 2, (3,))]
    np.testing.assert_array_equal(whole(joined(vectors), reader), array.reshape(-1))
    np.testing.assert_array_equal(whole(vectors[1].rows(1, 3), reader), array[1, 1:])


def test_rows_of_rows_are_rows_of_the_tensor():
    _, leaf, _ = stored((9, 3))
    inner = leaf.rows(2, 8).rows(1, 5)
    assert isinstance(inner, Rows)
    assert (inner.x, inner.lo, inner.hi) == (leaf, 3, 7)
    assert leaf.rows(0, 9) is leaf
    assert leaf.columns(0, 3) is leaf


@given(st.integers(1, 7), st.integers(1, 7), st.integers(1, 3))
def test_transposed_is_the_transpose_by_any_cut(n, m, step):
    reader, leaf, array = stored((n, m))
    np.testing.assert_array_equal(whole(leaf.transposed(), reader, step), array.T)
    assert leaf.transposed().transposed() is leaf


def test_a_transpose_reads_block_by_block():
    """Never the whole tensor at once: 3 blocks for a tensor of 2.5."""
    reader, leaf, array = stored((5, BLOCK // 2))
    read = []
    reader.read = lambda path, offset, nbytes, old=reader.read: (read.append(nbytes), old(path, offset, nbytes))[1]
    np.testing.assert_array_equal(leaf.transposed().raw(7, 9, reader), array.T[7:9])
    assert read == [4 * BLOCK, 4 * BLOCK, 2 * BLOCK]


def test_stored_transposed_side_by_side_goes_both_ways():
    """As gpt2 stores q, k and v: [in, out] side by side. Untouched it is the tensor; else only columns are read."""
    reader, leaf, array = stored((4, 6))
    roles = [leaf.transposed().rows(at, at + 2) for at in (0, 2, 4)]
    np.testing.assert_array_equal(whole(roles[1], reader), array.T[2:4])
    assert joined(roles).transposed() is leaf
    changed = joined([roles[0], Fill("F32", (2, 4), 7.0), roles[2]]).transposed()
    assert isinstance(changed, Beside)
    assert isinstance(changed.parts[0], Columns)
    expected = array.copy()
    expected[:, 2:4] = 7
    np.testing.assert_array_equal(whole(changed, reader, 3), expected)
    np.testing.assert_array_equal(whole(changed.transposed(), reader, 3), expected.T)
    assert beside([leaf.columns(0, 2), leaf.columns(2, 6)]) is leaf


@pytest.mark.parametrize(
    ("build", "value"),
    [
        (lambda x: Scale(x, 2.0), lambda a: a * 2),
        (lambda x: Sum(x, x), lambda a: a + a),
        (lambda x: Twin(x, 2), lambda a: a),
        (lambda x: Cast(x, "F16"), lambda a: from_float(a, "F16")),
        (lambda x: Fill("F32", x.shape, 3.0), lambda a: a * 0 + 3),
        (lambda x: Columns(x, 1, 3), lambda a: a[:, 1:3]),
        (lambda x: x.rows(1, 3), lambda a: a[1:3]),
    ],
    ids=["scale", "sum", "twin", "cast", "fill", "columns", "rows"],
)
def test_what_is_calculated_value_by_value_is_transposed_first(build, value):
    reader, leaf, array = stored((4, 5))
    turned = build(leaf.transposed()).transposed()
    assert turned.shape == build(leaf.transposed()).shape[::-1]
    np.testing.assert_array_equal(whole(turned, reader, 2), value(array.T).T)
    assert not isinstance(turned, Transposed)
    np.testing.assert_array_equal(whole(build(leaf).transposed(), reader, 2), value(array).T)


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda x: x.transposed(), lambda g: g.T),
        (lambda x: Twin(x, 4).transposed(), lambda g: g.T / 4),
        (lambda x: beside([x.columns(2, 4), x.columns(0, 1)]), lambda g: g[:, [2, 3, 0]]),
        (lambda x: joined([x.rows(2, 3), x.rows(0, 1)]), lambda g: g[[2, 0]]),
        (lambda x: joined([x.rows(0, 1), Fill("F32", (1, 4), 0.0)]).transposed(), lambda g: (g[:2] * [[1], [0]]).T),
    ],
    ids=["transposed", "twin", "beside", "joined", "packed"],
)
def test_moments_are_packed_alike(build, expected):
    reader = Memory()
    g = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    first, second = moments_of(build(reader.leaf(np.zeros((3, 4), np.float32))), reader, g)
    np.testing.assert_allclose(first, expected(g), rtol=1e-6)
    np.testing.assert_allclose(second, expected(g) ** 2, rtol=1e-6)
