"""The inner loops: numpy's against C's, on whatever hypothesis thinks of."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from rekindle.codec import kernel as module
from rekindle.codec.bits import Broken
from rekindle.codec.fallback import Numpy
from rekindle.codec.kernel import Native
from rekindle.codec.tables import merge, own_tables, read_tables, round_to_total, table_of, write_tables

LIBRARY = Path(module.__file__).with_name("_inner.so")
WORDS = [np.dtype(f"<u{size}") for size in (1, 2, 4, 8)]
KERNELS = [Numpy(), *([Native(LIBRARY)] if LIBRARY.exists() else [])]


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """C's loops as they are where eight lanes cannot be done at once."""
    both()
    out = tmp_path_factory.mktemp("narrow") / "inner.so"
    source = LIBRARY.with_name("inner.c")
    subprocess.run(["cc", "-O2", "-DNARROW", "-shared", "-fPIC", "-o", str(out), str(source)], check=True)
    return Native(out)


def both():
    if len(KERNELS) < 2:
        pytest.skip("no C loops were built here: there is no compiler")
    return KERNELS


def close_words(dtype, most=300):
    """Values, and references of which many are near."""
    size = st.integers(0, most)
    values = size.flatmap(lambda n: npst.arrays(dtype, n))
    return values.flatmap(
        lambda v: st.tuples(st.just(v), npst.arrays(np.int8, v.size).map(lambda d: v + d.astype(dtype)))
    )


@pytest.mark.parametrize("dtype", WORDS[1:], ids=str)
@given(data=st.data())
def test_split_and_join(dtype, data):
    values = data.draw(npst.arrays(dtype, st.integers(0, 200)))
    results = [kernel.split(values) for kernel in KERNELS]
    for symbols, rest in results:
        assert np.array_equal(symbols, results[0][0])
        assert np.array_equal(rest, results[0][1])
    for kernel in KERNELS:
        assert np.array_equal(kernel.join(*results[0], dtype), values)


def test_the_top_byte_of_a_float_is_its_exponent():
    values = np.array([1.0, -1.0, 3.0, -0.125, np.inf], np.float32)
    for kernel in KERNELS:
        symbols, _ = kernel.split(values.view(np.uint32))
        assert symbols.tolist() == [127, 127, 128, 124, 255]


@pytest.mark.parametrize("dtype", WORDS, ids=str)
@given(data=st.data(), bias=st.integers(-(2**63), 2**63 - 1) | st.just(0), real=st.booleans(), referred=st.booleans())
def test_differences_come_back(dtype, data, bias, real, referred):
    values, reference = data.draw(close_words(dtype))
    reference = reference if referred else None
    results = [kernel.delta(values, reference, bias, real) for kernel in KERNELS]
    for symbols, raw in results:
        assert np.array_equal(symbols, results[0][0])
        assert np.array_equal(raw, results[0][1])
    for kernel in KERNELS:
        assert np.array_equal(kernel.undelta(*results[0], reference, bias, real, dtype), values)
        with pytest.raises(Broken):
            kernel.undelta(results[0][0], np.append(results[0][1], np.uint8(0)), reference, bias, real, dtype)


def test_small_differences_have_small_classes():
    values, reference = np.arange(100, 108, dtype="<u4"), np.full(8, 103, "<u4")
    for kernel in KERNELS:
        symbols, raw = kernel.delta(values, reference, 0, False)
        assert symbols.tolist() == [3, 2, 1, 0, 1, 2, 3, 4]  # 3 2 1 0 1 2 3 4 apart
        assert raw.size == (1 + 1 + 1 + 0 + 1 + 1 + 1 + 2 + 7) // 8


def test_floats_are_subtracted_in_their_order():
    """The smallest subnormal and its negative are two steps apart, across both zeros."""
    values = np.array([1e-45, -1e-45, 0.0, -0.0], np.float32).view("<u4")
    for kernel in KERNELS:
        symbols, _ = kernel.delta(values, np.zeros(4, "<u4"), 0, True)
        assert symbols.tolist() == [1, 2, 0, 1]


