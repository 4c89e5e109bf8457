"""A law: forms with their numbers, how exact these are, and where they were fitted. Read from a YAML file.

A law has rows, one for each way to a model (`dense`, `scratch`, `upcycled`, ...). Numbers are kept as printed: half a
unit of the last printed digit is how far rounding may have moved them. Where a paper prints standard errors that stand
alone, a row has these too (a root mean square error of the loss is one of the additive constant). A law of your own
runs has `draws` instead, bootstrap fits of all rows together. Either way `sample` gives sets of coefficients, and
whatever is decided from a law is decided in each of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from decimal import Decimal, InvalidOperation
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rekindle.config import read_yaml
from rekindle.errors import RekindleError, nearest, together
from rekindle.laws.forms import Floats, Form, form_named

SEEN = ("seen", "second-hand", "recalled", "own runs")
PARAMS = ("dense", "active", "total")
UNIT = "nats per token; parameters and tokens as counts"
SEED = 20250203
_ROW_KEYS = ("form", "coefficients", "errors", "domain", "params")
_KEYS = ("name", "title", "source", "seen", "unit", "note", "domain", "shared", "rows", "draws", "unknown")


@dataclass(frozen=True)
class Row:
    """One form with its numbers."""

    form: Form
    values: Mapping[str, float]  # parameters and constants
    rounding: Mapping[str, float]  # half a unit of the last printed digit; 0 where all digits are there
    domain: Mapping[str, tuple[float, float]]  # variable -> least and most that it was fitted on
    params: str = "dense"  # which parameters N counts: of the dense model, the active ones, or all
    errors: Mapping[str, float] = field(default_factory=dict)  # standard errors, as far as they are printed

    def loss(self, **points: Any) -> Floats:
        """In nats per token, of arrays or numbers by variable."""
        return self.form.predict(self.values, {v: np.asarray(points[v], float) for v in self.form.variables})

    def outside(self, points: Mapping[str, Any]) -> list[str]:
        """In words, where these points leave what the law was fitted on."""
        found = []
        for variable, (least, most) in self.domain.items():
            if variable not in points:
                continue
            low, high = float(np.min(points[variable])), float(np.max(points[variable]))
            if low < least * (1 - 1e-9) or high > most * (1 + 1e-9):
                seen = f"{low:.3g}" if low == high else f"{low:.3g} to {high:.3g}"
                found.append(f"{variable} {seen} (fitted on {least:.3g} to {most:.3g})")
        return found


@dataclass(frozen=True)
class Law:
    name: str
    title: str
    source: str
    seen: str  # how sure we are of the numbers
    unit: str  # of the loss, of parameters and tokens
    note: str
    rows: Mapping[str, Row]
    shared: frozenset[str] = frozenset()  # coefficients that are one number in all rows
    draws: Mapping[str, Mapping[str, Floats]] = field(default_factory=dict)  # row -> parameter -> [n]
    unknown: tuple[str, ...] = ()  # numbers of which the runs say nothing: the draws hold within the domain alone

    @property
    def fit_error_known(self) -> bool:
        return bool(self.draws) or all(row.errors for row in self.rows.values())

    def row(self, name: str) -> Row:
        """Raises RekindleError where the law has no such row."""
        if name not in self.rows:
            raise RekindleError(f"The law {self.name} has no row {name!r}.", hint=", ".join(self.rows))
        return self.rows[name]

    def sample(self, count: int) -> dict[str, dict[str, Floats]]:
        """Sets of numbers that the law may as well have, row -> name -> [count, 1]; the same at every call.

        Bootstrap draws where the law has them; else each printed number anywhere within its rounding and, normally,
        about its standard error, independently, those that rows share drawn once.
        """
        if self.draws:
            return {
                name: {
                    **_constants(row, count),
                    **{k: np.resize(v, count)[:, None] for k, v in self.draws[name].items()},
                }
                for name, row in self.rows.items()
            }
        random = np.random.default_rng(SEED)
        once: dict[str, Floats] = {}
        found: dict[str, dict[str, Floats]] = {}
        for name, row in self.rows.items():
            found[name] = {}
            for key, value in row.values.items():
                drawn = value + row.rounding[key] * random.uniform(-1, 1, (count, 1))
                drawn += row.errors[key] * random.standard_normal((count, 1)) if key in row.errors else 0.0
                found[name][key] = once.setdefault(key, drawn) if key in self.shared else drawn
        return found


def _constants(row: Row, count: int) -> dict[str, Floats]:
    return {key: np.full((count, 1), row.values[key]) for key in row.form.constants}


@cache
def published() -> dict[str, Law]:
    """The laws that come with Rekindle, by name."""
    folder = resources.files("rekindle.laws") / "published"
    paths = sorted((Path(str(path)) for path in folder.iterdir() if path.name.endswith(".yaml")), key=lambda p: p.name)
    laws = [read_law(path) for path in paths]
    return {law.name: law for law in laws}


def law_named(name: str | Path) -> Law:
    """A published law by its name, or one of your own by its file."""
    if str(name) in published():
        return published()[str(name)]
    if Path(name).exists() or str(name).endswith((".yaml", ".yml")):
        return read_law(Path(name))
    raise RekindleError(f"There is no law {str(name)!r}.", hint=nearest(str(name), published()) or "rekindle laws")


def read_law(path: Path) -> Law:
    """Raises RekindleError with everything that is wrong with the file."""
    return parse_law(read_yaml(path), path)


def parse_law(data: Mapping[str, Any], path: Path) -> Law:
    """A law of what its file holds, or would hold."""
    problems = [
        RekindleError(f"A law has no key {key!r}.", where=path, hint=nearest(key, _KEYS) or ", ".join(_KEYS))
        for key in data
        if key not in _KEYS
    ]
    if not isinstance(data.get("rows"), dict) or not data["rows"]:
        problems.append(RekindleError("A law needs rows.", where=path, hint="rows: {dense: {form: ..., ...}}"))
    if data.get("seen", "own runs") not in SEEN:
        problems.append(RekindleError(f"seen is {data['seen']!r}.", where=path, hint=", ".join(SEEN)))
    if problems:
        raise together(problems)
    for key in ("shared", "domain", "draws"):
        if not isinstance(data.get(key) or {}, dict):
            raise RekindleError(f"{key} is {data[key]!r}, not names with values.", where=path, hint="docs/laws.md")
    shared, domain = data.get("shared") or {}, data.get("domain") or {}
    rows = {}
    for name, row in data["rows"].items():
        try:
            rows[name] = _row(row, shared, domain, f"{path}: rows.{name}")
        except RekindleError as error:
            problems.append(error)
    if problems:
        raise together(problems)
    return Law(
        name=str(data.get("name", path.stem)),
        title=str(data.get("title", path.stem)),
        source=str(data.get("source", path)),
        seen=data.get("seen", "own runs"),
        unit=str(data.get("unit", UNIT)),
        note=str(data.get("note", "")),
        rows=rows,
        shared=frozenset(shared),
        draws=_draws(data.get("draws") or {}, rows, path),
        unknown=tuple(map(str, data.get("unknown") or ())),
    )


def _row(data: Any, shared: Mapping[str, Any], domain: Mapping[str, Any], where: str) -> Row:
    if not isinstance(data, dict) or not isinstance(data.get("coefficients"), dict) or "form" not in data:
        raise RekindleError("A row needs a form and coefficients.", where=where, hint="form: chinchilla")
    if wrong := [key for key in data if key not in _ROW_KEYS]:
        raise RekindleError(f"A row has no key {wrong[0]!r}.", where=where, hint=nearest(wrong[0], _ROW_KEYS))
    form = form_named(str(data["form"]))
    given = {k: v for k, v in shared.items() if k in form.parameters} | data["coefficients"]
    wanted = (*form.parameters, *form.constants)
    if missing := [name for name in wanted if name not in given]:
        raise RekindleError(f"The form {form.name} needs {', '.join(missing)}.", where=where, hint=form.formula)
    if unknown := [name for name in given if name not in wanted]:
        raise RekindleError(f"The form {form.name} has no {', '.join(unknown)}.", where=where, hint=form.formula)
    numbers = {name: _printed(given[name], f"{where}.{name}") for name in wanted}
    errors = data.get("errors") or {}
    if not isinstance(errors, dict) or any(name not in wanted for name in errors):
        raise RekindleError(f"errors is {errors!r}.", where=where, hint=f"standard errors of {', '.join(wanted)}")
    limits = {**domain, **(data.get("domain") or {})}
    for variable, limit in limits.items():
        if not _is_range(limit):
            raise RekindleError(f"The domain of {variable} is {limit!r}.", where=where, hint="[least, most]")
    return Row(
        form,
        {name: value for name, (value, _) in numbers.items()},
        {name: half for name, (_, half) in numbers.items()},
        {variable: (float(low), float(high)) for variable, (low, high) in limits.items()},
        _counted(data.get("params", "dense"), where),
        {name: _printed(error, f"{where}.errors.{name}")[0] for name, error in errors.items()},
    )


def _is_range(limit: Any) -> bool:
    try:
        low, high = map(float, limit)
    except (TypeError, ValueError):
        return False
    return 0 <= low <= high < float("inf")


def _counted(which: Any, where: str) -> str:
    if which not in PARAMS:
        raise RekindleError(f"params is {which!r}.", where=where, hint=", ".join(PARAMS))
    return which


def _printed(number: Any, where: str) -> tuple[float, float]:
    """A number, and half a unit of its last digit where it is kept as it was printed: as text."""
    try:
        exact = Decimal(str(number))
        if not exact.is_finite():
            raise InvalidOperation
    except InvalidOperation:
        raise RekindleError(f"{number!r} is not a number.", where=where) from None
    exponent = exact.as_tuple().exponent
    assert isinstance(exponent, int)
    return float(exact), float(Decimal(5).scaleb(exponent - 1)) if isinstance(number, str) else 0.0


def _draws(data: Mapping[str, Any], rows: Mapping[str, Row], path: Path) -> dict[str, dict[str, NDArray]]:
    """row -> {parameter: [values]}; all of one length, for every parameter of every row."""
    if not data:
        return {}
    try:
        found = {n: {p: np.array(data[n][p], float) for p in row.form.parameters} for n, row in rows.items()}
        lengths = {len(values) for row in found.values() for values in row.values()}
    except (KeyError, TypeError, ValueError) as error:
        raise RekindleError(f"The law's draws are broken: {error}.", where=path, hint="fit it again") from None
    if len(lengths) != 1 or not min(lengths):
        raise RekindleError("The law's draws are not of one length.", where=path, hint="fit it again")
    return found
