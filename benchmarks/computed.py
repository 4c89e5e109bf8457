"""What must be calculated, not copied: bytes written a second, and memory. A 2 GB bf16 llama in 4 shards, 2 cores."""

from __future__ import annotations

import os
from pathlib import Path

from benchmarks.bytes import ROUNDS
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
    rows = [written(name, words, target, source, work / "out") for name, (words, target) in CASES.items()]
    record(
        "Calculated: 2.0 GB bf16 llama, 4 shards, page cache warm", rows, "Medians; flushed, measuring pass included."
    )


def written(name: str, words: list[str], target: str, source: Path, out: Path) -> Row:
    runs = []
    for _ in range(ROUNDS):
        drop(out)
        os.sync()
        runs.append(run([BIN / "rekindle", words[0], source, out, *words[1:]]))
    size = sum(path.stat().st_size for path in out.glob("*.safetensors"))
    drop(out)
    took = middle(runs)
    return Row(name, show(took), f"{size / 1e9:.2f} GB out", f"{size / took.wall / 1e6:.0f} MB/s", target)
