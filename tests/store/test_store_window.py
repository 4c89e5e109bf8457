"""The loops over a window: numpy's against C's, bit for bit, on whatever hypothesis thinks of."""

from __future__ import annotations

import subprocess
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as npst

from rekindle.store import window as module
from rekindle.store.window import Native, Numpy

LIBRARY = Path(module.__file__).with_name("_window.so")
LOOPS = [Numpy(), *([Native(LIBRARY)] if LIBRARY.exists() else [])]
STORED = {"F32": np.uint32, "BF16": np.uint16, "F16": np.uint16}  # as whatever bits
SIZES = st.integers(0, 70)
WEIGHTS = st.floats(-4, 4, width=32)


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    """numpy's loops, C's, and C's as they are on a processor without wide vectors."""
    if len(LOOPS) < 2:
        pytest.skip("no C loops were built here: there is no compiler")
    out = tmp_path_factory.mktemp("narrow") / "window.so"
    flags = ["-O2", "-DNARROW", "-ffp-contract=off", "-shared", "-fPIC"]
    subprocess.run(["cc", *flags, "-o", str(out), str(LIBRARY.with_name("window.c"))], check=True)
    return [*LOOPS, Native(out)]


def blocks(dtype, count=1):
    """Blocks of one size, of any bits: denormals, infinities and NaN among them."""
    words = STORED[dtype]

    def of(n):
        one = npst.arrays(words, n, elements=st.integers(0, np.iinfo(words).max))
        return st.tuples(*[one.map(lambda x: x if dtype == "BF16" else x.view(f"f{x.itemsize}"))] * count)

    return SIZES.flatmap(of)


def floats(count):
    """Blocks of float32 that are often near, or equal."""
    size = st.integers(0, 70)
    near = st.sampled_from([0.0, -0.0, 1.0, 1.0000001, -1.5, 3e38, 1e-40, np.inf, np.nan]) | st.floats(width=32)
    return size.flatmap(lambda n: st.tuples(*[npst.arrays(np.float32, n, elements=near)] * count))


def same(found):
    """All results have the same bits, and NaN where the others have it."""
    for other in found[1:]:
        assert other.dtype == found[0].dtype
        nan = np.isnan(found[0]) if other.dtype.kind == "f" else np.zeros(other.shape, bool)
        assert np.array_equal(nan, np.isnan(other)) if other.dtype.kind == "f" else True
        assert np.where(nan, 0, found[0]).tobytes() == np.where(nan, 0, other).tobytes()


@pytest.mark.parametrize("dtype", STORED)
@given(data=st.data())
def test_widened_rounded_and_counted(both, dtype, data):
    (x,) = data.draw(blocks(dtype))
    (values,) = data.draw(floats(1))
    same([loops.widen(x, dtype) for loops in both])
    same([loops.round(values, dtype) for loops in both])
    assert len({loops.not_finite(x, dtype) for loops in both}) == 1


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_all_of_sixteen_bits_there_and_back(both, dtype):
    x = np.arange(1 << 16, dtype=np.uint16)
    x = x if dtype == "BF16" else x.view(np.float16)
    for loops in both:
        wide = loops.widen(x, dtype)
        finite = ~np.isnan(wide)
        assert np.array_equal(loops.round(wide, dtype).view(np.uint16)[finite], x.view(np.uint16)[finite])
        assert np.isnan(loops.widen(loops.round(wide, dtype), dtype)).sum() == (~finite).sum()
    same([loops.widen(x, dtype) for loops in both])


@pytest.mark.parametrize("dtype", ["BF16", "F16"])
def test_rounding_around_every_tie(both, dtype):
    """Of each value of 16 bits, what lies halfway to the next one and a little to either side."""
    x = np.arange(1 << 16, dtype=np.uint16)
    wide = both[0].widen(x if dtype == "BF16" else x.view(np.float16), dtype)
    with np.errstate(over="ignore", invalid="ignore"):
        half = (wide[:-1].astype(np.float64) + wide[1:]) / 2
        for shift in (-1, 0, 1):
            values = half.astype(np.float32)
            values = values if not shift else np.nextafter(values, np.float32(shift * np.inf))
            same([loops.round(values, dtype) for loops in both])


@pytest.mark.parametrize("dtype", STORED)
@given(data=st.data(), by=WEIGHTS, affine=st.booleans())
def test_sums(both, dtype, data, by, affine):
    x, first, total = data.draw(blocks(dtype, 3))
    first, total = (LOOPS[0].widen(block, dtype) for block in (first, total))
    found = []
    for loops in both:
        found.append(total.copy())
        loops.add(found[-1], x, dtype, by, first if affine else None)
    same(found)