@given(
    symbols=npst.arrays(np.uint8, st.integers(0, 500), elements=st.integers(0, 5) | st.integers(0, 255)),
    tables=st.integers(1, 4),
)
def test_coded_symbols_come_back(symbols, tables):
    contexts = (symbols // 3 % tables).astype(np.uint8) if tables > 1 else None
    counts = [kernel.count(symbols, contexts, tables) for kernel in KERNELS]
    for found in counts:
        assert np.array_equal(found, counts[0])
    freqs = round_to_total(counts[0])
    coded = [kernel.encode(symbols, contexts, freqs) for kernel in KERNELS]
    for data in coded:
        assert np.array_equal(data, coded[0])
    for kernel in KERNELS:
        assert np.array_equal(kernel.decode(coded[0], contexts, freqs, symbols.size), symbols)
        for broken in (coded[0][:-2], coded[0][:-1], coded[0][:100], np.append(coded[0], coded[0][:2])):
            with pytest.raises(Broken):
                kernel.decode(broken, contexts, freqs, symbols.size)


@pytest.mark.parametrize("tables", [1, 5])
@pytest.mark.parametrize("n", [31, 32, 4096, 100_003])
def test_eight_lanes_at_once_code_as_one(narrow, n, tables):
    random = np.random.default_rng(n)
    symbols = random.geometric(0.3, n).clip(0, 255).astype(np.uint8)
    symbols[: n // 3] = 7  # a table of one symbol among them
    contexts = np.where(np.arange(n) < n // 3, 0, random.integers(0, tables, n)).astype(np.uint8)
    kernels = [narrow, *KERNELS]
    freqs = round_to_total(narrow.count(symbols, contexts, tables))
    coded = [kernel.encode(symbols, contexts if tables > 1 else None, freqs) for kernel in kernels]
    assert all(np.array_equal(data, coded[0]) for data in coded)
    for kernel in kernels:
        assert np.array_equal(kernel.decode(coded[0], contexts if tables > 1 else None, freqs, n), symbols)
        for cut in (130, 1000, coded[0].size - 2):
            if 128 <= cut < coded[0].size:
                with pytest.raises(Broken):
                    kernel.decode(coded[0][:cut], contexts if tables > 1 else None, freqs, n)


def test_coding_comes_within_a_hundredth_of_the_entropy():
    random = np.random.default_rng(0)
    symbols = random.geometric(0.4, 100_000).clip(0, 255).astype(np.uint8)
    shares = np.bincount(symbols) / symbols.size
    entropy = -sum(p * np.log2(p) for p in shares if p) / 8 * symbols.size
    for kernel in both():
        freqs = round_to_total(kernel.count(symbols, None, 1))
        assert kernel.encode(symbols, None, freqs).size < 1.01 * entropy + 128


@given(data=st.data(), bits=st.integers(1, 7), n=st.integers(0, 300))
def test_adaptively_coded_symbols_come_back(data, bits, n):
    symbols = data.draw(npst.arrays(np.uint8, n, elements=st.integers(0, 2**bits - 1)))
    contexts, offsets = (
        data.draw(st.none() | npst.arrays(np.uint16, n, elements=st.integers(0, 300))) for _ in range(2)
    )
    columns = data.draw(st.integers(0, 20) | st.just(1000))
    coded = [kernel.adapt(symbols, contexts, offsets, columns, bits) for kernel in KERNELS]
    for found in coded:
        assert found is not None
        assert np.array_equal(found, coded[0])
    for kernel in KERNELS:
        assert np.array_equal(kernel.unadapt(coded[0], contexts, offsets, columns, bits, n), symbols)
        for broken in (coded[0][:-1], coded[0][:3], np.append(coded[0], np.uint8(0))):
            with pytest.raises(Broken):
                kernel.unadapt(broken, contexts, offsets, columns, bits, n)


def test_a_learning_coder_comes_near_what_contexts_tell():
    random = np.random.default_rng(0)
    contexts = random.integers(0, 3, 60_000).astype(np.uint16)
    symbols = (random.random(60_000) < np.array([0.01, 0.5, 0.9])[contexts]).astype(np.uint8)
    bits = sum(-p * np.log2(p) - (1 - p) * np.log2(1 - p) for p in (0.01, 0.5, 0.9)) / 3 * 60_000
    for kernel in KERNELS:
        assert kernel.adapt(symbols, contexts, None, 0, 1).size < 1.02 * bits / 8


@given(npst.arrays(np.uint32, (256, 256), elements=st.integers(0, 3), fill=st.just(np.uint32(0))), st.data())
def test_tables_come_back(counts, data):
    for _ in range(data.draw(st.integers(0, 4))):
        counts[data.draw(st.integers(0, 255)), data.draw(st.integers(0, 255))] = data.draw(st.integers(512, 10**6))
    own = own_tables(counts)
    freqs = round_to_total(merge(counts, own))
    assert (freqs.sum(axis=1) == 4096).all()
    assert (freqs[:, :] > 0).sum() >= (merge(counts, own) > 0).sum()
    assert set(table_of(own).tolist()) == set(range(len(own) + 1))
    written = write_tables(own, freqs)
    read = read_tables(memoryview(written + b"rest"))
    assert np.array_equal(read[0], own)
    assert np.array_equal(read[1], freqs)
    assert read[2] == len(written)
    for cut in range(0, len(written), 7):
        with pytest.raises(Broken):
            read_tables(memoryview(written[:cut]))


def test_states_that_no_encoder_leaves_are_broken():
    """Else lanes that are compared signed would read on where others do not."""
    symbols = np.zeros(96, np.uint8)
    symbols[:40] = 1
    for kernel in KERNELS:
        freqs = round_to_total(kernel.count(symbols, None, 1))
        coded = kernel.encode(symbols, None, freqs)
        for state in (0, 2**15 - 1, 2**31, 2**32 - 1):
            changed = coded.copy()
            changed[:4] = np.array([state], "<u4").view(np.uint8)
            with pytest.raises(Broken):
                kernel.decode(changed, None, freqs, 96)


@pytest.mark.parametrize(("symbol", "raw"), [(4, [0b11111101]), (31, [0xFF, 0x7F])], ids=["bits behind", "no class"])
def test_what_no_difference_leaves_is_broken(symbol, raw):
    symbols, given = np.array([symbol], np.uint8), np.array(raw, np.uint8)
    for kernel in KERNELS:
        with pytest.raises(Broken):
            kernel.undelta(symbols, given, None, 0, False, np.dtype("<u2"))
