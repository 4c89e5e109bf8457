"""Distances between samples: closed forms."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from rekindle.search.distances import frechet, gaussian, kernel, nearest, sliced_wasserstein


def drawn(n, d, seed, scale=1.0, shift=0.0):
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed)) * scale + shift


def with_moments(x, mean, scale):
    """A sample whose mean and covariance are exactly these."""
    x = x.double() - x.double().mean(0)
    root = torch.linalg.cholesky(torch.cov(x.T))
    return torch.linalg.solve_triangular(root, x.T, upper=False).T * scale + mean


def test_frechet_of_equal_sets_is_0_and_of_gaussians_the_closed_form():
    x = drawn(500, 6, 0)
    assert float(frechet(x, gaussian(x))) == pytest.approx(0, abs=1e-9)
    scales, shift = torch.tensor([0.5, 1.0, 2.0]).double(), torch.tensor([0.0, 1.0, -2.0]).double()
    one = with_moments(drawn(300, 3, 1), torch.zeros(3).double(), torch.ones(3).double())
    other = with_moments(drawn(300, 3, 2), shift, scales)
    wanted = float(shift.square().sum() + (scales - 1).square().sum())
    assert float(frechet(other, gaussian(one))) == pytest.approx(wanted, rel=1e-9)


@given(st.integers(0, 1000))
@settings(max_examples=20)
def test_frechet_is_symmetric_and_does_not_turn(seed):
    x, y = drawn(60, 4, seed), drawn(80, 4, seed + 1, 2.0, 0.5)
    turn = torch.linalg.qr(drawn(4, 4, seed + 2).double()).Q
    found = float(frechet(x, gaussian(y)))
    assert float(frechet(y, gaussian(x))) == pytest.approx(found, rel=1e-8)
    assert float(frechet(x.double() @ turn, gaussian(y.double() @ turn))) == pytest.approx(found, rel=1e-8)
    assert found > 0


def test_fewer_samples_than_features_have_a_distance_and_a_slope():
    x = drawn(10, 32, 0).requires_grad_()
    found = frechet(x, gaussian(drawn(500, 32, 1)))
    found.backward()
    assert torch.isfinite(found)
    assert torch.isfinite(x.grad).all()


@pytest.mark.parametrize("distance", ["frechet", "kernel", "sliced"])
def test_slopes_are_those_of_differences(distance):
    y = drawn(40, 3, 1)
    of = {"frechet": lambda x: frechet(x, gaussian(y)), "kernel": lambda x: kernel(x, y),
          "sliced": lambda x: sliced_wasserstein(x, y, 16)}[distance]  # fmt: skip
    x = drawn(30, 3, 0, 1.3, 0.2).double().requires_grad_()
    assert torch.autograd.gradcheck(of, (x,), eps=1e-6, atol=1e-5)


def test_kid_is_unbiased():
    found = torch.stack([kernel(drawn(40, 5, 2 * i), drawn(50, 5, 2 * i + 1)) for i in range(400)])
    assert abs(float(found.mean())) < 3 * float(found.std()) / math.sqrt(400)
    assert (found < 0).any()
    assert float(kernel(drawn(200, 5, 0), drawn(200, 5, 1, shift=1.0))) > 10 * float(found.std())


def test_sliced_wasserstein_of_a_shift_is_its_length_along_the_directions():
    x = drawn(500, 1, 0)
    assert float(sliced_wasserstein(x, x)) == 0
    assert float(sliced_wasserstein(x + 2.0, x)) == pytest.approx(2.0)
    assert float(sliced_wasserstein(x, torch.cat([x, x]))) < 0.02


def test_nearest_finds_copies():
    x = drawn(50, 4, 0)
    assert float(nearest(x[:10], x)) == pytest.approx(0, abs=1e-3)
    assert float(nearest(x[:10] + 4.0, x[10:])) > 1
