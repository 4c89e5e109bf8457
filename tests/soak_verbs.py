"""What `soak.py` kills: every verb that writes, on inputs that are made once."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass
from pathlib import Path

from store.folders import llama_tensors, write_llama

RESUME = ("--resume",)
SHARDS = ("--max-shard-size", "100KB")
TRAIN = ("--tokens", "6k", "--seq-len", "32", "--batch-tokens", "512", "--data", "../inputs/corpus.txt", "--lr", "1e-3",
         "--eval-tokens", "512", "--save-every", "1k")  # fmt: skip
SIZE = ("--hidden", "32", "--layers", "2", "--heads", "2", "--context", "64", "--tokenizer", "bpe:300",
        "--data", "../inputs/corpus.txt")  # fmt: skip


@dataclass(frozen=True)
class Verb:
    """One command, typed in a folder beside `inputs`; `again` is what is added to finish it after a kill.

    `old` is a folder of `inputs` that it finds there. With `at_once` OUT is there whole, or as it was. What begins with
    `more` may be there besides: a training that is asked to end archives the state that it ends with.
    """

    name: str
    words: tuple[str, ...]
    again: tuple[str, ...] = ()
    old: str | None = None
    at_once: bool = True
    more: str = ""


def _part(n: int) -> tuple[str, ...]:
    return ("upcycle", "../inputs/parent", "out", "--experts", "4", *SHARDS, "--part", f"{n}/2")


UPCYCLE = ("upcycle", "../inputs/parent", "out", "--experts", "8", *SHARDS)
VERBS = [
    Verb("upcycle", (*UPCYCLE, "--init", "noise", "--noise", "0.1", "--checksum"), RESUME),
    Verb("upcycle from an archive", ("upcycle", "../inputs/run.rk@100", "out", "--experts", "8", *SHARDS), RESUME),
    Verb("upcycle with moments", ("upcycle", "../inputs/trained", "out", "--experts", "2", "--optimizer-state",
                                  "../inputs/trained/optimizer", *SHARDS), RESUME),
    Verb("upcycle over an old one", (*UPCYCLE, "--overwrite"), RESUME, old="old", at_once=False),
    Verb("grow-depth", ("grow-depth", "../inputs/parent", "out", "--factor", "2", *SHARDS), RESUME),
    Verb("gqa", ("gqa", "../inputs/parent", "out", "--kv-heads", "1", "--pool", "aligned", *SHARDS), RESUME),
    Verb("merge", ("merge", "../inputs/step-100", "../inputs/step-200", "out", "--how", "ties", "--base",
                   "../inputs/parent", *SHARDS), RESUME),
    Verb("merge of a series", ("merge", "../inputs/step-*", "out", "--how", "mean", "--checksum", *SHARDS), RESUME),
    Verb("run", ("run", "../inputs/recipe.yaml", "out"), RESUME),
    Verb("part", _part(1), RESUME, at_once=False),
    Verb("join", ("join", "out"), old="parts", at_once=False),
    Verb("pack", ("pack", "../inputs/step-100", "../inputs/step-200", "run.rk"), ("--overwrite",), at_once=False),
    Verb("archive add", ("archive", "add", "../inputs/step-200", "run.rk"), old="archive", at_once=False),
    Verb("archive drop", ("archive", "drop", "run.rk@100"), old="archive-of-two", at_once=False),
    Verb("unpack", ("unpack", "../inputs/run.rk@100", "out")),
    Verb("init", ("init", "out", *SIZE)),
    Verb("train", ("train", "../inputs/start", "out", *TRAIN), RESUME),
    Verb("train into an archive", ("train", "../inputs/start", "out", *TRAIN, "--archive", "run.rk"), RESUME,
         at_once=False, more="run.rk@"),
    Verb("train keeping averages", ("train", "../inputs/start", "out", *TRAIN, "--keep-averages"), RESUME,
         at_once=False, more="out-averages/"),
    Verb("average", ("average", "../inputs/kept-averages", "out", "--sigma", "0.07"), ("--overwrite",)),
    Verb("combine", ("combine", "../inputs/step-*", "out", "--objective", "../inputs/score.py:score", "--budget", "40"),
         RESUME),
    Verb("report", ("report", "../inputs/trained", "--out", "out")),
    Verb("sweep", ("sweep", "../inputs/grid.yaml", "out", "--workers", "2"), at_once=False),
]  # fmt: skip


def make_inputs(place: Path, rekindle) -> None:
    """Everything that the commands read; `rekindle` types one in `place`."""
    rng = random.Random(0)
    words = ["".join(rng.choices("abcdefgh", k=rng.randint(2, 6))) for _ in range(300)]
    text = "\n\n".join(" ".join(rng.choices(words, k=60)) for _ in range(400))
    (place / "corpus.txt").write_text(text)
    size = {"hidden_size": 128, "intermediate_size": 256, "num_hidden_layers": 4, "vocab_size": 500}
    (write_llama(place / "parent", shards=2, **size) / "tokenizer.json").write_text("{}")
    for step in (100, 200):
        tensors = llama_tensors(config=json.loads((place / "parent" / "config.json").read_text()))
        changed = {n: (d, s, b if step == 100 else bytes(64) + b[64:]) for n, (d, s, b) in tensors.items()}
        write_llama(place / f"step-{step}", shards=2, tensors=changed, **size)
    steps = ("  - grow-depth: {factor: 2}", "  - upcycle: {experts: 4}", "save: {max_shard_size: 100000}")
    (place / "recipe.yaml").write_text("\n".join(("source: ../inputs/parent", "steps:", *steps)) + "\n")
    grid = {
        "model": {"heads": 2, "context": 64, "tokenizer": "bpe:300", "data": "../inputs/corpus.txt"},
        "sizes": [{"hidden": 16, "layers": 1, "ffn": 32}],
        "train": {"seq_len": 32, "batch_tokens": 256, "lr": 3e-3, "eval_tokens": 512, "data": "../inputs/corpus.txt"},
        "sunk": ["2k"], "tokens": ["2k"], "ways": ["dense", "upcycled"], "experts": [4],
    }  # fmt: skip
    (place / "grid.yaml").write_text(json.dumps(grid))
    rekindle("pack", "step-100", "run.rk")
    rekindle("init", "start", *[word.replace("../inputs/", "") for word in SIZE])
    rekindle("train", "start", "trained", *[word.replace("../inputs/", "") for word in TRAIN])
    rekindle("train", "start", "kept", *[word.replace("../inputs/", "") for word in TRAIN], "--keep-averages")
    (place / "score.py").write_text(
        "def score(tensors):\n    return sum(x.square().mean() for x in tensors.values())\n"
    )
    for name in ("old", "parts", "archive", "archive-of-two"):
        (place / name).mkdir()
    rekindle("rewrite", "parent", "old/out")
    for n in (1, 2):
        words_of_part = [word.replace("../inputs/", "") for word in _part(n)]
        rekindle(*["parts/out" if word == "out" else word for word in words_of_part])
    rekindle("pack", "step-100", "archive/run.rk")
    rekindle("pack", "step-100", "step-200", "archive-of-two/run.rk")
