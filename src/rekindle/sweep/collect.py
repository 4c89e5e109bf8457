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


class Collected:
    """The rows of a grid's cells whose runs ended, each read once, in the order of the cells."""

    def __init__(self, grid: Grid, cells: Sequence[Cell], out: Path):
        self.dense = [dense_parameters({**grid.model, **size}) for size in grid.sizes]
        self.cells, self.out = cells, out
        self._read: dict[str, dict[str, Any]] = {}

    @property
    def rows(self) -> list[dict[str, Any]]:
        for cell in self.cells:
            if cell.step not in self._read and (self.out / cell.step).is_dir():
                self._read[cell.step] = self._row(cell)
        return [self._read[cell.step] for cell in self.cells if cell.step in self._read]

    def _row(self, cell: Cell) -> dict[str, Any]:
        metrics, manifest = read_metrics(self.out / cell.step), read_manifest(self.out / cell.step)
        end, text = metrics.evaluations[-1], metrics.header.get("train_tokens")
        counted = manifest.parameters if manifest else {}
        return {
            "way": cell.way, "params": self.dense[cell.size], "active": counted.get("active"),
            "total": counted.get("total"), "sunk": cell.sunk, "tokens": cell.tokens, "experts": cell.experts,
            "top_k": cell.top_k, "seed": cell.seed, "loss": end.loss, "stderr": end.stderr, "run": cell.step,
            "trunk": cell.trunk, "epochs": round((cell.sunk + cell.tokens) / text, 4) if text else None,
        }  # fmt: skip


def rows_of(grid: Grid, cells: Sequence[Cell], out: Path) -> list[dict[str, Any]]:
    """A row for each cell whose run ended."""
    return Collected(grid, cells, out).rows


def write_table(rows: Sequence[dict[str, Any]], path: Path) -> None:
    """In one piece: who reads it meanwhile finds the old table or the new one."""
    half = path.with_name(f".{path.name}.part")
    write_csv(half, COLUMNS, ([row[column] for column in COLUMNS] for row in rows))
    half.replace(path)
