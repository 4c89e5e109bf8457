"""A form over a table of runs, in the coordinates in which it is fitted: logarithms of amplitudes, centred logarithms.

Centring makes the fit well conditioned: with ln D1, ln D2 and ln N as they are, the normal matrix of the upcycling form
has a condition of 8e10, centred of 8e5. It only changes coordinates, linearly, so that fits and draws are turned back
exactly. A constant (E) stays as it is and may fall below 0: cut off there, an interval would lie about it.

Several ways to a model (dense, from scratch, upcycled) are fitted at once where they share a number; each has rows of
the table of its own, and its parameters are called WAY.NAME.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import prod

import numpy as np
from numpy.typing import NDArray

from rekindle.laws.forms import Floats, Form, Points, Term

_FAR = 600.0  # logarithm of an amplitude where nothing holds it
_MOST = 60.0  # logarithm of a term: a step that goes further is refused, but not by an overflow


@dataclass(frozen=True)
class Piece:
    """A term over its rows of the table: `amplitude` is its coordinate (None: 1), `phi` [rows, exponents]."""

    rows: slice
    amplitude: int | None
    constant: bool  # no exponents: its amplitude is a coordinate as it is
    exponents: NDArray[np.intp]
    phi: Floats


class Design:
    """Forms over points [n], sorted so that each way has a run of rows."""

    def __init__(
        self,
        forms: Mapping[str, Form],
        points: Mapping[str, Points],
        constants: Mapping[str, float],
        shared: Sequence[str] = (),
        centred: bool = True,
    ):
        self.forms, self.shared = dict(forms), frozenset(shared)
        self._made_of = (forms, points, constants, shared)
        self.names = tuple(dict.fromkeys(self.name(w, p) for w, form in forms.items() for p in form.parameters))
        at = {name: i for i, name in enumerate(self.names)}
        logs = {way: form.logs(constants, points[way]) for way, form in forms.items()}
        self.centres = _centres(logs) if centred else dict.fromkeys((v for found in logs.values() for v in found), 0.0)
        self.pieces: list[Piece] = []
        self.to_centred = np.eye(len(at))
        self.constant = np.zeros(len(at), bool)
        start = 0
        for way, form in forms.items():
            count = len(next(iter(logs[way].values())))
            about = {v: logs[way][v] - self.centres[v] for v in form.variables}
            for term in form.terms:
                exponents = np.array([at[self.name(way, e)] for e, _ in term.exponents], np.intp)
                phi = [np.broadcast_to(f(about), count) for _, f in term.exponents]
                amplitude = at[self.name(way, term.amplitude)] if term.amplitude else None
                rows = slice(start, start + count)
                columns = np.stack(phi, axis=1) if phi else np.zeros((count, 0))
                self.pieces.append(Piece(rows, amplitude, not phi, exponents, columns))
                if not phi:
                    self.constant[amplitude] = True
                self._centre(way, term, at)
            start += count
        self.rows = start

    def uncentred(self) -> Design:
        """The same with each coordinate a number of the form: ill conditioned, but one of them can be held."""
        return Design(*self._made_of, centred=False)

    def name(self, way: str, parameter: str) -> str:
        return parameter if parameter in self.shared or len(self.forms) == 1 else f"{way}.{parameter}"

    def values(self, z: Floats) -> Floats:
        """Coordinates [..., p] as the form's own numbers."""
        raw = np.linalg.solve(self.to_centred, z[..., None])[..., 0]
        return np.where(self.logarithmic, np.exp(np.clip(np.where(self.logarithmic, raw, 0.0), -_FAR, _FAR)), raw)

    def coordinates(self, values: Floats) -> Floats:
        """The form's own numbers [..., p] as coordinates."""
        logs = np.log(np.where(self.logarithmic, values, 1.0))
        return np.where(self.logarithmic, logs, values) @ self.to_centred.T

    @property
    def logarithmic(self) -> NDArray[np.bool_]:
        """Which coordinates are logarithms: the amplitudes, but for constants."""
        found = np.zeros(len(self.names), bool)
        found[[p.amplitude for p in self.pieces if p.amplitude is not None and not p.constant]] = True
        return found

    def each(self, z: Floats) -> list[Floats]:
        """The pieces' values [B, rows] at coordinates [B, p]."""
        found = []
        for piece in self.pieces:
            if piece.constant:
                found.append(z[:, piece.amplitude, None] * np.ones(piece.phi.shape[0]))
            else:
                power = z[:, piece.exponents] @ piece.phi.T
                if piece.amplitude is not None:
                    power += z[:, piece.amplitude, None]
                found.append(np.exp(np.minimum(power, _MOST, out=power), out=power))
        return found

    def predict(self, z: Floats, each: Sequence[Floats] | None = None) -> Floats:
        """Losses [B, n]."""
        found = np.zeros((len(z), self.rows))
        for piece, values in zip(self.pieces, each or self.each(z), strict=True):
            found[:, piece.rows] += values
        return found

    def jacobian(self, z: Floats, each: Sequence[Floats] | None = None) -> Floats:
        """Derivatives [B, n, p] of the losses by the coordinates."""
        found = np.zeros((len(z), self.rows, len(self.names)))
        for piece, values in zip(self.pieces, each or self.each(z), strict=True):
            if piece.amplitude is not None:
                found[:, piece.rows, piece.amplitude] += 1.0 if piece.constant else values
            for column, exponent in enumerate(piece.exponents):
                found[:, piece.rows, exponent] += values * piece.phi[:, column]
        return found

    def _centre(self, way: str, term: Term, at: Mapping[str, int]) -> None:
        """A term's share of the matrix from (ln amplitude, exponents) to the same about the centre.

        The product of (u + c) over a feature's variables gives one of every part of it; that part's coefficient belongs
        to the exponent of that part, or to the amplitude.
        """
        own = {f.variables: (self.name(way, e), f.factor) for e, f in term.exponents}
        for exponent, feature in term.exponents:
            for size in range(len(feature.variables)):
                for part in combinations(feature.variables, size):
                    rest = [v for v in feature.variables if v not in part]
                    share = feature.factor * prod(self.centres[v] for v in rest)
                    if part in own:
                        name, factor = own[part]
                        self.to_centred[at[name], at[self.name(way, exponent)]] += share / factor
                    elif not part and term.amplitude:
                        self.to_centred[at[self.name(way, term.amplitude)], at[self.name(way, exponent)]] += share
                    else:
                        raise AssertionError(f"{exponent} of {term} cannot be centred")


def _centres(logs: Mapping[str, Points]) -> dict[str, float]:
    """The mean logarithm of each variable, over all ways."""
    variables = {v for found in logs.values() for v in found}
    return {v: float(np.concatenate([found[v] for found in logs.values() if v in found]).mean()) for v in variables}
