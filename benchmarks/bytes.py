"""Moving bytes: upcycle and rewrite of a 2 GB bf16 llama in 4 shards, against `cp` of what they write.

All sides flush what they wrote before their time ends, and find nothing of others' left to be written. mergekit 0.1.5
stands beside, in an environment of its own (`benchmarks/.mergekit`, made on the first run).
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from statistics import median

from benchmarks.measure import BIN, Row, Run, drop, middle, record, run, show
from benchmarks.model import make

ROUNDS = 3
PEER = Path(__file__).parent / ".mergekit"


def main(work: Path) -> None:
    source = make(work / "llama2g")
    rows = []
    for name, words in (("upcycle to 4 experts", ["upcycle", "--experts", "4"]), ("rewrite", ["rewrite"])):
        rows += pair(name, words, source, work)
    rows.append(checksum(source, work))
    rows.append(no_torch(source, work))
    rows += peer(source, work)
    record("Bytes: 2.0 GB bf16 llama, 4 shards, page cache warm", rows, "Medians of paired runs; all sides flush.")


def pair(name: str, words: list[str], source: Path, work: Path) -> list[Row]:
    """A verb and `cp` of its output in turn, now one first, now the other; the ratio pair by pair."""
    made, out, copy = work / "made", work / "out", work / "copy"
    verb = [BIN / "rekindle", words[0], source]
    drop(made)
    run([*verb, made, *words[1:]])  # what cp copies, and warmth for both
    ours, copies = [], []
    for turn in range(ROUNDS):
        for side in (ours, copies) if turn % 2 else (copies, ours):
            drop(out, copy)
            os.sync()
            side.append(run([*verb, out, *words[1:]]) if side is ours else cp(made, copy))
    size = sum(path.stat().st_size for path in made.glob("*.safetensors")) / 1e9
    drop(out, copy, made)
    us, them = middle(ours), middle(copies)
    ratio = median(a.wall / b.wall for a, b in zip(ours, copies, strict=True))
    against = f"cp and sync {them.wall:.2f} s"
    return [
        Row(f"{name}, {size:.2f} GB out", show(us), against, f"{ratio:.2f}", "<= 1.3"),
        Row(f"{name}, peak memory", f"{us.rss / 1e6:.0f} MB", "", "", "<= 150 MB"),
    ]


def cp(source: Path, to: Path) -> Run:
    """`cp` of the weights, and a flush of where they went."""
    to.mkdir()
    return flushed(["cp", "--reflink=never", *sorted(source.glob("*.safetensors")), to], to)


def flushed(command: list[str | Path], out: Path, **environment: str) -> Run:
    """A command that does not flush what it wrote, and the flush."""
    return run(["sh", "-c", '"$@" && sync -f "$0"', out, *command], **environment)


def checksum(source: Path, work: Path) -> Row:
    plain, hashed = [], []
    for _ in range(ROUNDS):
        for runs, flags in ((plain, []), (hashed, ["--checksum"])):
            drop(work / "out")
            os.sync()
            runs.append(run([BIN / "rekindle", "rewrite", source, work / "out", *flags]))
    drop(work / "out")
    a, b = middle(hashed), middle(plain)
    return Row(
        "rewrite --checksum", show(a), f"without {b.wall:.2f} s", f"{a.wall / b.wall:.2f}", "decides the default"
    )


def no_torch(source: Path, work: Path) -> Row:
    code = (
        "import sys; from rekindle import api; "
        f"api.rewrite({str(source)!r}).save({str(work / 'out')!r}); print('torch' in sys.modules)"
    )
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    drop(work / "out")
    return Row("torch imported by a pure copy", said, "", "", "False")


def mergekit(command: str) -> Path:
    """One of mergekit's commands, in its own environment."""
    if not (PEER / "bin" / command).exists():
        subprocess.run([sys.executable, "-m", "venv", PEER], check=True)
        pins = ["mergekit==0.1.5", "torch==2.13.0"]
        subprocess.run([PEER / "bin" / "python", "-m", "pip", "install", "-q", *pins], check=True)
    return PEER / "bin" / command


def peer(source: Path, work: Path) -> list[Row]:
    """mergekit-moe, 4 experts, random gates, same input and same count of output bytes."""
    command = mergekit("mergekit-moe")
    recipe = work / "moe.yaml"
    experts = "".join(f'\n  - source_model: {source}\n    positive_prompts: ["{i}"]' for i in range(4))
    recipe.write_text(f"base_model: {source}\ngate_mode: random\ndtype: bfloat16\nexperts:{experts}\n")
    theirs, ours = [], []
    for _ in range(ROUNDS):
        drop(work / "peer", work / "out")
        os.sync()
        theirs.append(flushed([command, recipe, work / "peer"], work / "peer", HF_HUB_OFFLINE="1"))
        os.sync()
        ours.append(run([BIN / "rekindle", "upcycle", source, work / "out", "--experts", "4"]))
    drop(work / "peer", work / "out")
    us, them = middle(ours), middle(theirs)
    return [
        Row(
            "mergekit-moe 0.1.5, 4 experts",
            show(them),
            f"rekindle {show(us)}",
            f"{them.wall / us.wall:.1f} x slower",
            "",
        ),
        Row("its peak memory", f"{them.rss / 1e6:.0f} MB", f"{us.rss / 1e6:.0f} MB", f"{them.rss / us.rss:.0f} x", ""),
    ]
