"""Blocks cover every word once, in order, of whole rows where there are rows, and never beyond what a reader takes."""

from __future__ import annotations

import json
import struct

from hypothesis import example, given
from hypothesis import strategies as st

from rekindle import api
from rekindle.codec.index import LARGEST_BLOCK
from rekindle.codec.layout import BLOCK, SMALL, layout, row_of
from rekindle.codec.source import Tensor
from rekindle.store.dtypes import nbytes

SHAPES = st.lists(st.integers(0, 3000), min_size=0, max_size=3).map(tuple) | st.tuples(
    st.integers(1, 200), st.integers(1, 3_000_000)
)


@given(SHAPES, st.sampled_from(["F64", "F32", "BF16", "I8", "C64", "F4"]), st.booleans())
@example((58, 2059586), "F32", True)
@example((10001, 18), "F4", False)
@example((17, 900_000), "F32", False)
def test_every_word_is_in_one_block(shape, dtype, few):
    try:
        size = nbytes(dtype, shape)
    except ValueError:
        return  # bits that fill no bytes
    tensor = Tensor("x", dtype, shape, size)
    if size > 1 << 31:
        return
    blocks = layout([tensor], {}, [False], [0] if few and size else [])
    at = 0
    for (part,) in blocks:
        assert part.start == at
        assert part.count > 0
        assert part.count * tensor.word <= LARGEST_BLOCK
        row = row_of([tensor], [part])
        assert not row or part.count % row == part.start % row == 0
        at += part.count
    assert at == tensor.n
    assert len(blocks) <= 1 or size > SMALL


def test_a_matrix_is_cut_between_rows():
    tensor = Tensor("x", "F32", (4096, 3000), 4 * 4096 * 3000)
    blocks = layout([tensor], {}, [False])
    assert all(row_of([tensor], parts) == 3000 for parts in blocks)
    assert max(parts[0].count for parts in blocks) * 4 < 1.01 * BLOCK


def test_values_of_half_a_byte_are_packed(tmp_path):
    """Their words are bytes: a row of values is no row of words."""
    shape, n = (10001, 18), 10001 * 18 // 2
    header = json.dumps({"w": {"dtype": "F4", "shape": shape, "data_offsets": [0, n]}}).encode()
    (tmp_path / "step-1").mkdir()
    data = struct.pack("<Q", len(header)) + header + bytes(range(256)) * (n // 256) + bytes(n % 256)
    (tmp_path / "step-1" / "model.safetensors").write_bytes(data)
    api.pack(tmp_path / "step-1", tmp_path / "x.rk")
    api.unpack(tmp_path / "x.rk", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == data
