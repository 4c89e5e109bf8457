"""What the tests of training share: a corpus of small stories, short runs, their rows."""

from __future__ import annotations

import json
import random
import shutil
from pathlib import Path
from typing import Any

WORDS = [
    "the",
    "cat",
    "sat",
    "on",
    "a",
    "mat",
    "and",
    "saw",
    "one",
    "red",
    "bird",
    "fly",
    "over",
    "two",
    "old",
    "hills",
]


def write_corpus(path: Path, documents: int = 60, seed: int = 0) -> list[str]:
    rng = random.Random(seed)
    texts = [f"Story {seed}.{n}: " + " ".join(rng.choices(WORDS, k=rng.randint(40, 120))) for n in range(documents)]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts), encoding="utf-8")
    return texts


def defaults(corpus: Path) -> dict[str, Any]:
    return {
        "data": str(corpus),
        "tokens": 12 * 256,
        "batch_tokens": 256,
        "seq_len": 32,
        "lr": 1e-2,
        "eval_tokens": 256,
        "eval_every": 1024,
        "save_every": 1024,
    }


def rows(folder: Path, kind: str) -> list[dict]:
    lines = (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    return [row for row in map(json.loads, lines) if row["kind"] == kind]


def recoveries(folder: Path) -> list[dict]:
    """Of all that was killed. gloo may forget a stage that waits for it: that one ends, and has left what it knows."""
    return [row for row in rows(folder, "recovery") if row["policy"] != "left"]


# What differs between two runs of the same numbers.
TIMES = ("tokens_per_s", "peak_memory")


def curve(folder: Path) -> list[dict]:
    every = [row for kind in ("step", "eval") for row in rows(folder, kind)]
    return [{key: value for key, value in row.items() if key not in TIMES} for row in every]


def broken(src: Path, out: Path, name: str, value: float, where: str = "model.safetensors") -> Path:
    """A copy of a checkpoint with one value of a tensor replaced."""
    from safetensors.torch import load_file, save_file

    shutil.copytree(src, out)
    tensors = load_file(out / where)
    tensors[name].view(-1)[-1] = value
    save_file(tensors, out / where, metadata={"format": "pt"})
    return out
