"""A run as the report sees it: a folder's name, diary, lineage and verification."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from statistics import median
from typing import Any

from rekindle.errors import RekindleError
from rekindle.report.metrics import FAR, Evaluation, Metrics, read_metrics
from rekindle.report.places import source_folders
from rekindle.store.lineage import before, stem
from rekindle.store.manifest import Manifest, Record, read_manifest

VERIFY = "verify.json"


@dataclass(frozen=True, eq=False)
class Run:
    """One training stage of one checkpoint. Tokens and FLOPs are of this stage; losses in nats per token."""

    name: str  # unique among the runs of a report
    folder: Path
    metrics: Metrics
    manifest: Manifest | None = None
    verify: dict[str, Any] | None = field(default=None)

    @property
    def lineage(self) -> list[Record]:
        return self.manifest.lineage if self.manifest else []

    @property
    def stage(self) -> int | None:
        """The place of this stage in the lineage: the last `train`; None where none is recorded."""
        return next((place for place in reversed(stem(self.lineage)) if self.lineage[place].verb == "train"), None)

    @property
    def ancestry(self) -> list[Record]:
        """The lineage before this stage, or all of it where the stage is not recorded."""
        return self.lineage if self.stage is None else before(self.lineage, self.stage)

    @cached_property
    def readings(self) -> list[Evaluation]:
        """The evaluations whose loss is a number."""
        return [e for e in self.metrics.evaluations if math.isfinite(e.loss)]

    @property
    def start(self) -> Evaluation | None:
        first = self.metrics.evaluations[0]
        return first if first.step == 0 and math.isfinite(first.loss) else None

    @property
    def final(self) -> Evaluation:
        """The last evaluation, whatever it found."""
        return self.metrics.evaluations[-1]

    @property
    def tokens(self) -> float:
        return max([self.final.tokens, *(s.tokens for s in self.metrics.steps[-1:])])

    @property
    def flops(self) -> float:
        return max([self.final.flops, *(s.flops for s in self.metrics.steps[-1:])])

    @property
    def parameters(self) -> dict[str, int]:
        """{"total", "active"}, from the diary or else the manifest; empty where neither says."""
        given = self.metrics.header.get("parameters") or (self.manifest.parameters if self.manifest else {})
        if not isinstance(given, dict):
            return {}
        return {k: v for k, v in given.items() if isinstance(v, int) and 0 <= v < FAR}

    @cached_property
    def text(self) -> tuple[str | None, int | None]:
        """Which validation windows were read, by their hash, and how many tokens these are; None where unrecorded."""
        header, read = self.metrics.header, self.final.losses
        windows, length = header.get("val_set"), header.get("seq_len")
        asked = self.lineage[self.stage].options.get("eval_tokens", {}).get("value") if self.stage is not None else None
        counted = len(read) * length if read and isinstance(length, int) else asked
        return windows if isinstance(windows, str) else None, counted if isinstance(counted, int) else None

    @property
    def objective(self) -> str:
        """What it learned, and its losses are of; of the next token the diary does not say it."""
        return str(self.metrics.header.get("objective", "next-token"))

    @property
    def target(self) -> str:
        """What its losses are a mean over."""
        return "image" if self.objective == "image-classification" else "token"

    @property
    def corpus(self) -> str | None:
        """All the text that there was to train and to validate on, by its digest; None where unrecorded."""
        found = self.metrics.header.get("text")
        return found if isinstance(found, str) else None

    @property
    def length(self) -> Any:
        """Tokens of a window."""
        return self.metrics.header.get("seq_len")

    @property
    def tokens_per_s(self) -> float | None:
        speeds = [s.tokens_per_s for s in self.metrics.steps if math.isfinite(s.tokens_per_s)]
        return median(speeds) if speeds else None

    @cached_property
    def load(self) -> Evaluation | None:
        """The last evaluation that measured expert load; None for a dense model."""
        return next((e for e in reversed(self.metrics.evaluations) if e.load), None)


def read_runs(folders: Sequence[str | Path]) -> list[Run]:
    """One Run for each folder, in order; a folder given twice counts once.

    Raises RekindleError for a folder, diary, manifest or verification that cannot be read.
    """
    paths = list(dict.fromkeys(Path(folder).absolute() for folder in folders))
    if not paths:
        raise RekindleError("There is no run to report.", hint="rekindle report RUN... --out DIR")
    for path in paths:
        if not path.is_dir():
            raise RekindleError(
                f"{path} is not a folder." if path.exists() else f"{path} does not exist.",
                hint="a folder that `rekindle train` wrote",
            )
    paths = list({path.resolve(): path for path in reversed(paths)}.values())[::-1]
    return [_read(path, name) for path, name in zip(paths, distinct_names(paths))]


def distinct_names(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell each from the others: `run`, or `a/run` and `b/run`."""
    parts = [path.resolve().parts for path in paths]
    depth = [1] * len(parts)
    while True:
        names = ["/".join(p[-n:]) for p, n in zip(parts, depth)]
        clashing = [i for i, name in enumerate(names) if names.count(name) > 1 and depth[i] < len(parts[i])]
        if not clashing:
            return names
        for i in clashing:
            depth[i] += 1


def _read(folder: Path, name: str) -> Run:
    metrics, manifest = read_metrics(folder), read_manifest(folder)
    lineage = manifest.lineage if manifest else []
    behind = source_folders(folder, lineage)
    sources = [behind[place][""] for place in reversed(stem(lineage)) if "" in behind[place]]
    return Run(name, folder, metrics, manifest, _verification([folder, *sources]))


def _verification(folders: Sequence[Path]) -> dict[str, Any] | None:
    """The newest `verify.json` on the way back to where lives met: training on does not repeat the check."""
    for folder in folders:
        path = folder / VERIFY
        try:
            data = json.loads(path.read_text(encoding="utf-8"))
        except OSError:
            continue
        except ValueError:
            raise RekindleError("This verification cannot be read: it is not JSON.", where=path) from None
        if not isinstance(data, dict):
            raise RekindleError("This verification is not a JSON object.", where=path)
        return data
    return None
