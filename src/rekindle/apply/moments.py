"""The folder `optimizer/`: Adam's moments under the weights' own names on disk, and in their layout.

optimizer/optimizer.safetensors   <disk name>.exp_avg, <disk name>.exp_avg_sq; in shards with an index where large
optimizer/optimizer.json          {"algorithm", "betas", "eps", "steps": {disk name: int}, "schedule"}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from rekindle.errors import RekindleError
from rekindle.store.header import Stored, read_header
from rekindle.store.index import read_json, shard_names

FOLDER, DESCRIPTION, WEIGHTS = "optimizer", "optimizer.json", "optimizer.safetensors"
ALGORITHM = "adamw"


@dataclass(frozen=True)
class State:
    """`moments` by `moment_name`, `info` as in optimizer.json, `path` where it is described."""

    info: dict[str, Any]
    moments: dict[str, Stored]
    path: Path


def moment_name(weight: str, moment: str) -> str:
    """What the moment of a weight is called."""
    return f"{weight}.{moment}"


def weight_of(moment: str) -> str:
    """Whose moment is called so."""
    return moment.rpartition(".")[0]


def described(
    betas: Sequence[float] | None, eps: float | None, steps: Mapping[str, int], schedule: Mapping[str, Any]
) -> dict[str, Any]:
    """optimizer.json. `schedule` is where that of the learning rate stands, see train.schedule; empty: not known."""
    known = {"betas": None if betas is None else list(betas), "eps": eps}
    return {"algorithm": ALGORITHM, **known, "steps": dict(steps), "schedule": dict(schedule)}


def info_text(info: Mapping[str, Any]) -> str:
    return json.dumps(info, indent=1) + "\n"


def write_info(folder: Path, info: Mapping[str, Any]) -> None:
    (folder / DESCRIPTION).write_text(info_text(info), encoding="utf-8")


def write_moments(folder: Path, moments: dict[str, Any], info: Mapping[str, Any]) -> None:
    """`moments` are torch tensors by `moment_name`."""
    from safetensors.torch import save_file

    folder.mkdir(parents=True, exist_ok=True)
    save_file(moments, folder / WEIGHTS)
    write_info(folder, info)


def read_info(folder: Path) -> dict[str, Any]:
    """optimizer.json; raises RekindleError where it is missing, and as `checked`."""
    path = folder / DESCRIPTION
    return checked(read_json(path, missing=f"{folder} holds no optimizer state."), path)


def read_moments(folder: Path) -> State:
    """Where each moment lies; raises RekindleError where the folder is none of these."""
    index = folder / f"{WEIGHTS}.index.json"
    files = sorted(set(shard_names(index).values())) if index.exists() else [WEIGHTS]
    stored = {name: tensor for file in files for name, tensor in read_header(folder / file)[0].items()}
    return State(read_info(folder), stored, folder / DESCRIPTION)


def checked(info: dict[str, Any], path: Path) -> dict[str, Any]:
    """An optimizer.json; raises RekindleError where it is another algorithm's, or a step is no number of them."""
    if info.get("algorithm", ALGORITHM) != ALGORITHM:
        raise RekindleError(f"This is the state of {info['algorithm']!r}, not of {ALGORITHM}.", where=path)
    steps = info.get("steps")
    if not isinstance(steps, dict):
        raise RekindleError("The optimizer state does not say the step of each tensor.", where=path)
    for name, step in steps.items():
        if type(step) not in (int, float) or not 0 <= step < 2**53:
            what = f"The optimizer state does not say the step of each tensor: that of {name} is {step!r}."
            raise RekindleError(what, where=path)
    return info