def test_a_weight_of_minus_0_leaves_minus_0(both):
    zero, total = np.zeros(1, np.float32), np.full(1, -0.0, np.float32)
    found = [total.copy() for _ in both]
    for loops, x in zip(both, found, strict=True):
        loops.add(x, zero, "F32", -0.0, zero)
    same([total, *found])


@given(xs=floats(3), over=st.booleans())
def test_inner_products(both, xs, over):
    same([loops.products(xs[:2], xs[2] if over else None) for loops in both])


def test_inner_products_are_theirs(both):
    x, y = np.random.default_rng(0).standard_normal((2, 10_007), np.float32)
    for loops in both:
        exact = np.array([[np.dot(a.astype(float), b.astype(float)) for a in (x, y)] for b in (x, y)])
        assert np.allclose(loops.products([x, y]), exact, rtol=1e-13, atol=1e-9)
    same([loops.products([x, y]) for loops in both])


@given(xs=floats(2), upper=st.integers(0, 0x7FFF))
def test_sizes(both, xs, upper):
    found = []
    with np.errstate(all="ignore"):
        bits = np.abs(xs[0] - xs[1]).view(np.uint32)
    for shift, above in ((16, None), (0, upper), *((0, digit) for digit in (bits[:1] >> 16).tolist())):
        for loops in both:
            found.append(np.zeros(1 << 16, np.int64))
            loops.sizes(*xs, found[-1], shift, above)
        same(found[-len(both) :])


@given(xs=floats(3), lo=WEIGHTS, hi=WEIGHTS | st.just(np.inf), density=st.floats(0.0625, 1, width=32))
def test_kept_and_dropped(both, xs, lo, hi, density):
    draws, x, base = xs
    same([loops.kept(x, base, lo, hi) for loops in both])
    same([loops.dropped(draws, x, base, density) for loops in both])


@given(xs=floats(4), by=st.tuples(*[WEIGHTS] * 3))
def test_elected(both, xs, by):
    same([loops.elected(xs[:3], by, xs[3]) for loops in both])


def test_blocks_that_are_no_rows_of_memory(both):
    """Every second column, and the other byte order, are left to numpy: the same values."""
    whole = np.random.default_rng(1).standard_normal((8, 8), np.float32)
    for loops in both:
        bits = loops.round(whole[:, ::2], "BF16")
        assert np.array_equal(bits, Numpy().round(np.ascontiguousarray(whole[:, ::2]), "BF16"))
        assert np.array_equal(loops.widen(bits[:, ::2], "BF16"), Numpy().widen(bits[:, ::2].copy(), "BF16"))
        assert np.array_equal(loops.kept(whole, whole.T, 0.5, 2), Numpy().kept(whole, whole.T, 0.5, 2))
        swapped = whole.astype(">f4")
        assert np.array_equal(loops.kept(swapped, whole, 0.5, 2), Numpy().kept(whole, whole, 0.5, 2))


def test_the_environment_asks_for_numpy(monkeypatch):
    monkeypatch.setenv("REKINDLE_WINDOW", "numpy")
    assert type(module.loops.__wrapped__()) is Numpy


@pytest.mark.parametrize("dtype", STORED)
@given(data=st.data(), extra=st.integers(0, 3))
def test_many_rows_at_once(both, dtype, data, extra):
    """Sums of rows and inner products with them, beyond a block and of any number of rows."""
    rows = data.draw(blocks(dtype, 7))[: 4 + extra]
    n = data.draw(st.sampled_from([rows[0].size, 16_400]))
    rows = [np.resize(row, n) for row in rows] if rows[0].size else rows
    n = rows[0].size
    by = data.draw(st.lists(WEIGHTS, min_size=len(rows), max_size=len(rows)))
    g = np.resize(np.float32([1.0, -0.25, 3.0, 1e-3, 7.0]), n)
    totals = [np.full(n, 0.5, np.float32) for _ in both]
    for loops, total in zip(both, totals):
        loops.mix(total, rows, dtype, by)
    same(totals)
    same([loops.dots(rows, dtype, g) for loops in both])


def test_sums_and_products_of_rows_against_float64():
    rng = np.random.default_rng(0)
    rows, g = rng.standard_normal((5, 40_000), np.float32), rng.standard_normal(40_000, np.float32)
    by = [0.5, -2.0, 1.5, 0.25, 0.75]
    for loops in LOOPS:
        total = np.zeros(40_000, np.float32)
        loops.mix(total, list(rows), "F32", by)
        assert np.abs(total - np.array(by) @ rows.astype(np.float64)).max() < 2e-6
        assert np.abs(loops.dots(list(rows), "F32", g) - rows.astype(np.float64) @ g).max() < 1e-3
