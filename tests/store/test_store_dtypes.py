"""bfloat16 and its neighbours against torch, bit by bit."""

from __future__ import annotations

import warnings

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as arrays

from rekindle.store.dtypes import BITS, COMPUTED, TORCH, count_not_finite, from_float, nbytes, to_float

ALL_16 = np.arange(1 << 16, dtype=np.uint32).astype(np.uint16)


def fp32_patterns() -> np.ndarray:
    """Every sign, exponent and upper mantissa, with the lower mantissas that decide how bfloat16 rounds; and others."""
    lower = np.array([0, 1, 0x7FFF, 0x8000, 0x8001, 0xFFFF], np.uint32)
    chosen = ((ALL_16.astype(np.uint32) << 16)[:, None] | lower).reshape(-1)
    return np.concatenate([chosen, np.random.default_rng(0).integers(0, 1 << 32, 1 << 18, np.uint32)]).view(np.float32)


def as_torch(values: np.ndarray, dtype: str) -> np.ndarray:
    cast = torch.from_numpy(values.copy()).to(getattr(torch, TORCH[dtype]))
    return cast.view(torch.uint16).numpy() if dtype == "BF16" else cast.numpy()


def test_every_bfloat16_widens_as_torchs():
    wide = torch.from_numpy(ALL_16.copy()).view(torch.bfloat16).float().numpy()
    np.testing.assert_array_equal(to_float(ALL_16, "BF16").view(np.uint32), wide.view(np.uint32))


def test_every_bfloat16_survives_the_round_trip():
    finite = (ALL_16 & 0x7F80) != 0x7F80
    back = from_float(to_float(ALL_16, "BF16"), "BF16")
    np.testing.assert_array_equal(back[finite], ALL_16[finite])
    infinite = (ALL_16 & 0x7FFF) == 0x7F80
    np.testing.assert_array_equal(back[infinite], ALL_16[infinite])
    assert np.isnan(to_float(back[~finite & ~infinite], "BF16")).all()


def test_rounding_to_bfloat16_is_torchs():
    values = fp32_patterns()
    ours, theirs = from_float(values, "BF16"), as_torch(values, "BF16")
    nan = np.isnan(values)
    np.testing.assert_array_equal(ours[~nan], theirs[~nan])
    assert np.isnan(to_float(ours[nan], "BF16")).all()
    assert (nan == np.isnan(to_float(ours, "BF16"))).all()


def test_rounding_to_float16_is_torchs():
    """Overflow to infinity and subnormals included."""
    values = fp32_patterns()
    ours, theirs = from_float(values, "F16"), as_torch(values, "F16")
    nan = np.isnan(values)
    np.testing.assert_array_equal(ours[~nan].view(np.uint16), theirs[~nan].view(np.uint16))
    assert np.isnan(ours[nan]).all()
    assert np.isposinf(from_float(np.array([65520.0], np.float32), "F16"))
    assert from_float(np.array([65519.0], np.float32), "F16") == 65504


@given(arrays.arrays(np.float64, 20, elements=st.floats(width=64)))
def test_float64_narrows_without_a_warning(values):
    for dtype in COMPUTED:
        made = from_float(values, dtype)
        assert (np.isnan(to_float(made, dtype)) == np.isnan(values)).all()


@pytest.mark.parametrize("wide", ["F64", "F32", "F16", "BF16"])
@pytest.mark.parametrize("dtype", COMPUTED)
def test_signalling_nans_stay_nan_and_silent(wide, dtype):
    bits = {"F64": (np.uint64, 0x7FF0000000000001), "F32": (np.uint32, 0x7F800001), "F16": (np.uint16, 0x7C01)}
    kind, pattern = bits.get(wide, (np.uint16, 0x7F81))
    stored = np.array([pattern] * 40, kind).view(COMPUTED[wide])
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        made = from_float(to_float(stored, wide), dtype)
    assert count_not_finite(made, dtype) == 40


@pytest.mark.parametrize("dtype", COMPUTED)
def test_not_finite_are_counted_as_torch_does(dtype):
    stored = fp32_patterns() if dtype in ("F32", "F64") else ALL_16
    stored = from_float(stored, "F64") if dtype == "F64" else stored.view(COMPUTED[dtype])
    tensor = torch.from_numpy(stored.copy())
    tensor = tensor.view(torch.bfloat16) if dtype == "BF16" else tensor
    assert count_not_finite(stored, dtype) == int((~torch.isfinite(tensor)).sum())


def test_codes_are_never_not_finite():
    assert count_not_finite(np.full(4, 0xFF, np.uint8), "F8_E4M3") == 0


@pytest.mark.parametrize(("dtype", "name"), TORCH.items())
def test_sizes_are_torchs(dtype, name):
    assert BITS[dtype] == 8 * torch.empty((), dtype=getattr(torch, name)).element_size()
    assert nbytes(dtype, (3, 5)) == torch.empty(3, 5, dtype=getattr(torch, name)).nbytes


def test_half_bytes_have_no_size():
    assert nbytes("F4", (2, 3)) == 3
    with pytest.raises(ValueError, match="whole bytes"):
        nbytes("F4", (3,))
