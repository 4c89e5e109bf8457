"""The document of a row that holds two texts: one to read, and one to write when it was read."""

from __future__ import annotations

from collections.abc import Collection, Iterable
from dataclasses import dataclass
from typing import Any

from rekindle.errors import RekindleError
from rekindle.train.text.row import Pair, Reading, few

PAIRS = (("source", "target"), ("input", "output"))
_FIRST = "instruction"  # beside input and output: then these two are not all there is to read


@dataclass(frozen=True)
class PairReading(Reading):
    """Of each row a source, in `column`, and a `target`; of a column that is not given the usual name."""

    target: str | None = None

    @property
    def leading(self) -> str:
        return self.column or PAIRS[0][0]

    def columns(self, names: Collection[str]) -> list[str] | None:
        for source, target in PAIRS:
            chosen = [self.column or source, self.target or target]
            partial = _FIRST in names and chosen == list(PAIRS[1]) and self.column is None
            if not partial and all(name in names for name in chosen):
                return chosen
        return None

    def document(self, row: Any, where: str) -> Pair:
        """Raises RekindleError for a row without such columns, and for one that holds something else."""
        named = row if isinstance(row, dict) else {}
        chosen = self.columns(named)
        if chosen is None:
            raise self.no_column(named, [name for name, value in named.items() if isinstance(value, str)], where)
        for name in chosen:
            if not isinstance(row[name], str | None):
                raise RekindleError(f'"{name}" holds {type(row[name]).__name__}, not text.', where=where)
        source, target = (row[name] or "" for name in chosen)
        return Pair(source, target, where)

    def no_column(self, names: Iterable[str], strings: Iterable[str], where: object) -> RekindleError:
        known, able = few(names), list(strings)
        wanted = f'"{self.leading}" and "{self.target or PAIRS[0][1]}"'
        hint = "rows with a column to read and one to write"
        if len(able) > 1:
            target = next((name for _, name in PAIRS if name in able), able[1])
            source = next(name for name in able if name != target)
            hint = f"--source-column {source} --target-column {target}, or others: {few(able)}"
        what = f"There are no fields {wanted}" + (f", only {known}." if known else ": the row has none.")
        return RekindleError(what, where=where, hint=hint)
