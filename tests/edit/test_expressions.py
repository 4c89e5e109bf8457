"""Expressions against the same operations on whole arrays, by any cut into blocks; their spans; their moments."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from rekindle.edit.arithmetic import Cast, Fill, Normal, Rounded, Scale, Sum, Twin
from rekindle.edit.expressions import Columns, Leaf, Rows
from rekindle.edit.joining import Joined
from rekindle.errors import RekindleError
from rekindle.store.dtypes import from_float, to_float
from rekindle.store.header import Stored


class Memory:
    """A reader over arrays: the file's name is the array's index."""

    def __init__(self):
        self.files: dict[str, bytes] = {}

    def leaf(self, array: np.ndarray, dtype: str = "F32") -> Leaf:
        name = f"t{len(self.files)}"
        self.files[name] = b"head" + array.tobytes()
        return Leaf(name, Stored(name, dtype, array.shape, 4, array.nbytes))

    def read(self, path: str, offset: int, nbytes: int) -> bytes:
        return self.files[path][offset : offset + nbytes]


def whole(expr, reader, step=None):
    step = step or max(1, expr.num_rows)
    blocks = [expr.raw(lo, min(lo + step, expr.num_rows), reader) for lo in range(0, expr.num_rows, step)]
    return np.concatenate(blocks).reshape(expr.shape)


@st.composite
def expressions(draw, reader, depth=3):
    """(expression, the array it means): matrices of 4 columns."""
    if depth == 0 or draw(st.booleans()):
        rows = draw(st.integers(1, 6))
        array = np.random.default_rng(draw(st.integers(0, 99))).standard_normal((rows, 4)).astype(np.float32)
        return reader.leaf(array), array
    x, a = draw(expressions(reader, depth - 1))
    kind = draw(st.sampled_from(["rows", "join", "twin", "scale", "sum", "columns"]))
    if kind == "rows":
        lo = draw(st.integers(0, len(a) - 1))
        hi = draw(st.integers(lo + 1, len(a)))
        return Rows(x, lo, hi, (hi - lo, 4)), a[lo:hi]
    if kind == "join":
        y, b = draw(expressions(reader, depth - 1))
        return Joined([x, y, x], (2 * len(a) + len(b), 4)), np.concatenate([a, b, a])
    if kind == "twin":
        return Twin(x, 3), a
    if kind == "scale":
        return Scale(x, 0.3), a * np.float32(0.3)
    if kind == "columns":
        return Joined([Columns(x, 0, 4)], a.shape), a
    return Sum(x, x), a + a


@given(st.data())
def test_values_are_those_of_arrays_by_any_cut(data):
    reader = Memory()
    expr, array = data.draw(expressions(reader))
    assert expr.shape == array.shape
    step = data.draw(st.integers(1, expr.num_rows))
    np.testing.assert_array_equal(whole(expr, reader, step), array)


@given(st.data())
def test_spans_are_the_bytes(data):
    reader = Memory()
    expr, array = data.draw(expressions(reader))
    spans = expr.spans()
    if spans is not None:
        assert b"".join(reader.read(*span) for span in spans) == array.tobytes()


@given(st.data())
def test_leaves_are_what_was_read(data):
    reader = Memory()
    expr, _ = data.draw(expressions(reader))
    read: set[str] = set()
    reader.read = lambda path, offset, nbytes, old=reader.read: (read.add(path), old(path, offset, nbytes))[1]
    whole(expr, reader)
    assert read <= {leaf.stored.path for leaf in expr.leaves()}


def test_columns_cut_the_last_axis():
    reader = Memory()
    array = np.arange(24, dtype=np.float32).reshape(4, 6)
    expr = Columns(reader.leaf(array), 1, 4)
    assert expr.spans() is None
    np.testing.assert_array_equal(whole(expr, reader, 3), array[:, 1:4])


def test_vectors_are_rows_of_one():
    reader = Memory()
    array = np.arange(6, dtype=np.float32)
    expr = Rows(reader.leaf(array), 2, 5, (3,))
    np.testing.assert_array_equal(whole(expr, reader), array[2:5])
    assert sum(span.nbytes for span in expr.spans()) == 12


def test_stacks_flatten_to_rows():
    reader = Memory()
    a, b = np.ones((2, 3), np.float32), np.zeros((2, 3), np.float32)
    stacked = Joined([reader.leaf(a), reader.leaf(b)], (2, 2, 3))
    np.testing.assert_array_equal(whole(stacked, reader, 1), np.stack([a, b]))
    second = Rows(stacked, 2, 4, (2, 3))
    np.testing.assert_array_equal(whole(second, reader), b)


def test_arithmetic_is_float32_rounded_once():
    import torch

    reader = Memory()
    bits = np.random.default_rng(0).integers(0, 2**15, (8, 4)).astype(np.uint16)  # positive, finite or not
    bits[(bits & 0x7F80) == 0x7F80] = 0x3F80
    x = reader.leaf(bits, "BF16")
    expected = torch.from_numpy(bits).view(torch.bfloat16).float() * np.float32(1 / 3)
    expected = (expected + torch.full((8, 4), 0.125)).to(torch.bfloat16).view(torch.uint16).numpy()
    out = Sum(Cast(Scale(Cast(x, "F32"), 1 / 3), "F32"), Fill("F32", (8, 4), 0.125))
    np.testing.assert_array_equal(whole(Cast(out, "BF16"), reader), expected)


@pytest.mark.parametrize("dtype", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("value", [0.0, -1.0, 1 / 3, 1e30])
def test_a_fill_is_its_value_rounded_once(dtype, value):
    fill = Fill(dtype, (5, 3), value)
    expected = from_float(np.full((5, 3), value, np.float32), dtype)
    made = whole(fill, Memory(), 2)
    assert made.dtype == expected.dtype
    np.testing.assert_array_equal(made, expected)


def test_what_is_rounded_is_calculated_with_as_it_would_be_stored():
    reader = Memory()
    x = Cast(reader.leaf(np.float32([[1 + 2**-10, -1 / 3]])), "BF16")
    stored = to_float(whole(x, reader), "BF16")
    assert (stored != np.float32([[1 + 2**-10, -1 / 3]])).all()
    np.testing.assert_array_equal(whole(Cast(Rounded(x), "F32"), reader), stored)
    np.testing.assert_array_equal(whole(Cast(Rounded(x).transposed(), "F32"), reader), stored.T)
    np.testing.assert_array_equal(whole(Rounded(x), reader), whole(x, reader))


def test_codes_cannot_be_calculated_with():
    reader = Memory()
    code = reader.leaf(np.zeros((2, 2), np.uint8), "F8_E4M3")
    assert Twin(code, 4).spans()
    with pytest.raises(RekindleError, match="only copied"):
        Scale(code, 2.0)
    with pytest.raises(RekindleError, match="only copied"):
        Sum(code, Fill("F8_E4M3", (2, 2), 0.0))


# -- moments: w' = f(w), so each rule follows from the gradient's --------------------------------------------------


def moments_of(expr, reader, array):
    """(first, second) moment of an expression whose leaves all have this gradient: m = g, v = g^2."""
    first, second = reader.leaf(array), reader.leaf(array**2)
    return [whole(expr.moment(k, lambda leaf, order: (first, second)[order - 1]), reader) for k in (1, 2)]


@pytest.mark.parametrize(
    ("build", "expected"),
    [
        (lambda x: x, lambda g: g),
        (lambda x: Twin(x, 4), lambda g: g / 4),
        (lambda x: Scale(x, 2.0), lambda g: g / 2),
        (lambda x: Rows(x, 1, 3, (2, 4)), lambda g: g[1:3]),
        (lambda x: Joined([x, x], (6, 4)), lambda g: np.concatenate([g, g])),
        (lambda x: Columns(x, 1, 3), lambda g: g[:, 1:3]),
        (lambda x: Cast(x, "BF16"), lambda g: g),
        (lambda x: Twin(Twin(x, 2), 2), lambda g: g / 4),
        (lambda x: Rounded(Scale(x, 2.0)), lambda g: g / 2),
        (lambda x: Sum(x, Normal("F32", (3, 4), 0.1, 0, "n")), lambda g: 0 * g),
        (lambda x: Normal("F32", (3, 4), 0.1, 0, "n"), lambda g: 0 * g),
    ],
    ids=["leaf", "twin", "scale", "rows", "join", "columns", "cast", "twins", "rounded", "noise", "new"],
)
def test_moment_rules(build, expected):
    reader = Memory()
    g = np.arange(1, 13, dtype=np.float32).reshape(3, 4)
    expr = build(reader.leaf(np.zeros((3, 4), np.float32)))
    first, second = moments_of(expr, reader, g)
    np.testing.assert_allclose(first, expected(g), rtol=1e-6)
    np.testing.assert_allclose(second, expected(g) ** 2, rtol=1e-6)
