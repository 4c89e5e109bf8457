"""Cells that are there, as one table that `fit` reads."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from rekindle.report.csv_file import write_csv
from rekindle.report.metrics import read_metrics
from rekindle.store.manifest import read_manifest
from rekindle.sweep.count import dense_parameters
from rekindle.sweep.grid import Cell, Grid

COLUMNS = ("way", "params", "active", "total", "sunk", "tokens", "experts", "top_k", "seed", "loss", "stderr", "run",
           "trunk", "epochs")  # fmt: skip


def rows_of(grid: Grid, cells: Sequence[Cell], out: Path) -> list[dict[str, Any]]:
    """A row for each cell whose run ended."""
    dense = [dense_parameters({**grid.model, **size}) for size in grid.sizes]
    rows = []
    for cell in cells:
        folder = out / cell.step
        if not folder.is_dir():
            continue
        metrics, manifest = read_metrics(folder), read_manifest(folder)
        end, text = metrics.evaluations[-1], metrics.header.get("train_tokens")
        counted = manifest.parameters if manifest else {}
        rows.append({
            "way": cell.way, "params": dense[cell.size], "active": counted.get("active"), "total": counted.get("total"),
            "sunk": cell.sunk, "tokens": cell.tokens, "experts": cell.experts, "top_k": cell.top_k, "seed": cell.seed,
            "loss": end.loss, "stderr": end.stderr, "run": cell.step, "trunk": cell.trunk,
            "epochs": round((cell.sunk + cell.tokens) / text, 4) if text else None,
        })  # fmt: skip
    return rows


def write_table(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """In one piece: who reads it meanwhile finds the old table or the new one."""
    half = path.with_name(f".{path.name}.part")
    write_csv(half, COLUMNS, ([row[column] for column in COLUMNS] for row in rows))
    half.replace(path)
