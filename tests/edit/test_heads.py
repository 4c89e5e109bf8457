"""Expressions over heads against the same operations on whole arrays, by any cut into blocks."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_expressions import Memory, moments_of, whole

from rekindle.edit.arithmetic import Twin
from rekindle.edit.heads import Folded, Heads, picked
from rekindle.edit.measure import Measurement
from rekindle.errors import RekindleError


class Known(Measurement):
    """A measurement that was made."""

    def __init__(self, **found):
        super().__init__("known", ())
        self.settle({key: np.asarray(value) for key, value in found.items()})


@st.composite
def cases(draw):
    """(heads, size, pick_JN, turn or None, scale or None, random numbers)"""
    random = np.random.default_rng(draw(st.integers(0, 99)))
    heads, size = draw(st.integers(1, 5)), draw(st.integers(1, 4))
    count, members = draw(st.integers(1, 4)), draw(st.integers(1, 3))
    turn = random.standard_normal((heads, size, size)) if draw(st.booleans()) else None
    scale = random.uniform(0.5, 2, count) if draw(st.booleans()) else None
    return heads, size, random.integers(0, heads, (count, members)), turn, scale, random


def expected_heads(x, size, pick_JN, turn, scale):
    """x [heads, size, columns]"""
    turned = x if turn is None else turn @ x
    made = turned[pick_JN].mean(axis=1)
    return (made if scale is None else made * scale[:, None, None]).reshape(-1, x.shape[-1])


@given(cases(), st.integers(1, 3), st.data())
def test_heads_are_means_of_turned_heads_by_any_cut(case, columns, data):
    heads, size, pick_JN, turn, scale, random = case
    array = random.standard_normal((heads * size, columns)).astype(np.float32)
    reader = Memory()
    expr = Heads(reader.leaf(array), size, pick_JN, turn_HAA=turn, scale_J=scale)
    expected = expected_heads(array.reshape(heads, size, columns), size, pick_JN, turn, scale)
    step = data.draw(st.integers(1, expr.num_rows))
    np.testing.assert_allclose(whole(expr, reader, step), expected, rtol=1e-5, atol=1e-5)


@given(cases(), st.integers(1, 4), st.data())
def test_columns_are_turned_as_rows_are(case, rows, data):
    """W blockdiag(turn)' is (blockdiag(turn) W')'."""
    heads, size, pick_JN, turn, scale, random = case
    array = random.standard_normal((rows, heads * size)).astype(np.float32)
    reader = Memory()
    across = Heads(reader.leaf(array), size, pick_JN, turn_HAA=turn, scale_J=scale, axis=1)
    down = Heads(reader.leaf(np.ascontiguousarray(array.T)), size, pick_JN, turn_HAA=turn, scale_J=scale)
    step = data.draw(st.integers(1, rows))
    np.testing.assert_allclose(whole(across, reader, step), whole(down, reader).T, rtol=1e-5, atol=1e-5)


@given(cases(), st.integers(1, 4))
def test_inverse_maps_of_k_and_q_cancel(case, columns):
    """Scores do not change when keys are turned by R and queries by its inverse transposed."""
    heads, size, _, _, _, random = case
    k, q = (random.standard_normal((heads * size, columns)).astype(np.float32) for _ in range(2))
    turn = np.eye(size) + 0.3 * random.uniform(-1, 1, (heads, size, size)) / size
    reader, each = Memory(), np.arange(heads)[:, None]
    keys = whole(Heads(reader.leaf(k), size, each, turn_HAA=turn), reader).reshape(heads, size, columns)
    back = np.linalg.inv(turn).transpose(0, 2, 1)
    queries = whole(Heads(reader.leaf(q), size, each, turn_HAA=back), reader).reshape(heads, size, columns)
    before = np.einsum("hac,had->hcd", q.reshape(heads, size, columns), k.reshape(heads, size, columns))
    np.testing.assert_allclose(np.einsum("hac,had->hcd", queries, keys), before, atol=1e-4)


def test_biases_are_heads_of_one_column():
    reader = Memory()
    bias = np.arange(6, dtype=np.float32)
    expr = Heads(reader.leaf(bias), 2, np.array([[0, 2], [1, 1]]))
    assert expr.shape == (4,)
    np.testing.assert_array_equal(whole(expr, reader, 3), [2, 3, 2, 3])


