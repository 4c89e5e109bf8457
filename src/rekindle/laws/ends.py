"""Which rows of a table are ends of runs: the last of a history, and none of a run that crashed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from rekindle.errors import RekindleError, counted, some

Row = Mapping[str, Any]

UNFINISHED = ("crashed", "failed", "killed", "running", "preempting", "preempted", "pending", "scheduled", "error",
              "aborted", "cancelled", "canceled")  # fmt: skip
_SPENT = ("step", "tokens", "flops")  # what grows along a run
_SHOWN = 5


def ends_of(rows: Sequence[Row], where: str) -> tuple[dict[int, Row], list[str]]:
    """The rows that end a run, by their number from 1, and in words what was left out and why.

    Raises RekindleError where rows may be a history or ends, and where no run ended with a loss.
    """
    numbered = [(i + 1, row) for i, row in enumerate(rows)]
    kept, notes = _lasts(numbered, where)
    stopped = [i for i, row in kept if str(row.get("state", "")).lower() in UNFINISHED]
    lossless = [i for i, row in kept if i not in stopped and not _finite(row.get("loss"))]
    why = [f"{len(found)} {what} ({_places(found)})" for what, found in
           (("crashed, failed or unfinished by the column state", stopped), ("without a finite loss", lossless))
           if found]  # fmt: skip
    ended = {i: row for i, row in kept if i not in stopped and i not in lossless}
    if not ended:
        raise RekindleError(f"None of {len(kept)} runs ended with a loss.", where=where, why="; ".join(why))
    if why:
        notes.append(f"{len(kept) - len(ended)} of {len(kept)} runs left out: {'; '.join(why)}")
    return ended, notes


def _finite(loss: Any) -> bool:
    return loss is not None and math.isfinite(float(loss))


def _places(rows: Sequence[int]) -> str:
    return f"row {rows[0]}" if len(rows) == 1 else f"rows {some(rows, _SHOWN)}"


def _lasts(rows: Sequence[tuple[int, Row]], where: str) -> tuple[list[tuple[int, Row]], list[str]]:
    """Of a run whose rows are alike but for what was spent, the last that has a loss."""
    runs: dict[str, list[tuple[int, Row]]] = {}
    for i, row in rows:
        runs.setdefault(str(row.get("run") or f"\0{i}"), []).append((i, row))
    histories = {name: found for name, found in runs.items() if _is_history([row for _, row in found])}
    if not histories:
        return list(rows), []
    name, found = next(iter(histories.items()))
    if not any(row.get("step") is not None for _, row in found):
        what = f"The run {name} has {len(found)} rows with growing tokens, and {len(histories) - 1} others have such."
        raise RekindleError(
            what,
            where=where,
            why="of a history only the last row is the end of a run, and a law is fitted to ends",
            hint="--columns step=NAME_IN_FILE for histories, such as the column of tokens; or trunk=NAME_IN_FILE, the "
            "column that names runs, if each row is the end of one",
        )
    kept = [row for name, found in runs.items() for row in ([_last(found)] if name in histories else found)]
    count = sum(map(len, histories.values()))
    told = f"{count} rows are the history of {counted(len(histories), 'run')}: the last with a loss is read of each"
    return sorted(kept, key=lambda pair: pair[0]), [told]


def _is_history(rows: Sequence[Row]) -> bool:
    """Whether these rows differ in what was spent and in what came of it alone."""
    fixed = {name for row in rows for name in row if name not in (*_SPENT, "loss", "state")}
    alike = all(len({row[name] for row in rows if row.get(name) not in (None, "")}) <= 1 for name in fixed)
    return alike and any(len({row.get(name) for row in rows} - {None}) > 1 for name in _SPENT)


def _last(rows: Sequence[tuple[int, Row]]) -> tuple[int, Row]:
    """By step; what that row does not have is as it was logged before it."""
    ordered = sorted(rows, key=lambda pair: -math.inf if pair[1].get("step") is None else pair[1]["step"])
    with_loss = [k for k, (_, row) in enumerate(ordered) if row.get("loss") is not None]
    at = with_loss[-1] if with_loss else len(ordered) - 1
    known: dict[str, Any] = {}
    for _, row in ordered[: at + 1]:
        known |= {name: value for name, value in row.items() if value not in (None, "")}
    constant = {name: value for _, row in ordered for name, value in row.items() if name not in (*_SPENT, "loss")}
    return ordered[at][0], {**dict.fromkeys(rows[0][1]), **constant, **known}
