"""Tables of runs as people have them: CSV, TSV, JSON lines, Parquet; numbers as they are written by hand.

A table has a row for the end of each run. A tracker's export has more: rows of one run's history, of which the last
counts, and runs that crashed, which say nothing and are left out.
"""

from __future__ import annotations

import csv
import json
import math
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from rekindle.errors import RekindleError, some, together
from rekindle.laws.columns import NUMBERS, SHOWN, Columns, columns_of
from rekindle.laws.table import Table, make_table

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9, "g": 1e9, "t": 1e12}
_WRITTEN = re.compile(
    r"([-+]?(?:\d[\d_]*|[1-9]\d{0,2}(?:,\d{3})+)?(?:\.\d*)?(?:e[-+]?\d+)?)\s*([kmbgt]?)", re.IGNORECASE
)
_EMPTY = ("", "none", "null", "na", "n/a", "-", "–")
_MOST = {"params": 1e14, "sunk": 1e17, "tokens": 1e17, "flops": 1e30}  # more is a unit counted twice
Row = Mapping[str, Any]


def read_table(path: Path, columns: Mapping[str, str] | None = None, max_loss: float = math.inf) -> Table:
    """`columns` names the file's column for one of ours. Raises RekindleError with all that is wrong."""
    rows = _rows(path)
    if not rows:
        raise RekindleError("The table has no rows.", where=path)
    header = list(dict.fromkeys(str(name) for row in rows for name in row if name))
    chosen = columns_of(header, columns or {}, path)
    _needed(chosen, header, path)
    problems: list[RekindleError] = []
    read = [_row(row, chosen, f"{path}, row {i + 1}", problems) for i, row in enumerate(rows)]
    if problems:
        raise together(problems)
    for name, most in _MOST.items():
        column, largest = chosen.found.get(name), max((row.get(name) or 0 for row in read), default=0)
        if column and column.factor != 1 and largest > most:
            what = f"{column.name} times {column.factor:g}, as its name says, is up to {largest:.3g}."
            raise RekindleError(what, where=path, hint="a name without the unit, if the column holds counts")
    return make_table(read, str(path), max_loss, chosen.notes)


def _rows(path: Path) -> list[dict[str, Any]]:
    try:
        if path.suffix.lower() in (".parquet", ".pq"):
            return _parquet(path)
        text = path.read_text(encoding="utf-8-sig")
        if path.suffix.lower() in (".jsonl", ".ndjson", ".json") or text.lstrip()[:1] in ("{", "["):
            return _json(text, path)
        lines = [line for line in text.splitlines(keepends=True) if line.strip() and not line.startswith("#")]
        head = lines[0] if lines else ""
        delimiter = max(",\t;", key=head.count)
        table = csv.DictReader(lines, delimiter=delimiter)
        names = [name for name in table.fieldnames or () if name]
        if twice := [name for name in names if names.count(name) > 1]:
            what = f"Two columns are called {twice[0]!r}: which one counts cannot be told."
            raise RekindleError(what, where=path, hint="a name of its own for each")
        rows = list(table)
        if delimiter == ";":
            _refuse_decimal_commas(rows, path)
        return rows
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise RekindleError(f"The table cannot be read: {error}.", where=path) from None


def _refuse_decimal_commas(rows: list[dict[str, Any]], path: Path) -> None:
    """Between semicolons 1,500 is one and a half or fifteen hundred: nobody can tell."""
    cells = (cell.strip() for row in rows for cell in row.values() if isinstance(cell, str))
    if found := next((cell for cell in cells if re.fullmatch(r"[-+]?\d+,\d+", cell)), None):
        what = f"{found!r} may have a decimal comma, or thousands: that cannot be told."
        raise RekindleError(what, where=path, hint="points for decimals, and nothing between thousands")


def _json(text: str, path: Path) -> list[dict[str, Any]]:
    """Objects, one a line or in one list; those inside are flattened: {"config": {"n": 1}} has config.n."""
    try:
        whole = text.lstrip().startswith("[")
        rows = json.loads(text) if whole else [json.loads(line) for line in text.splitlines() if line.strip()]
    except (ValueError, RecursionError):
        raise RekindleError("The table is no JSON.", where=path, hint="one object a line, or a CSV") from None
    if not all(isinstance(row, dict) for row in rows):
        raise RekindleError("A row of the table is no JSON object.", where=path, hint='{"params": 1e9, "loss": 2.5}')
    return [_flat(row) for row in rows]


def _flat(row: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, value in row.items():
        found |= _flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return found


def _parquet(path: Path) -> list[dict[str, Any]]:
    from pyarrow import ArrowException, parquet

    try:
        return [_flat(row) for row in parquet.read_table(path).to_pylist()]
    except ArrowException as error:
        raise RekindleError(f"The table cannot be read: {error}.", where=path) from None


def _needed(chosen: Columns, header: Sequence[str], path: Path) -> None:
    """All that no column could be found for, with the columns that are there."""
    lacking = [name for name in ("loss", "params") if name not in chosen.found]
    lacking += ["tokens"] if not {"tokens", "flops"} & chosen.found.keys() else []
    if not lacking:
        return
    if any(name.endswith(("__MIN", "__MAX")) for name in header):
        why = f"it is a chart's export, with a column for each run: {some(header)}"
        hint = "the export of the table of runs, which has a row for each"
        raise RekindleError("The table has no row for each run.", where=path, why=why, hint=hint)
    why = f"its columns are {some(header, SHOWN)}"
    if "tokens" in lacking and "step" in chosen.found:
        why += f"; {chosen.found['step'].name} counts steps, not tokens"
    typed = ",".join(f"{name}=NAME_IN_FILE" for name in lacking)
    hint = f"--columns {typed}" + (", or flops=NAME_IN_FILE for tokens" if "tokens" in lacking else "")
    raise RekindleError(f"The table lacks {', '.join(lacking)}.", where=path, why=why, hint=hint)


def _row(row: Row, chosen: Columns, where: str, problems: list[RekindleError]) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for ours, column in chosen.found.items():
        value = row.get(column.name)
        if ours not in (*NUMBERS, "step"):
            found[ours] = "" if value is None else str(value).strip()
            continue
        try:
            found[ours] = _number(value, column.factor, count=ours != "loss")
        except (TypeError, ValueError, OverflowError):
            problems.append(RekindleError(f"{ours} is {value!r}, which is no number.", where=where))
    return found


def _number(value: Any, factor: float, count: bool) -> float | None:
    """30M, 1.3B, 1e9 or 1,000,000; None where nothing is written. Losses have neither units nor thousands."""
    if isinstance(value, bool):
        raise ValueError
    if value is None or (isinstance(value, str) and value.strip().lower() in _EMPTY):
        return None
    if not isinstance(value, str):
        return float(value) * factor
    try:
        return float(value.replace(",", "x")) * factor
    except ValueError:
        written = _WRITTEN.fullmatch(value.strip()) if count else None
        if not written:
            raise
    number, unit = written[1].replace(",", "").replace("_", ""), written[2].lower()
    return float(number) * (_UNITS[unit] if unit else factor)