def test_measured_heads_are_as_given_ones():
    reader = Memory()
    leaf = reader.leaf(np.random.default_rng(0).standard_normal((6, 3)).astype(np.float32))
    given_ = {"pick": np.array([[0, 1], [2, 0]]), "turn": np.random.default_rng(1).standard_normal((3, 2, 2))}
    found = Known(**given_)
    measured = Heads(leaf, 2, found["pick"], count=2, turn_HAA=found["turn"])
    plain = Heads(leaf, 2, given_["pick"], turn_HAA=given_["turn"])
    assert measured.shape == plain.shape
    np.testing.assert_array_equal(whole(measured, reader), whole(plain, reader))


def test_equal_heads_are_their_mean_bit_for_bit():
    reader = Memory()
    head = np.random.default_rng(0).standard_normal((4, 8)).astype(np.float32)
    expr = Heads(reader.leaf(np.tile(head, (4, 1))), 4, np.arange(4).reshape(2, 2))
    np.testing.assert_array_equal(whole(expr, reader), np.tile(head, (2, 1)))


@given(st.lists(st.integers(0, 3), min_size=1, max_size=6), st.booleans())
def test_picked_heads_are_plain_copies(heads, vector):
    reader = Memory()
    array = np.random.default_rng(0).standard_normal(8 if vector else (8, 3)).astype(np.float32)
    expr = picked(reader.leaf(array), 2, heads)
    expected = array.reshape(4, 2, -1)[heads].reshape(-1, *array.shape[1:])
    np.testing.assert_array_equal(whole(expr, reader, 3), expected)
    assert b"".join(reader.read(*span) for span in expr.spans()) == expected.tobytes()


@given(st.integers(1, 9), st.integers(1, 9), st.data())
def test_a_constant_is_folded_into_the_next_bias(outputs, inputs, data):
    reader, random = Memory(), np.random.default_rng(outputs)
    b, w, v = (random.standard_normal(shape).astype(np.float32) for shape in (outputs, (outputs, inputs), inputs))
    expr = Folded(reader.leaf(b), reader.leaf(w), reader.leaf(v))
    step = data.draw(st.integers(1, outputs))
    np.testing.assert_allclose(whole(expr, reader, step), b + w @ v, rtol=1e-5, atol=1e-5)


def test_a_wide_matrix_is_folded_a_block_at_a_time(monkeypatch):
    monkeypatch.setattr("rekindle.edit.heads.BLOCK", 6)
    reader, random = Memory(), np.random.default_rng(0)
    b, w, v = (random.standard_normal(shape).astype(np.float32) for shape in (5, (5, 3), 3))
    expr, read = Folded(reader.leaf(b), reader.leaf(w), reader.leaf(v)), []
    reader.read = lambda path, offset, nbytes, old=reader.read: (read.append(nbytes), old(path, offset, nbytes))[1]
    np.testing.assert_allclose(whole(expr, reader), b + w @ v, rtol=1e-5)
    assert max(read) == 2 * 3 * 4


def test_codes_are_not_mixed():
    reader = Memory()
    code = reader.leaf(np.zeros((4, 2), np.uint8), "F8_E4M3")
    assert picked(code, 2, [1, 0]).spans()
    with pytest.raises(RekindleError, match="only copied"):
        Heads(code, 2, np.array([[0, 1]]))


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda x: Heads(x, 1, np.array([[0, 1], [1, 2]])), lambda g: 0 * g[:2]),
        (lambda x: Heads(x, 2, np.array([[1], [0]]), axis=1), lambda g: 0 * g),
        (lambda x: picked(x, 1, [2, 0]), lambda g: g[[2, 0]]),
        (lambda x: Twin(picked(x, 1, [0, 0, 1, 1]), 2), lambda g: g[[0, 0, 1, 1]] / 2),
    ],
    ids=["mixed", "columns", "picked", "repeated"],
)
def test_mixed_heads_start_with_empty_moments_and_picked_ones_keep_theirs(build, expected):
    reader = Memory()
    g = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    first, second = moments_of(build(reader.leaf(np.zeros((3, 4), np.float32))), reader, g)
    np.testing.assert_allclose(first, expected(g), rtol=1e-6)
    np.testing.assert_allclose(second, expected(g) ** 2, rtol=1e-6)


def test_a_bias_that_takes_a_constant_in_keeps_its_moments():
    reader, g = Memory(), np.arange(1, 4, dtype=np.float32)
    w, v = reader.leaf(np.ones((3, 2), np.float32)), reader.leaf(np.ones(2, np.float32))
    first, second = moments_of(Folded(reader.leaf(np.zeros(3, np.float32)), w, v), reader, g)
    np.testing.assert_array_equal(first, g)
    np.testing.assert_array_equal(second, g**2)
