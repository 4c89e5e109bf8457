"""The header reader against the `safetensors` library: what is valid, and each way of being broken."""

from __future__ import annotations

import json

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from safetensors import safe_open
from safetensors.torch import save
from store.safetensors_bytes import DTYPES, file_of, library, one_tensor, ours, with_header

from rekindle.errors import RekindleError
from rekindle.store import header
from rekindle.store.dtypes import BITS, TORCH
from rekindle.store.header import build_header, read_header

names = st.text(st.characters(exclude_categories=["Cs"]), max_size=12).filter(lambda name: name != "__metadata__")
text_to_text = st.dictionaries(st.text(st.characters(exclude_categories=["Cs"]), max_size=6), names, max_size=3)
shapes = st.lists(st.integers(0, 5), max_size=4).map(tuple)
anywhere = settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)


@st.composite
def tensors(draw):
    """(dtype, shape, bytes), of any dtype, none of them by half."""
    dtype, shape = draw(st.sampled_from(DTYPES)), draw(shapes)
    if BITS[dtype] % 8:
        shape = (*shape, 4)  # sub-byte values come in fours
    size = BITS[dtype]
    for n in shape:
        size *= n
    return dtype, shape, draw(st.binary(min_size=size // 8, max_size=size // 8))


@anywhere
@given(made=st.dictionaries(names, tensors(), max_size=5), metadata=st.none() | text_to_text)
def test_valid_files_read_alike(made, metadata, tmp_path):
    raw = file_of(made, metadata)
    assert ours(raw, tmp_path / "x") == library(raw) == made
    assert read_header(tmp_path / "x")[1] == (metadata or {})


@anywhere
@given(st.dictionaries(names, st.tuples(st.sampled_from(sorted(TORCH.values())), shapes), min_size=1), text_to_text)
def test_what_the_library_writes_is_read(tmp_path, wanted, metadata):
    made = {name: torch.ones(shape).to(getattr(torch, dtype)) for name, (dtype, shape) in wanted.items()}
    raw = save(made, metadata)
    assert ours(raw, tmp_path / "x") == library(raw)
    assert {name: TORCH[stored.dtype] for name, stored in read_header(tmp_path / "x")[0].items()} == {
        name: dtype for name, (dtype, _) in wanted.items()
    }


@anywhere
@given(made=st.dictionaries(names, tensors(), max_size=5), metadata=text_to_text)
def test_what_we_write_the_library_reads(made, metadata, tmp_path):
    head, size = build_header({name: (dtype, shape) for name, (dtype, shape, _) in made.items()}, metadata)
    raw = head + b"".join(data for _, _, data in made.values())
    assert len(head) % 8 == 0
    assert len(raw) == len(head) + size
    assert library(raw) == made
    if made:
        (tmp_path / "x").write_bytes(raw)
        with safe_open(tmp_path / "x", "pt") as file:
            assert (file.metadata() or {}) == metadata


def test_tensors_may_stand_in_any_order(tmp_path):
    entries = {
        "late": {"dtype": "U8", "shape": [2], "data_offsets": [1, 3]},
        "empty": {"dtype": "F64", "shape": [3, 0], "data_offsets": [1, 1]},
        "early": {"dtype": "U8", "shape": [1], "data_offsets": [0, 1]},
    }
    raw = with_header(json.dumps(entries), b"abc")
    assert ours(raw, tmp_path / "x") == library(raw)
    assert ours(raw, tmp_path / "x")["late"] == ("U8", (2,), b"bc")


def two(first: list[int], second: list[int], data: bytes) -> bytes:
    entry = {name: {"dtype": "U8", "shape": [o[1] - o[0]], "data_offsets": o} for name, o in zip("ab", (first, second))}
    return with_header(json.dumps(entry), data)


GOOD = one_tensor()
ENTRY = '"a":{"dtype":"F32","shape":[2],"data_offsets":[0,8]}'
EIGHT = b"12345678"

# (a file, a word of the sentence that refuses it)
BROKEN = {
    "nothing": (b"", "too short"),
    "seven bytes": (b"1234567", "too short"),
    "header longer than the file": (with_header("{}", length=3), "header claims 3 bytes, but the file has 10"),
    "header over 100 MB": (with_header("{}", length=100_000_001), "over the limit"),
    "header of 2^64 - 1": (b"\xff" * 8 + b"{}", "over the limit"),
    "no header": (with_header(""), "not JSON"),
    "not JSON": (with_header("{'a': 1}"), "not JSON"),
    "a list": (with_header("[]"), "begin with"),
    "white space first": (with_header(" {}"), "begin with"),
    "a byte order mark": (with_header(b"\xef\xbb\xbf{}"), "begin with"),
    "something after it": (with_header("{}\0"), "not JSON"),
    "deep nesting": (with_header("{" + '"a":{' * 100_000), "not JSON"),
    "deep lists": (with_header('{"a":' + "[" * 100_000), "not JSON"),
    "not UTF-8": (with_header(b'{"\xff":1}'), "not JSON"),
    "overlong UTF-8": (with_header(b'{"\xc0\xaf":1}'), "not JSON"),
    "half a surrogate, escaped": (with_header(ENTRY.replace('"a"', '{"\\ud800"') + "}", EIGHT), "not JSON"),
    "half a surrogate in metadata": (with_header('{"__metadata__":{"a":"\\udc00"}}'), "not JSON"),
    "a control character": (with_header('{"a\x01":1}'), "not JSON"),
    "NaN": (with_header('{"a":NaN}'), "NaN is not JSON"),
    "-Infinity": (with_header('{"a":-Infinity}'), "Infinity is not JSON"),
    "a number of 5,000 digits": (with_header('{"a":' + "9" * 5000 + "}"), "not JSON"),
    "a name twice": (with_header("{" + ENTRY + "," + ENTRY + "}", EIGHT), "'a' twice"),
    "a key twice": (with_header("{" + ENTRY.replace("[2],", '[2],"shape":[2],') + "}", EIGHT), "'shape' twice"),
    "metadata of numbers": (with_header('{"__metadata__":{"a":1}}'), "__metadata__"),
    "metadata that is a list": (with_header('{"__metadata__":[]}'), "__metadata__"),
    "metadata that is 0": (with_header('{"__metadata__":0}'), "__metadata__"),
    "metadata that is false": (with_header('{"__metadata__":false}'), "__metadata__"),
    "metadata that is text": (with_header('{"__metadata__":""}'), "__metadata__"),
    "an entry that is a number": (with_header('{"a":1}'), "lacks dtype"),
    "an entry that is text": (with_header('{"a":"dtype"}'), "lacks dtype"),
    "an entry that is null": (with_header('{"a":null}'), "lacks dtype"),
    "an entry that is empty": (with_header('{"a":{}}'), "lacks dtype"),
    "an entry with more": (one_tensor(stride=[1]), "more than dtype"),
    "one offset": (one_tensor(data_offsets=[0]), "lacks dtype"),
    "three offsets": (one_tensor(data_offsets=[0, 8, 8]), "lacks dtype"),
    "offsets that are text": (one_tensor(data_offsets="08"), "shape or offsets"),
    "an unknown dtype": (one_tensor(dtype="F31"), "unknown dtype 'F31'"),
    "a dtype in lower case": (one_tensor(dtype="f32"), "unknown dtype"),
    "a dtype that is a list": (one_tensor(dtype=["F32"]), "unknown dtype"),
    "a dtype that is null": (one_tensor(dtype=None), "unknown dtype"),
    "a shape that is a number": (one_tensor(shape=2), "list of whole numbers"),
    "a shape that is text": (one_tensor(shape="2"), "list of whole numbers"),
    "a shape that is a table": (one_tensor(shape={}), "list of whole numbers"),
    "a shape of floats": (one_tensor(shape=[2.0]), "2.0 in its shape"),
    "a shape of 2e0": (with_header("{" + ENTRY.replace("[2]", "[2e0]") + "}", EIGHT), "2.0 in its shape"),
    "a shape of booleans": (one_tensor(shape=[2, True]), "True in its shape"),
    "a shape of lists": (one_tensor(shape=[[2]]), "in its shape"),
    "a negative shape": (one_tensor(shape=[-1, -2]), "negative"),
    "minus nothing": (with_header("{" + ENTRY.replace("[0,", "[-0,") + "}", EIGHT), "negative"),
    "a huge shape": (one_tensor(shape=[2**63]), "in its shape"),
    "a shape that wraps around": (one_tensor(shape=[2**32 + 1, 2**32, 2]), "needs"),
    "an empty shape that wraps around": (one_tensor(shape=[2**40, 2**40, 0], data_offsets=[0, 0]), "beyond counting"),
    "a shape that is too small": (one_tensor(shape=[1]), "needs 4 bytes, but has 8"),
    "a shape that is too large": (one_tensor(shape=[3]), "needs 12 bytes, but has 8"),
    "a dtype of the wrong size": (one_tensor(dtype="F64"), "needs 16 bytes, but has 8"),
    "half a byte": (one_tensor(dtype="F4", shape=[15]), "whole bytes"),
    "offsets reversed": (one_tensor(data_offsets=[8, 0]), "but has -8"),
    "offsets that are floats": (one_tensor(data_offsets=[0, 8.0]), "8.0 in its shape or offsets"),
    "offsets that are booleans": (one_tensor(data_offsets=[False, 8]), "False in its shape or offsets"),
    "offsets negative": (one_tensor(data_offsets=[-8, 0]), "negative"),
    "offsets huge": (one_tensor(data_offsets=[2**64, 2**64 + 8]), "in its shape or offsets"),
    "offsets beyond the file": (one_tensor(data_offsets=[8, 16]), "hole"),
    "overlap": (two([0, 2], [1, 3], b"abc"), "overlaps"),
    "the same bytes twice": (two([0, 2], [0, 2], b"ab"), "overlaps"),
    "a hole": (two([0, 1], [2, 3], b"abc"), "hole"),
    "truncated": (GOOD[:-1], "truncated"),
    "a byte too many": (GOOD + b"x", "bytes too many"),
    "data of no tensor": (with_header("{}", b"x"), "bytes too many"),
}


@pytest.mark.parametrize("case", BROKEN)
def test_broken_files_are_refused_with_a_sentence(case, tmp_path):
    raw, word = BROKEN[case]
    with pytest.raises(RekindleError) as refused:
        ours(raw, tmp_path / "broken.safetensors")
    assert word in refused.value.what
    assert refused.value.where is not None
    assert refused.value.hint


# What the library takes and we refuse: nothing of it is seen in real files, and each could hide something.
STRICTER = {"a name twice", "white space first", "an entry with more"}


@pytest.mark.parametrize("case", BROKEN)
def test_the_library_refuses_the_same(case):
    assert (library(BROKEN[case][0]) is not None) == (case in STRICTER)


def test_every_truncation_is_refused(tmp_path):
    raw = file_of({"a": ("F32", (2,), EIGHT), "b": ("BF16", (), b"xy")}, {"format": "pt"})
    for end in range(len(raw)):
        with pytest.raises(RekindleError):
            ours(raw[:end], tmp_path / "x")


def test_the_error_names_file_and_tensor(tmp_path):
    with pytest.raises(RekindleError) as refused:
        ours(one_tensor(shape=[3]), tmp_path / "broken.safetensors")
    assert str(refused.value.where) == str(tmp_path / "broken.safetensors")
    assert "'a' F32 [3]" in refused.value.what


def test_only_the_header_is_read(tmp_path):
    """A sparse file of a terabyte opens at once."""
    n = 2**40
    text = json.dumps({"a": {"dtype": "U8", "shape": [n], "data_offsets": [0, n]}}).encode()
    with (tmp_path / "x").open("wb") as file:
        file.write(len(text).to_bytes(8, "little") + text)
        file.truncate(8 + len(text) + n)
    assert read_header(tmp_path / "x")[0]["a"].nbytes == n


def test_the_limit_is_the_librarys(tmp_path, monkeypatch):
    """At the limit a header is read, one byte more is refused before it is read."""
    monkeypatch.setattr(header, "MAX_HEADER", 64)
    assert ours(with_header("{}" + " " * 62), tmp_path / "x") == {}
    with pytest.raises(RekindleError, match="over the limit of 64"):
        ours(with_header("{}" + " " * 63), tmp_path / "x")


@pytest.mark.parametrize("kind", ["missing", "folder"])
def test_what_cannot_be_opened_is_refused(kind, tmp_path):
    if kind == "folder":
        (tmp_path / "x").mkdir()
    with pytest.raises(RekindleError, match="cannot be read"):
        read_header(tmp_path / "x")
