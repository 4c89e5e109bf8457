"""Blocks: every bit comes back, from either kernel, and nothing comes of bytes that no encoder wrote."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst
from test_codec_kernel import KERNELS, WORDS, both

from rekindle.codec.bits import Broken
from rekindle.codec.block import Block, Codec
from rekindle.codec.coder import decode, encode


def known(block):
    return Block(block.values[:0], block.real, block.reference, block.beside)


@pytest.mark.parametrize("dtype", WORDS, ids=str)
@given(data=st.data(), real=st.booleans(), tier=st.sampled_from(["fast", "max"]))
def test_whatever_it_is_comes_back(dtype, data, real, tier):
    n = data.draw(st.integers(1, 400))
    elements = data.draw(st.sampled_from([None, st.integers(0, 3)]))
    drawn = [data.draw(st.none() | npst.arrays(dtype, n, elements=elements)) for _ in range(2)]
    values = data.draw(
        npst.arrays(dtype, n, elements=elements)
        | st.sampled_from([d for d in drawn if d is not None] or [np.zeros(n, dtype)])
    )
    columns = data.draw(st.sampled_from([0, *(c for c in (1, 3, 16) if n % c == 0)]))
    block = Block(values, real, *drawn, columns=columns)
    coded = [encode(kernel, block, tier) for kernel in KERNELS]
    assert len(set(coded)) == 1
    assert len(coded[0]) <= values.nbytes + 1
    for kernel in KERNELS:
        found = decode(kernel, memoryview(coded[0]), n, known(block))
        assert found.dtype == dtype
        assert np.array_equal(found, values)


def series(n=50_000, seed=0):
    """float32 weights and second moments as they move between two saves, and a first moment."""
    random = np.random.default_rng(seed)
    scale = np.exp(random.normal(size=n))
    weights = (0.02 * random.normal(size=(2, n))).astype(np.float32)
    weights[1] = weights[0] + (1e-4 * random.normal(size=n)).astype(np.float32)
    second = np.stack([1e-8 * scale, 0.96 * 1e-8 * scale * (1 + 0.01 * random.random(n))]).astype(np.float32)
    first = (random.normal(size=n) * np.sqrt(second[1]) * 0.1).astype(np.float32)
    return weights.view("<u4"), second.view("<u4"), first.view("<u4")


def test_each_kind_of_values_gets_its_own_coder():
    weights, second, first = series()
    for kernel in both():
        alone = encode(kernel, Block(weights[1], True))
        after = encode(kernel, Block(weights[1], True, weights[0]))
        assert alone[0] == Codec.PLANES
        assert after[0] == Codec.DELTA
        assert len(after) < 0.85 * len(alone)
        moved = encode(kernel, Block(second[1], True, second[0]))
        assert moved[0] == Codec.DELTA
        assert int.from_bytes(moved[4:12], "little", signed=True) < 0  # they all shrink: a bias
        beside = encode(kernel, Block(first, True, None, second[1]))
        assert beside[:2] == bytes([Codec.PLANES, 2])
        assert len(beside) < len(encode(kernel, Block(first, True)))
        assert encode(kernel, Block(weights[0], True, weights[0])) == bytes([Codec.SAME])
        text = np.frombuffer(b"the same words, and the same words again\n" * 500, np.uint8)
        assert encode(kernel, Block(text, False))[0] == Codec.DEFLATE
        noise = np.random.default_rng(0).integers(0, 256, 10_000, np.uint8)
        assert encode(kernel, Block(noise, False))[0] == Codec.STORED


def test_rows_and_columns_foretell_second_moments():
    """What shrinks by row and by column leaves noise of a hundredth; a grid of 500 numbers tells the rest."""
    random = np.random.default_rng(0)
    before = np.exp(random.normal(size=(200, 300)))
    shares = [0.1 * random.normal(size=(200, 1)), 0.1 * random.normal(size=300), 0.01 * random.normal(size=(200, 300))]
    then, now = (x.astype(np.float32).reshape(-1).view("<u4") for x in (before, before * np.exp(sum(shares))))
    coded = [encode(kernel, Block(now, True, then, columns=300)) for kernel in KERNELS]
    assert len(set(coded)) == 1
    assert coded[0][:3] == bytes([Codec.DELTA, 1, 2])
    assert len(coded[0]) < len(encode(KERNELS[0], Block(now, True, then))) - 60_000 * 2.5 / 8
    for kernel in KERNELS:
        found = decode(kernel, memoryview(coded[0]), now.size, Block(now[:0], True, then))
        assert np.array_equal(found, now)
    weights = series()[0]
    alike = Block(weights[1], True, weights[0], columns=100)
    assert encode(KERNELS[0], alike)[2] == 1  # no rows to be told apart


@given(data=st.data())
def test_low_bits_that_are_always_0_take_no_space(data):
    drop = data.draw(st.integers(0, 20))
    weights = series(2000)[0] >> drop << drop
    for kernel in KERNELS:
        coded = encode(kernel, Block(weights[1], True, weights[0]))
        assert np.array_equal(
            decode(kernel, memoryview(coded), 2000, Block(weights[1][:0], True, weights[0])), weights[1]
        )
        assert len(coded) < 2000 * (25 - drop) / 8 + 600


def test_the_tier_that_takes_its_time_learns_from_neighbours():
    """Differences whose size drifts along the values: tables see them all at once."""
    random = np.random.default_rng(0)
    weights = series()[0]
    size = np.exp(np.repeat(3 * random.normal(size=50), 1000)).astype(np.float32)
    moved = (weights[0].view(np.float32) + 1e-5 * size * random.normal(size=50_000).astype(np.float32)).view("<u4")
    for kernel in both():
        fast, most = (encode(kernel, Block(moved, True, weights[0]), tier) for tier in ("fast", "max"))
        assert most[0] == Codec.ADAPTIVE
        assert len(most) < 0.97 * len(fast)


def test_small_whole_numbers_take_few_bits():
    values = np.random.default_rng(0).integers(0, 1000, 20_000).astype("<u8")
    for kernel in both():
        assert len(encode(kernel, Block(values, False))) < values.nbytes / 5


def test_weights_rounded_to_bfloat16_in_float32_take_half():
    weights = series()[0][0] & np.uint32(0xFFFF0000)
    for kernel in both():
        assert len(encode(kernel, Block(weights, True))) < weights.nbytes / 2.9


@given(data=st.data())
def test_changed_bytes_decode_to_something_or_are_broken(data):
    weights, second, first = series(600, seed=1)
    block = data.draw(st.sampled_from([
        Block(weights[1], True, weights[0]), Block(weights[1] >> 8 << 8, True, weights[0] >> 8 << 8),
        Block(second[1], True, second[0], columns=20), Block(first, True, None, second[1]), Block(weights[0], True),
        Block(np.frombuffer(b"abcd" * 200, np.uint8), False),
    ]))  # fmt: skip
    coded = bytearray(encode(KERNELS[0], block, data.draw(st.sampled_from(["fast", "max"]))))
    for _ in range(data.draw(st.integers(1, 4))):
        coded[data.draw(st.integers(0, len(coded) - 1))] = data.draw(st.integers(0, 255))
    cut = data.draw(st.integers(0, len(coded)))
    results = []
    for kernel in KERNELS:
        try:
            results.append(decode(kernel, memoryview(bytes(coded[:cut])), block.values.size, known(block)).tobytes())
        except Broken:
            results.append(b"broken")
    assert len(set(results)) == 1  # both decoders say the same
