"""Growing deeper: 16 layers to 24 of a 2 GB bf16 llama in 4 shards, against `cp` of what is written.

mergekit 0.1.5 stands beside it with the same layers, in an environment of its own; see bytes.py. And the memory of
four times the model.
"""

from __future__ import annotations

import json
import os
from pathlib import Path

from benchmarks.bytes import ROUNDS, flushed, mergekit, pair
from benchmarks.measure import BIN, Row, drop, middle, record, run, show
from benchmarks.model import make
from rekindle.store.folder import open_folder
from rekindle.store.header import Stored

LAYERS, DEEPER = 16, 24
LARGE = 71  # layers of 8 GB
ORDERS = {"interpose": ["--factor", "1.5"], "llama-pro": ["--factor", "1.5", "--order", "llama-pro"]}
SLICES = ["grow-depth", "--layers", str(DEEPER), "--order", "solar"]  # layers 0 to 11, then 4 to 15


def main(work: Path) -> None:
    source = make(work / "llama2g")
    rows = []
    for order, words in ORDERS.items():
        rows += pair(f"grow-depth x 1.5, {order}", ["grow-depth", *words], source, work)
    rows += peer(source, work)
    rows.append(large(work))
    title = f"Depth growth: 2.0 GB bf16 llama, 4 shards, {LAYERS} to {DEEPER} layers, page cache warm"
    record(title, rows, "Medians of paired runs; all sides flush.")


def peer(source: Path, work: Path) -> list[Row]:
    """The same slices of the stack, by mergekit's passthrough."""
    recipe, command = work / "slices.yaml", mergekit("mergekit-yaml")
    ranges = [[0, DEEPER // 2], [LAYERS - DEEPER // 2, LAYERS]]
    slices = [{"sources": [{"model": str(source), "layer_range": layers}]} for layers in ranges]
    recipe.write_text(json.dumps({"slices": slices, "merge_method": "passthrough", "dtype": "bfloat16"}))
    theirs, ours = [], []
    for _ in range(ROUNDS):
        drop(work / "peer", work / "out")
        os.sync()
        theirs.append(flushed([command, recipe, work / "peer"], work / "peer", HF_HUB_OFFLINE="1"))
        os.sync()
        ours.append(run([BIN / "rekindle", SLICES[0], source, work / "out", *SLICES[1:]]))
    same = equal_tensors(work / "peer", work / "out")
    drop(work / "peer", work / "out")
    us, them = middle(ours), middle(theirs)
    return [
        Row("mergekit 0.1.5, passthrough", show(them), f"solar {show(us)}", f"{them.wall / us.wall:.1f} x slower", ""),
        Row("its peak memory", f"{them.rss / 1e6:.0f} MB", f"{us.rss / 1e6:.0f} MB", f"{them.rss / us.rss:.0f} x", ""),
        Row("tensors equal to its, bit for bit", same, "", "", "all"),
    ]


def equal_tensors(one: Path, other: Path) -> str:
    mine, theirs = open_folder(one).tensors, open_folder(other).tensors
    names = mine.keys() | theirs.keys()
    same = sum(name in mine and name in theirs and _bytes(mine[name]) == _bytes(theirs[name]) for name in names)
    return f"{same} of {len(names)}"


def _bytes(stored: Stored) -> bytes:
    with open(stored.path, "rb") as file:
        file.seek(stored.offset)
        return file.read(stored.nbytes)


def large(work: Path) -> Row:
    """Memory does not grow with the model."""
    source = make(work / "llama8g", shards=16, layers=LARGE)
    size = sum(path.stat().st_size for path in source.glob("*.safetensors")) / 1e9
    took = run([BIN / "rekindle", "grow-depth", source, work / "out", "--layers", str(LARGE * 3 // 2)])
    drop(work / "out", source)
    return Row(f"grow-depth x 1.5 of {size:.1f} GB, peak memory", show(took), "", "", "<= 150 MB")
