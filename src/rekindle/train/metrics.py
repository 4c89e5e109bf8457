"""metrics.jsonl: one JSON object per line, of kind run, step or eval."""

from __future__ import annotations

import json
import os
import time
from pathlib import Path
from typing import Any

from rekindle.errors import RekindleError

NAME = "metrics.jsonl"
_FLUSH_SECONDS = 1.0


class Metrics:
    """Appends rows to a file cut back to `position` first; with no path (a rank that does not write) to nowhere."""

    def __init__(self, path: Path | None, position: int):
        self._null = path is None
        self._file = open(path or os.devnull, "ab")  # noqa: SIM115, closed by close
        self._flushed = time.monotonic()
        if path is not None:
            if self._file.tell() < position:
                raise RekindleError("The metrics of the interrupted run are incomplete.", where=path)
            self._file.truncate(position)
            self._file.seek(position)  # appending knows where the end is, but `position` would not

    def write(self, kind: str, **row: Any) -> None:
        self._file.write(json.dumps({"kind": kind, **row}).encode() + b"\n")
        if time.monotonic() - self._flushed > _FLUSH_SECONDS:
            self._file.flush()
            self._flushed = time.monotonic()

    @property
    def position(self) -> int:
        """Bytes written so far."""
        return 0 if self._null else self._file.tell()

    def sync(self) -> None:
        """Have all rows on disk."""
        self._file.flush()
        if not self._null:
            os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


def read_rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text(encoding="utf-8").splitlines()]


def last_step(path: Path) -> int | None:
    """Steps that a run took; None where its rows do not say."""
    try:
        return max((row["step"] for row in read_rows(path) if row["kind"] == "step"), default=None)
    except (OSError, ValueError, KeyError, TypeError):
        return None


def summarise(path: Path) -> dict[str, Any]:
    """What `train` returns, out of a finished run's rows."""
    rows = read_rows(path)
    steps = [row for row in rows if row["kind"] == "step"]
    evals = [row for row in rows if row["kind"] == "eval"]
    seconds = rows[0]["batch_tokens"] * sum(1 / row["tokens_per_s"] for row in steps)
    return {
        "steps": steps[-1]["step"],
        "tokens": steps[-1]["tokens"],
        "flops": steps[-1]["flops"],
        "loss": steps[-1]["loss"],
        "val_loss": evals[-1]["val_loss"],
        "val_loss_stderr": evals[-1]["val_loss_stderr"],
        "val_loss_before": evals[0]["val_loss"],
        **({"val_accuracy": evals[-1]["val_accuracy"]} if "val_accuracy" in evals[-1] else {}),
        "seconds": seconds,
        "tokens_per_s": steps[-1]["tokens"] / seconds,
        "epochs": rows[0]["epochs"],
        "peak_memory": max(row["peak_memory"] for row in steps),
    }
