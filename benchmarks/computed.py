"""What must be calculated, not copied: bytes written a second against `cp` of them, and memory. A 2 GB bf16 llama."""

from __future__ import annotations

import os
from pathlib import Path
from statistics import median

from benchmarks.bytes import ROUNDS, cp
from benchmarks.growth import LARGE
from benchmarks.measure import BIN, Row, drop, middle, record, run, show
from benchmarks.model import make

CASES = {
    "upcycle to 8 experts, half drawn anew": (
        ["upcycle", "--experts", "8", "--init", "drop"],
        ">= 300 MB/s, <= 600 MB",
    ),
    "gqa, mean of 16 heads to 4": (["gqa", "--kv-heads", "4"], ">= 300 MB/s, <= 600 MB"),
    "gqa, aligned": (["gqa", "--kv-heads", "4", "--pool", "aligned"], "<= 600 MB"),
}


def main(work: Path) -> None:
    source = make(work / "llama2g")
    rows = [row for name, (words, target) in CASES.items() for row in written(name, words, target, source, work)]
    large, out = make(work / "llama8g", shards=16, layers=LARGE), work / "out"
    took = run([BIN / "rekindle", "gqa", large, out, "--kv-heads", "4"])
    rows.append(Row("gqa, mean, of 8.0 GB, peak memory", show(took), "", "", "<= 600 MB"))
    drop(out)
    drop(large)
    record(
        "Calculated: 2.0 GB bf16 llama, 4 shards, page cache warm", rows, "Medians; flushed, measuring pass included."
    )


def written(name: str, words: list[str], target: str, source: Path, work: Path) -> list[Row]:
    """A verb and `cp` of its output in turn, both flushed."""
    runs, copies = [], []
    out, copy = work / "out", work / "copy"
    for _ in range(ROUNDS):
        drop(out)
        os.sync()
        runs.append(run([BIN / "rekindle", words[0], source, out, *words[1:]]))
        os.sync()
        copies.append(cp(out, copy))
        drop(copy)
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    drop(out)
    took, copied = middle(runs), middle(copies)
    ratio = median(ours.wall / theirs.wall for ours, theirs in zip(runs, copies, strict=True))
    against = f"cp and sync {copied.wall:.2f} s, {size / copied.wall / 1e6:.0f} MB/s"
    return [
        Row(f"{name}, {size / 1e9:.2f} GB out", show(took), f"{size / took.wall / 1e6:.0f} MB/s", "", target),
        Row("", f"{took.wall:.2f} s", against, f"{ratio:.2f}", ""),
    ]
