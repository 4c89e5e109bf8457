"""The standard normal quantile in basic IEEE operations: exact, and by parabolas for draws of 32 bits.

Wichura 1988, algorithm AS 241, PPND16: relative error about 1e-16, evaluated with nothing but + - x / and square
roots, which IEEE 754 rounds alike everywhere; a library's log or cos may differ in the last bit. The parabolas are
made from it with the same operations, so two machines make the same table.
"""

from __future__ import annotations

from functools import cache
from math import sqrt

import numpy as np
from numpy.typing import NDArray

CELLS = 1 << 13  # parabolas: 96 kB, which the second cache holds
SHIFT = 32 - 13  # bits of a draw that are left inside its cell
EXACT = 32  # cells at each end, 0.8 % of all draws, too steep for a parabola: they are left to AS 241

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


class Parabolas:
    """The quantile x at (draw + 1/2) / 2^32 to within 2^-22 |x| + 2^-33; with its scratch, so one for each thread."""

    def __init__(self, most: int):
        self._cell = np.empty(most, np.int64)  # what np.take wants
        self._t, self._c = np.empty((2, most), np.float32)

    def evaluate(self, draws: NDArray[np.uint32], out: NDArray[np.float32]) -> NDArray[np.intp]:
        """Fill `out` for all draws but those in the tails, whose positions are returned."""
        c0, c1, c2 = _coefficients()
        n = len(draws)
        cell, t, c = self._cell[:n], self._t[:n], self._c[:n]
        np.right_shift(draws, SHIFT, out=cell, casting="unsafe")
        t[:] = (draws & np.uint32((1 << SHIFT) - 1)).view(np.int32)  # signed integers become floats faster
        np.take(c2, cell, out=out, mode="wrap")  # wrap: the mode that checks least
        for coefficient in (c1, c0):
            out *= t
            out += np.take(coefficient, cell, out=c, mode="wrap")
        end = np.uint32(EXACT << SHIFT)
        return np.flatnonzero(draws + end < 2 * end)  # the sum wraps: both tails in one comparison


@cache
def _coefficients() -> NDArray[np.float32]:
    """Coefficients [3, CELLS] of 1, t, t^2 by the draw's first bits, t its other bits: through 3 Chebyshev points."""
    first = np.arange(CELLS, dtype=np.float64) * 2.0**SHIFT
    t0, t1, t2 = ((0.5 + node * sqrt(3) / 4) * 2.0**SHIFT for node in (-1, 0, 1))
    y0, y1, y2 = (quantile((first + t + 0.5) * 2.0**-32) for t in (t0, t1, t2))
    slope0, slope1 = (y1 - y0) / (t1 - t0), (y2 - y1) / (t2 - t1)
    c2 = (slope1 - slope0) / (t2 - t0)
    c1 = slope0 - c2 * (t0 + t1)
    return np.array([y0 - t0 * (c1 + t0 * c2), c1, c2], np.float32)


def quantile(u: NDArray[np.float64]) -> NDArray[np.float64]:
    """The standard normal quantile at probabilities 0 < u < 1."""
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
