"""The file that `rekindle utility` writes, as methods read it: a score of every expert."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from rekindle.edit import Checkpoint
from rekindle.errors import RekindleError, together


class Scores(NamedTuple):
    layers: Mapping[int, Sequence[float]]  # layer -> [E], each a number of at least 0
    checkpoint: str  # fingerprint of the one they are of


def read_scores(path: Path, parent: Checkpoint) -> Scores:
    """The scores of the parent's experts; raises RekindleError where the file holds no such thing, or another's."""
    again = f"rekindle utility SRC --out {path} --overwrite"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise RekindleError(f"The scores cannot be read: {error.strerror}.", where=path, hint=again) from None
    except (ValueError, RecursionError) as error:
        raise RekindleError(f"The scores are not JSON: {error}.", where=path, hint=again) from None
    layers = data.get("layers") if isinstance(data, dict) else None
    if not isinstance(layers, dict):
        raise RekindleError("The file holds no scores of experts.", where=path, hint=again)
    expected = [str(layer) for layer in parent.settings.sparse_layers]
    whats = []
    if layers.keys() != set(expected):
        whats.append(f"There are scores for layers {', '.join(layers)}, but experts in {', '.join(expected)}.")
    whats += [what for layer, row in layers.items() if (what := _problem(layer, row, parent.settings.num_experts))]
    if whats:
        raise together([RekindleError(what, where=path, hint=again) for what in whats])
    return Scores({int(layer): row for layer, row in layers.items()}, str(data.get("checkpoint")))


def _problem(layer: str, row: Any, experts: int) -> str | None:
    if not isinstance(row, list) or len(row) != experts:
        return f"Layer {layer} has {len(row) if isinstance(row, list) else 'no'} scores for {experts} experts."
    bad = [score for score in row if type(score) not in (int, float) or not 0 <= score < math.inf]
    return f"A score of layer {layer} is {bad[0]!r}, not a number of at least 0." if bad else None
