"""Forms of scaling laws: sums of terms, each an amplitude times a power of what was run.

Every law here is a sum of terms

    amplitude * exp(exponent_1 * feature_1 + exponent_2 * feature_2 + ...)

whose features are logarithms of what was run (parameters, tokens, ...) or products of two of them. One evaluation and
one gradient serve all; what tells the laws apart is a table, which a fit and a page can read as well.

N params: parameters      D tokens: tokens; where there are two stages, D2, those of the second      D1 sunk: tokens of
the first      Ê experts: Clark's saturating number of experts      G granularity      1 - S active share: K / E
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from math import log, prod
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rekindle.errors import RekindleError, nearest

Points = Mapping[str, NDArray]  # variable -> its values, all of one shape; numbers as they are, not logarithms
Floats = NDArray[np.float64]
_ZERO = np.zeros(())
Values = Mapping[str, Any]  # parameter or constant -> its number, or draws of it


@dataclass(frozen=True)
class Feature:
    """`factor` times the product of the logarithms of `variables`."""

    variables: tuple[str, ...]
    factor: float

    @classmethod
    def of(cls, text: str) -> Feature:
        """Of "-params" or "+sunk*tokens"."""
        return cls(tuple(text[1:].split("*")), {"-": -1.0, "+": 1.0}[text[0]])

    def __call__(self, logs: Points) -> Floats:
        return prod((logs[v] for v in self.variables), start=np.asarray(self.factor))


@dataclass(frozen=True)
class Term:
    """An amplitude ("" is 1) and the features of its exponents; an amplitude alone is a constant."""

    amplitude: str
    exponents: tuple[tuple[str, Feature], ...] = ()

    @classmethod
    def of(cls, amplitude: str, **exponents: str) -> Term:
        return cls(amplitude, tuple((name, Feature.of(text)) for name, text in exponents.items()))

    @property
    def parameters(self) -> tuple[str, ...]:
        return (*((self.amplitude,) if self.amplitude else ()), *(name for name, _ in self.exponents))

    def __call__(self, values: Values, logs: Points) -> Floats:
        power = sum((values[name] * feature(logs) for name, feature in self.exponents), _ZERO)
        return np.exp(power) * (values[self.amplitude] if self.amplitude else 1.0)


@dataclass(frozen=True)
class Form:
    """A law without its numbers; `constants` are numbers of a law that are not fitted."""

    name: str
    formula: str
    terms: tuple[Term, ...]
    source: str
    constants: tuple[str, ...] = ()

    @property
    def parameters(self) -> tuple[str, ...]:
        """Amplitudes and exponents, each once, in the order of the terms."""
        return tuple(dict.fromkeys(name for t in self.terms for name in t.parameters))

    @property
    def variables(self) -> tuple[str, ...]:
        return tuple(dict.fromkeys(v for t in self.terms for _, f in t.exponents for v in f.variables))

    def predict(self, values: Values, points: Points) -> Floats:
        """The loss in nats per token. Values and points broadcast against each other: draws [n, 1], points [m]."""
        logs = self.logs(values, points)
        with np.errstate(over="ignore", invalid="ignore"):  # draws of a fit that nothing holds reach infinity
            found = sum((term(values, logs) for term in self.terms), _ZERO)
        return np.where(np.isnan(found), np.inf, found)

    def gradient(self, values: Values, points: Points) -> dict[str, Floats]:
        """The derivative of the loss by each parameter."""
        logs = self.logs(values, points)
        found: dict[str, Floats] = dict.fromkeys(self.parameters, _ZERO)
        for term in self.terms:
            value = term(values, logs)
            if term.amplitude:
                found[term.amplitude] = found[term.amplitude] + value / values[term.amplitude]
            for name, feature in term.exponents:
                found[name] = found[name] + value * feature(logs)
        return found

    def logs(self, constants: Values, points: Points) -> dict[str, Floats]:
        """Natural logarithms of the variables, with Clark's saturation of the number of experts."""
        logs = {v: np.log(points[v]) for v in self.variables if v != "experts"}
        if "experts" in self.variables:
            logs["experts"] = np.log(saturated(points["experts"], constants["E_start"], constants["E_max"]))
        return logs


