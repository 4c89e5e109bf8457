"""The mathematics of pooling heads: what the heads of a group have in common, out of second moments.

The N members y_i = W_i x of a group are to share one head z = sum_i E_i y_i, and the model goes on to use D_i z where
it used y_i: the *encoders* E go into the pooled rows, the *decoders* D into what reads them, queries for keys and the
output projection for values. What is lost is

    sum_i E[(y_i - D_i z)' M_i (y_i - D_i z)],   M_i = E[q q'] of the queries that meet key i, or O'O of the output
                                                 columns that meet value i

so keys count as far as they change scores, values as far as they change the output. `aligned` minimises it over all
maps that attention leaves free: any invertible one where there is no RoPE; a rotation and a scale of each plane that
RoPE turns, which is a complex number. Either way the best z are principal components of the members (Eckart-Young),
and heads that are equal up to such maps are pooled without loss.

Source: Jin et al. 2024, arXiv 2412.20677, section 3, who rotate heads towards their mean (orthogonal Procrustes).
Departure: least squares over all free maps, not over rotations alone, and errors weighted by what reads them.

N members of a group   A head dim   P planes that RoPE turns   C size of a component: A, or 1 complex number of a plane
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

RIDGE = 1e-3  # of the mean weight: directions that nothing reads on the sample may yet be read
Matrix = NDArray[np.float64]


class Maps(NamedTuple):
    """How a group of heads is pooled."""

    encode_NAA: Matrix
    decode_NAA: Matrix


class Lost(NamedTuple):
    """Weighted second moments of a group."""

    lost: float  # of y - D z
    back: float  # of D z
    there: float  # of y


def mean(members: int, head_dim: int) -> Maps:
    same = np.broadcast_to(np.eye(head_dim), (members, head_dim, head_dim))
    return Maps(same / members, same)


def first(members: int, head_dim: int) -> Maps:
    same = mean(members, head_dim).decode_NAA
    return Maps(same * np.eye(members)[0][:, None, None], same)


def aligned(moment_NANA: Matrix, weight_NAA: Matrix, rotary_dim: int) -> Maps:
    """The least lossy maps. `rotary_dim`: the first dims of a head, that RoPE turns in pairs (i, i + rotary_dim/2)."""
    maps = Maps(np.zeros(weight_NAA.shape), np.zeros(weight_NAA.shape))
    turned, rest = slice(0, rotary_dim), slice(rotary_dim, None)
    if rotary_dim:
        moment, weight = _as_complex(moment_NANA[:, turned, :, turned], weight_NAA[:, turned, turned])
        for real, complex_PN11 in zip(maps, _principal(moment, weight), strict=True):
            real[:, turned, turned] = _as_real(complex_PN11[..., 0, 0].T)
    if rotary_dim < weight_NAA.shape[-1]:
        found = _principal(moment_NANA[:, rest, :, rest].swapaxes(1, 2), weight_NAA[:, rest, rest])
        for real, found_NAA in zip(maps, found, strict=True):
            real[:, rest, rest] = found_NAA
    return maps


def lost(moment_NANA: Matrix, weight_NAA: Matrix, maps: Maps) -> Lost:
    """What pooling by these maps costs."""
    members, size = weight_NAA.shape[:2]
    encode = maps.encode_NAA.transpose(1, 0, 2).reshape(size, -1)  # z = encode y
    cross = encode @ moment_NANA.reshape(members * size, -1)  # E[z y']
    pooled = cross @ encode.T
    there = float(np.einsum("nab,nbna->", weight_NAA, moment_NANA))
    back = float(np.sum((weight_NAA @ maps.decode_NAA @ pooled) * maps.decode_NAA))
    both = float(np.einsum("nab,bna->", weight_NAA @ maps.decode_NAA, cross.reshape(size, members, size)))
    return Lost(max(0.0, there - 2 * both + back), back, there)


def _as_complex(moment_NANA: Matrix, weight_NAA: Matrix) -> tuple[NDArray, NDArray]:
    """Planes (a, b) as numbers a + ib: moments E[y_i conj(y_j)] as [P, N, N, 1, 1], weights as [P, N, 1, 1]."""
    half = weight_NAA.shape[-1] // 2
    a, b = np.arange(half), np.arange(half) + half
    aa, ab, ba, bb = (moment_NANA[:, x, :, y] for x in (a, b) for y in (a, b))  # each [P, N, N]
    weight_NP = (weight_NAA[:, a, a] + weight_NAA[:, b, b]) / 2
    return (aa + bb + 1j * (ba - ab))[..., None, None], weight_NP.T[..., None, None]


def _as_real(complex_NP: NDArray) -> Matrix:
    """Multiplication by complex numbers as matrices [N, 2P, 2P] on the planes (i, i + P)."""
    half = complex_NP.shape[1]
    a, b = np.arange(half), np.arange(half) + half
    real = np.zeros((len(complex_NP), 2 * half, 2 * half))
    real[:, a, a] = real[:, b, b] = complex_NP.real
    real[:, b, a] = complex_NP.imag
    real[:, a, b] = -complex_NP.imag
    return real


def _principal(moment: NDArray, weight: NDArray) -> Maps:
    """The C principal components of N members of size C: encode and decode [..., N, C, C], real or complex.

    moment [..., N, N, C, C], weight [..., N, C, C]. Of all bases of the components that one is taken in which the
    decoders are, all together, of unit size and nearest to the identity: equal heads are then pooled as they are.
    """
    members, size = weight.shape[-3:-1]
    stack = weight.shape[:-3]
    root, inverse = _roots(weight)
    whitened = root[..., :, None, :, :] @ moment @ root[..., None, :, :, :]
    wide = whitened.swapaxes(-3, -2).reshape(*stack, members * size, members * size)
    components = np.linalg.eigh(wide)[1][..., -size:].reshape(*stack, members, size, size)
    encode, decode = _adjoint(components) @ root, inverse @ components
    unit, back = _inverse_root_and_root((_adjoint(decode) @ decode).mean(axis=-3))
    u, _, v = np.linalg.svd((decode @ unit[..., None, :, :]).sum(axis=-3))
    turn = u @ v
    return Maps((turn @ back)[..., None, :, :] @ encode, decode @ (unit @ _adjoint(turn))[..., None, :, :])


def _roots(weight: NDArray) -> tuple[NDArray, NDArray]:
    """Square roots of the weights of a group [..., N, C, C], made definite, and their inverses."""
    mean_weight = np.einsum("...naa->...", weight).real / (weight.shape[-3] * weight.shape[-1])
    ridge = RIDGE * np.where(mean_weight > 0, mean_weight, 1.0)
    inverse, root = _inverse_root_and_root(weight + ridge[..., None, None, None] * np.eye(weight.shape[-1]))
    return root, inverse


def _inverse_root_and_root(definite: NDArray) -> tuple[NDArray, NDArray]:
    values, vectors = np.linalg.eigh(definite)
    values = np.sqrt(values)[..., None, :]
    return (vectors / values) @ _adjoint(vectors), (vectors * values) @ _adjoint(vectors)


def _adjoint(x: NDArray) -> NDArray:
    return x.conj().swapaxes(-1, -2)


# -- which heads are alike -----------------------------------------------------------------------------------------


def groups_of_alike(cost_HH: Matrix, groups: int, seed: int, restarts: int = 20) -> NDArray[np.int64]:
    """Heads in groups of equal size whose pairs cost little together: [groups, H / groups], each ascending.

    From neighbours and from random groups, the swap of two heads that gains most is made until none gains; the best
    end is kept. cost_HH is symmetric, with a zero diagonal.
    """
    heads = len(cost_HH)
    random = np.random.default_rng(seed)
    neighbours = np.arange(heads) // (heads // groups)
    ends = [
        _descend(cost_HH, start) for start in (neighbours, *(random.permutation(neighbours) for _ in range(restarts)))
    ]
    best = min(ends, key=lambda end: end[1])[0]
    rows = np.argsort(best, kind="stable").reshape(groups, -1)
    return rows[np.argsort(rows[:, 0])]


def _descend(cost_HH: Matrix, group_H: NDArray) -> tuple[NDArray, float]:
    """(the group of each head where no swap gains, what its pairs cost)"""
    group_H, heads = group_H.copy(), np.arange(len(group_H))
    while True:
        cost_HJ = cost_HH @ (group_H[:, None] == np.arange(group_H.max() + 1))  # of each head with each group
        own_H, there_HH = cost_HJ[heads, group_H], cost_HJ[:, group_H]
        gain = own_H[:, None] + own_H - there_HH - there_HH.T + 2 * cost_HH
        gain[group_H[:, None] == group_H] = 0
        i, j = np.unravel_index(gain.argmax(), gain.shape)
        if gain[i, j] <= 1e-12 * cost_HH.sum():
            return group_H, float(own_H.sum())
        group_H[[i, j]] = group_H[[j, i]]
