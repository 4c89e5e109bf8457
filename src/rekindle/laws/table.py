"""A table of runs: what was run and the loss it ended at, and doubted.

One row is one run's end. `way` says how the model came about (dense, scratch, upcycled, ...), `run` and `trunk` what
rows share: rows of a run are not independent, nor are runs that start from one trunk.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from rekindle.errors import RekindleError, together
from rekindle.laws.columns import LABELS, NUMBERS
from rekindle.laws.ends import ends_of
from rekindle.laws.forms import Floats

_COUNTS = ("params", "sunk", "tokens")
_LEAST = 1e3  # below that a count is in millions or billions
_FEW = 0.01  # tokens of a parameter below which tokens are likely in another unit


@dataclass(frozen=True)
class Table:
    """Columns by name, all of one length; `notes` are doubts that are no errors."""

    numbers: Mapping[str, Floats]
    labels: Mapping[str, NDArray]
    where: str
    notes: tuple[str, ...] = field(default=())

    def __len__(self) -> int:
        return len(self.numbers["loss"])

    @property
    def ways(self) -> list[str]:
        return list(dict.fromkeys(self.labels["way"].tolist()))

    def only(self, rows: NDArray) -> Table:
        return Table(
            {name: column[rows] for name, column in self.numbers.items()},
            {name: column[rows] for name, column in self.labels.items()},
            self.where,
            self.notes,
        )

    def sorted_by_way(self) -> Table:
        """Rows of a way one after the other, ways as they first appear."""
        order = {way: i for i, way in enumerate(self.ways)}
        return self.only(np.argsort([order[way] for way in self.labels["way"].tolist()], kind="stable"))


def make_table(
    rows: Sequence[Mapping[str, object]], where: str, max_loss: float = math.inf, notes: Sequence[str] = ()
) -> Table:
    """A table out of rows that hold values by our names; runs that did not end with a loss are left out.

    `notes` are what is known already. Raises RekindleError with all that is wrong.
    """
    ended, told = ends_of(rows, where)
    rows, problems = list(ended.values()), []
    places = [f"run {row['run']}" if row.get("run") else f"row {i}" for i, row in ended.items()]
    numbers = {name: _numbers(name, rows, places, where, problems) for name in NUMBERS if name in rows[0]}
    if missing := [name for name in ("loss", "params") if name not in numbers]:
        hint = f"--columns {missing[0]}=NAME_IN_FILE"
        problems.append(RekindleError(f"The table lacks {' and '.join(missing)}.", where=where, hint=hint))
    if "tokens" not in numbers and "flops" in numbers and "params" in numbers:
        numbers["tokens"] = numbers["flops"] / (6 * numbers["params"])  # Kaplan et al. 2020
    if "tokens" not in numbers:
        hint = "--columns tokens=NAME_IN_FILE, or flops=NAME_IN_FILE"
        problems.append(RekindleError("The table lacks tokens.", where=where, hint=hint))
    if problems:
        raise together(problems)
    default = "upcycled" if np.any(numbers.get("sunk", np.zeros(1)) > 0) else "dense"
    labels = {name: np.array([str(row[name]) for row in rows]) for name in LABELS if name in rows[0]}
    labels.setdefault("way", np.full(len(rows), default))
    own = np.array([f"row {i}" for i in ended])
    named = "run" in labels and bool(np.any(labels["run"] != ""))
    labels["run"] = np.where(labels["run"] == "", own, labels["run"]) if "run" in labels else own
    trunks = labels.get("trunk", labels["run"])
    labels["trunk"] = np.where(trunks == "", labels["run"], trunks)
    table = Table(numbers, labels, where)
    problems = [*_units(table), *_finite(table, places), *_duplicates(table, named)]
    if problems:
        raise together(problems)
    if not np.any(numbers["loss"] <= max_loss):
        raise RekindleError(f"No loss is {max_loss:g} or below.", where=where, hint="a larger --max-loss")
    kept = table.only(numbers["loss"] <= max_loss).sorted_by_way()
    return Table(kept.numbers, kept.labels, where, (*notes, *told, *_rising(kept), *_hardly_trained(kept)))


def _numbers(
    name: str, rows: Sequence[Mapping], places: Sequence[str], where: str, problems: list[RekindleError]
) -> Floats:
    found = np.full(len(rows), np.nan)
    for i, row in enumerate(rows):
        text = "" if row[name] is None else row[name]
        try:
            found[i] = 0.0 if name == "sunk" and text == "" else float(text)
        except (TypeError, ValueError):
            problems.append(RekindleError(f"{name} is {text!r}, which is no number.", where=f"{where}, {places[i]}"))
    return found


def _units(table: Table) -> list[RekindleError]:
    found = []
    for name in _COUNTS:
        column = table.numbers.get(name)
        if column is None:
            continue
        if np.any(column < 0) or (name != "sunk" and np.any(column == 0)):
            found.append(RekindleError(f"{name} is {column.min():g} in some row.", where=table.where))
        elif np.any((column > 0) & (column < _LEAST)):
            least, most = column[column > 0].min(), column.max()
            what = f"{name} is {least:g} to {most:g}: counts are whole numbers, not millions or billions."
            hint = f"the unit in the numbers (30M) or in the column's name ({name}_m, {name}_b)"
            found.append(RekindleError(what, where=table.where, hint=hint))
    return found


def _finite(table: Table, places: Sequence[str]) -> list[RekindleError]:
    found = []
    for name, column in table.numbers.items():
        bad = np.flatnonzero(~np.isfinite(column) | ((column <= 0) & (name == "loss")))
        if len(bad):
            which = ", ".join(f"{places[i]} ({column[i]:g})" for i in bad[:5])
            what = f"{name} is no positive number in {len(bad)} rows: {which}."
            found.append(RekindleError(what, where=table.where, hint="leave these rows out"))
    return found


def _cells(table: Table) -> list[tuple]:
    columns = [column for name, column in table.numbers.items() if name != "loss"]
    return list(zip(table.labels["way"].tolist(), *(column.tolist() for column in columns), strict=True))


def _duplicates(table: Table, named: bool) -> list[RekindleError]:
    """The same cell twice needs a run or a seed that tells the two apart."""
    cells = _cells(table)
    for label in (*(["seed"] if "seed" in table.labels else []), *(["run"] if named else [])):
        cells = [(*cell, which) for cell, which in zip(cells, table.labels[label].tolist(), strict=True)]
    twice = [cell for cell, times in Counter(cells).items() if times > 1]
    if not twice:
        return []
    what = f"{len(twice)} cells are there more than once, such as {twice[0]}."
    why = "two rows of one run are not two runs"
    return [RekindleError(what, where=table.where, why=why, hint="a column run or seed that tells them apart")]


def _rising(table: Table) -> list[str]:
    """Where the loss rises with tokens, all else equal."""
    names = [name for name in table.numbers if name not in ("loss", "tokens", "flops")]
    groups: dict[tuple, list[tuple[float, float]]] = {}
    for i in range(len(table)):
        key = (table.labels["way"][i], table.labels.get("seed", table.labels["way"])[i],
               *(table.numbers[name][i] for name in names))  # fmt: skip
        groups.setdefault(key, []).append((table.numbers["tokens"][i], table.numbers["loss"][i]))
    rises = sum(
        b[1] > a[1] and b[0] > a[0] for points in groups.values() for a, b in zip(sorted(points), sorted(points)[1:])
    )
    if not rises:
        return []
    return [f"the loss rises with tokens {rises} times, all else equal: noise, or just after upcycling, where it does"]


def _hardly_trained(table: Table) -> list[str]:
    """Where tokens are so few beside parameters that one of the two may be in another unit."""
    ratio = (table.numbers["tokens"] + table.numbers.get("sunk", 0.0)) / table.numbers["params"]
    if ratio.max() >= _FEW:
        return []
    return [f"there are at most {ratio.max():.2g} tokens for a parameter: are both counts of single ones?"]
