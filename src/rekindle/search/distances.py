"""Distances between a sample and real data, differentiable in the sample, and how near they come between real and real.

frechet             |m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^1/2): of Gaussians with these means and covariances (Dowson and
                    Landau 1982; as FID: Heusel et al. 2017, arXiv 1706.08500). A finite sample makes it larger: compare
                    such of one size (Chong and Forsyth 2020, arXiv 1911.07023).
kernel              KID, the unbiased MMD^2 of k(x, y) = (x.y / d + 1)^3 (Binkowski et al. 2018, arXiv 1801.01401): its
                    mean is 0 where both are of one distribution, and it may be negative.
sliced_wasserstein  the mean over random directions of the 1-Wasserstein distance of the projections
nearest             of each sample the distance to the nearest of others: near 0 of the training data is learnt by heart

n, m samples   d features
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch

TINY = 1e-10  # an eigenvalue below it, as a share of the largest, is 0: its root has no slope


class Gaussian(NamedTuple):
    """Mean [d], covariance [d, d], and its root, of real data."""

    mean: torch.Tensor
    covariance: torch.Tensor
    root: torch.Tensor


def gaussian(x_nd: torch.Tensor) -> Gaussian:
    """In float64."""
    x = x_nd.flatten(1).double()
    covariance = torch.cov(x.T).reshape(x.shape[1], x.shape[1])
    values, vectors = torch.linalg.eigh(covariance)
    root = (vectors * values.clamp(min=0).sqrt()) @ vectors.T
    return Gaussian(x.mean(0), covariance, root)


def frechet(x_nd: torch.Tensor, real: Gaussian) -> torch.Tensor:
    """Of a sample [n, d] and real data: a scalar."""
    x = x_nd.flatten(1).double()
    mean, covariance = x.mean(0), torch.cov(x.T).reshape(x.shape[1], x.shape[1])
    inner = torch.linalg.eigvalsh(real.root @ covariance @ real.root)  # of S1 S2 the same
    inner = inner[inner > TINY * inner.detach().abs().max()]
    apart = (mean - real.mean).square().sum()
    return apart + covariance.diagonal().sum() + real.covariance.diagonal().sum() - 2 * inner.sqrt().sum()


def kernel(x_nd: torch.Tensor, y_md: torch.Tensor) -> torch.Tensor:
    """The unbiased estimate, a scalar."""
    x, y = x_nd.flatten(1).double(), y_md.flatten(1).double()
    n, m, d = len(x), len(y), x.shape[1]

    def within(a: torch.Tensor) -> torch.Tensor:
        """Mean over pairs of two different samples."""
        k = (a @ a.T / d + 1) ** 3
        return (k.sum() - k.diagonal().sum()) / (len(a) * (len(a) - 1))

    return within(x) + within(y) - 2 * ((x @ y.T / d + 1) ** 3).sum() / (n * m)


def sliced_wasserstein(x_nd: torch.Tensor, y_md: torch.Tensor, directions: int = 256, seed: int = 0) -> torch.Tensor:
    """Along the same directions for the same seed: a scalar in the unit of the values."""
    x, y = x_nd.flatten(1).double(), y_md.flatten(1).double()
    g = torch.Generator().manual_seed(seed)
    along = torch.randn(x.shape[1], directions, generator=g, dtype=torch.float64)
    along /= along.norm(dim=0)
    shares = (torch.arange(min(len(x), len(y)), dtype=torch.float64) + 0.5) / min(len(x), len(y))
    return (_quantiles(x @ along, shares) - _quantiles(y @ along, shares)).abs().mean()


def _quantiles(values: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
    ordered = values.sort(dim=0).values
    return ordered[(shares * len(values)).long().clamp(max=len(values) - 1)]


def nearest(x_nd: torch.Tensor, others_md: torch.Tensor) -> torch.Tensor:
    """Mean over samples of the distance to the nearest of the others, in units of a value's."""
    x, others = x_nd.flatten(1), others_md.flatten(1)
    return torch.cdist(x, others).min(dim=1).values.mean() / math.sqrt(x.shape[1])
