"""Gaussian noise that is a function of (seed, key, position): the same bytes in any order, on any machine.

Philox is a counter-based generator (Salmon et al. 2011), so any block can be drawn on its own. The normal
quantile (Wichura 1988, algorithm AS 241, PPND16: relative error about 1e-16) is evaluated with nothing but
+ - x / and square roots, which IEEE 754 rounds alike everywhere; a library's log or cos may differ in the last bit.
"""

from __future__ import annotations

import hashlib

import numpy as np
from numpy.typing import NDArray

CHUNK = 1 << 14  # values drawn together: a multiple of the 4 that one Philox counter yields, and fits the cache

_CENTRAL = (
    (2.5090809287301226727e3, 3.3430575583588128105e4, 6.7265770927008700853e4, 4.5921953931549871457e4,
     1.3731693765509461125e4, 1.9715909503065514427e3, 1.3314166789178437745e2, 3.3871328727963666080e0),
    (5.2264952788528545610e3, 2.8729085735721942674e4, 3.9307895800092710610e4, 2.1213794301586595867e4,
     5.3941960214247511077e3, 6.8718700749205790830e2, 4.2313330701600911252e1, 1.0),
)  # fmt: skip
_MIDDLE = (
    (7.74545014278341407640e-4, 2.27238449892691845833e-2, 2.41780725177450611770e-1, 1.27045825245236838258e0,
     3.64784832476320460504e0, 5.76949722146069140550e0, 4.63033784615654529590e0, 1.42343711074968357734e0),
    (1.05075007164441684324e-9, 5.47593808499534494600e-4, 1.51986665636164571966e-2, 1.48103976427480074590e-1,
     6.89767334985100004550e-1, 1.67638483018380384940e0, 2.05319162663775882187e0, 1.0),
)  # fmt: skip
_TAIL = (
    (2.01033439929228813265e-7, 2.71155556874348757815e-5, 1.24266094738807843860e-3, 2.65321895265761230930e-2,
     2.96560571828504891230e-1, 1.78482653991729133580e0, 5.46378491116411436990e0, 6.65790464350110377720e0),
    (2.04426310338993978564e-15, 1.42151175831644588870e-7, 1.84631831751005468180e-5, 7.86869131145613259100e-4,
     1.48753612908506148525e-2, 1.36929880922735805310e-1, 5.99832206555887937690e-1, 1.0),
)  # fmt: skip


def normal_block(seed: int, key: str, lo: int, hi: int) -> NDArray[np.float64]:
    """Standard normal values at positions lo to hi of the stream named by (seed, key)."""
    digest = hashlib.blake2b(f"{seed}/{key}".encode(), digest_size=16).digest()
    philox_key = np.frombuffer(digest, np.uint64)
    out = np.empty(hi - lo)
    for start in range(lo - lo % CHUNK, hi, CHUNK):
        bits = np.random.Philox(key=philox_key, counter=start // 4).random_raw(CHUNK)
        begin, end = max(lo, start), min(hi, start + CHUNK)
        out[begin - lo : end - lo] = quantile(bits[begin - start : end - start])
    return out


def quantile(bits: NDArray[np.uint64]) -> NDArray[np.float64]:
    """The standard normal quantile at ((bits >> 12) + 1/2) / 2^52, exact in float64 and never 0 or 1."""
    u = ((bits >> np.uint64(12)).astype(np.float64) + 0.5) * 2.0**-52
    q = u - 0.5
    r = 0.180625 - q * q
    x = q * _ratio(_CENTRAL, r)
    outer = r < 0
    tail = np.minimum(u[outer], 1.0 - u[outer])
    root = np.sqrt(-_log(tail))
    far = np.where(root <= 5.0, _ratio(_MIDDLE, root - 1.6), _ratio(_TAIL, root - 5.0))
    x[outer] = np.where(q[outer] < 0, -far, far)
    return x


def _ratio(coefficients: tuple[tuple[float, ...], tuple[float, ...]], r: NDArray) -> NDArray:
    above, below = (np.full_like(r, row[0]) for row in coefficients)
    for a, b in zip(coefficients[0][1:], coefficients[1][1:], strict=True):
        above *= r
        above += a
        below *= r
        below += b
    return above / below


def _log(x: NDArray) -> NDArray:
    """Natural logarithm by the atanh series on [sqrt(1/2), sqrt(2)): basic operations only."""
    mantissa, exponent = np.frexp(x)
    low = mantissa < np.sqrt(0.5)
    mantissa, exponent = np.where(low, 2.0 * mantissa, mantissa), exponent - low
    s = (mantissa - 1.0) / (mantissa + 1.0)
    square = s * s
    series = np.full_like(s, 1.0 / 25)
    for k in range(23, 0, -2):
        series *= square
        series += 1.0 / k
    return 2.0 * s * series + exponent * 0.6931471805599453
