"""What each run cost and where it ended: the rows of the table, raw for programs, in words for readers."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from rekindle.report.lineage import brief
from rekindle.report.runs import Run
from rekindle.report.verdict import same_text
from rekindle.report.words import UNKNOWN, exponent_of, nats, power, scaled, scientific, unit
from rekindle.store.lineage import origins, sunk


@dataclass(frozen=True)
class Row:
    """One run. Losses in nats per token; None where the files do not say."""

    name: str
    lineage: str  # what it is, in words
    total_parameters: int | None
    active_parameters: int | None
    tokens: float  # of this stage, as are the FLOPs
    flops: float
    sunk_flops: float | None  # of its recorded ancestors
    sunk_complete: bool  # the lineage goes back to an initialisation
    start_loss: float | None
    final_loss: float | None  # None where it diverged
    final_stderr: float | None
    difference: float | None  # final loss less the lowest of all measured on the same text
    tokens_per_s: float | None
    verify: str


def rows(runs: Sequence[Run]) -> list[Row]:
    ended = [run for run in runs if math.isfinite(run.final.loss)]
    alike = same_text(ended)
    if len(alike) == 1 < len(ended):
        alike = []  # nothing to compare with
    best = min((run.final.loss for run in alike), default=math.nan)
    return [_row(run, best if run in alike else math.nan) for run in runs]


def _row(run: Run, best: float) -> Row:
    ancestry = run.ancestry
    known = run.manifest is not None and bool(run.lineage)
    return Row(
        name=run.name,
        lineage=brief(run.lineage) or str(run.metrics.header.get("model_type") or "origin unknown"),
        total_parameters=run.parameters.get("total"),
        active_parameters=run.parameters.get("active"),
        tokens=run.tokens,
        flops=run.flops,
        sunk_flops=sunk(ancestry).flops if known else None,
        sunk_complete=known and not origins(run.lineage),
        start_loss=run.start.loss if run.start else None,
        final_loss=_finite(run.final.loss),
        final_stderr=_finite(run.final.stderr),
        difference=_finite(run.final.loss - best),
        tokens_per_s=run.tokens_per_s,
        verify=verification(run.verify),
    )


def verification(verify: dict[str, Any] | None) -> str:
    """`exact, held (3.1×10⁻⁷)`: the largest relative difference of logits; a dash where it was not run."""
    if not verify:
        return UNKNOWN
    difference = verify.get("relative_difference")
    number = isinstance(difference, (int, float)) and not isinstance(difference, bool)
    held = verify.get("held")
    promise = "nothing promised" if held is None else f"{verify.get('promise', 'promise')}, "
    promise += "" if held is None else "held" if held is True else "broken"
    return promise + (f" ({scientific(difference)})" if number else "")


def displayed(table: Sequence[Row]) -> dict[str, Any]:
    """Headings and cells as text, each column in one unit: {"columns": [(heading, unit, name)], "rows"}."""
    flops = exponent_of(row.flops for row in table)
    sunk = exponent_of(row.sunk_flops or 0.0 for row in table)
    tokens = exponent_of(row.tokens for row in table)
    parameters = exponent_of(row.total_parameters or 0 for row in table)
    columns = [  # heading, unit under it, and the name in full for a phone
        ("Total", unit(parameters, ""), "Parameters"),
        ("Active", unit(parameters, ""), "Active parameters"),
        ("Tokens", unit(tokens, ""), "Tokens of this stage"),
        ("FLOPs", power(flops), "FLOPs of this stage"),
        ("Sunk FLOPs", power(sunk), "Sunk FLOPs"),
        ("Start", "nats/token", "Start"),
        ("End", "± std. error", "End"),
        ("To best", "nats", "To the best"),
        ("Speed", "tokens/s", "Speed"),
        ("Verify", "", "Verify"),
    ]
    return {"columns": columns, "rows": [_cells(row, parameters, tokens, flops, sunk) for row in table]}


def _cells(row: Row, parameters: int, tokens: int, flops: int, sunk: int) -> list[str]:
    end = "diverged" if row.final_loss is None else nats(row.final_loss)
    if row.final_loss is not None and row.final_stderr is not None:
        end += f" ± {nats(row.final_stderr)}"
    before = scaled(row.sunk_flops, sunk)
    if row.sunk_flops is not None and not row.sunk_complete:
        before = f"> {before}" if row.sunk_flops else UNKNOWN
    speed = UNKNOWN if row.tokens_per_s is None else f"{row.tokens_per_s:,.0f}"
    return [
        scaled(row.total_parameters, parameters),
        scaled(row.active_parameters, parameters),
        scaled(row.tokens, tokens),
        scaled(row.flops, flops),
        before,
        nats(row.start_loss),
        end,
        "best" if row.difference == 0 else nats(row.difference, sign=True),
        speed,
        row.verify,
    ]


def _finite(value: float) -> float | None:
    return value if math.isfinite(value) else None