def saturated(experts: NDArray | float, start: Floats | float, most: Floats | float) -> Floats:
    """Ê of E experts: between `start` at one expert and `most` at infinitely many. Clark et al. 2022, eq. 8."""
    inverse = 1 / (np.asarray(experts) - 1 + 1 / (1 / np.asarray(start) - 1 / np.asarray(most))) + 1 / np.asarray(most)
    return 1 / inverse


_JOINT = Term.of("A", alpha1="-sunk", alpha2="-tokens", alpha3="+sunk*tokens")
_MODEL = Term.of("B", beta="-params")
_FLOOR = Term.of("E")
_UPCYCLING = "Liew, Kato, Takase 2025, arXiv 2502.03009"

FORMS: dict[str, Form] = {
    form.name: form
    for form in (
        Form(
            "chinchilla",
            "A N^-alpha + B D^-beta + E",
            (Term.of("A", alpha="-params"), Term.of("B", beta="-tokens"), _FLOOR),
            "Hoffmann et al. 2022, arXiv 2203.15556, eq. 2",
        ),
        Form(
            "one-stage",
            "A D^-alpha + B N^-beta + E",
            (Term.of("A", alpha="-tokens"), _MODEL, _FLOOR),
            _UPCYCLING + ", table 2",
        ),
        Form(
            "upcycling",
            "A D1^-alpha1 D2^(-alpha2 + alpha3 ln D1) + B N^-beta + E",
            (_JOINT, _MODEL, _FLOOR),
            _UPCYCLING + ", eq. 12",
        ),
        Form(
            "upcycling-data",
            "A D1^-alpha1 D2^(-alpha2 + alpha3 ln D1) + E",
            (_JOINT, _FLOOR),
            _UPCYCLING + ", eq. 1",
        ),
        Form(
            "no-interaction",
            "A D1^-alpha1 D2^-alpha2 + B N^-beta + E",
            (Term.of("A", alpha1="-sunk", alpha2="-tokens"), _MODEL, _FLOOR),
            "the upcycling form with alpha3 = 0",
        ),
        Form(
            "additive",
            "A D1^-alpha1 + C D2^-alpha2 + B N^-beta + E",
            (Term.of("A", alpha1="-sunk"), Term.of("C", alpha2="-tokens"), _MODEL, _FLOOR),
            "the upcycling form with both stages apart",
        ),
        Form(
            "moe-routed",
            "10^d N^(a + c log10 Ê) Ê^b",
            (
                Term(
                    "",
                    (
                        ("a", Feature(("params",), 1.0)),
                        ("b", Feature(("experts",), 1.0)),
                        ("c", Feature(("params", "experts"), 1 / log(10))),
                        ("d", Feature((), log(10))),
                    ),
                ),
            ),
            "Clark et al. 2022, arXiv 2202.01169, eq. 7",
            ("E_start", "E_max"),
        ),
        Form(
            "moe-granularity",
            "(g G^-gamma + a) N^-alpha + b D^-beta + c",
            (
                Term.of("g", gamma="-granularity", alpha="-params"),
                Term.of("a", alpha="-params"),
                Term.of("b", beta="-tokens"),
                Term.of("c"),
            ),
            "Krajewski et al. 2024, arXiv 2402.07871, eq. 9",
        ),
        Form(
            "moe-joint",
            "a Ê^delta N^(alpha + gamma ln Ê) + b Ê^omega D^(beta + zeta ln Ê) + c",
            (
                Term.of("a", delta="+experts", alpha="+params", gamma="+params*experts"),
                Term.of("b", omega="+experts", beta="+tokens", zeta="+tokens*experts"),
                Term.of("c"),
            ),
            "Ludziejewski et al. 2025, arXiv 2502.05172, eq. 6",
            ("E_start", "E_max"),
        ),
        Form(
            "moe-sparsity",
            "a N^-alpha + b D^-beta + c (1 - S)^-lambda + d (1 - S)^-delta N^-gamma + e",
            (
                Term.of("a", alpha="-params"),
                Term.of("b", beta="-tokens"),
                Term("c", (("lambda", Feature.of("-active_share")),)),
                Term.of("d", delta="-active_share", gamma="-params"),
                Term.of("e"),
            ),
            "Abnar et al. 2025, arXiv 2501.12370, eq. 6",
        ),
    )
}


def form_named(name: str) -> Form:
    """Raises RekindleError with the nearest name."""
    if name not in FORMS:
        raise RekindleError(f"There is no form {name!r}.", hint=nearest(name, FORMS) or ", ".join(FORMS))
    return FORMS[name]
