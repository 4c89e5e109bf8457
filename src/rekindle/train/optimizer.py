"""AdamW, and its moments on disk under the checkpoint's own tensor names.

In OUT/optimizer, float32, as `apply/state.py` says. The layout is the weights' layout on disk, expert by expert, so
that a method can recycle the moments by the same expressions as the weights. In memory transformers stacks the experts
of a layer into one parameter (gate_up_proj [E, 2F, D], down_proj [E, D, F]); `runtime_names` maps one to the other.
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save_file

from rekindle.anatomy import runtime_names
from rekindle.anatomy.adam import MOMENTS
from rekindle.apply.state import DESCRIPTION, WEIGHTS, checked, read_state
from rekindle.errors import CheckFailed, RekindleError, counted, together
from rekindle.store.dtypes import TORCH
from rekindle.store.files import Files
from rekindle.store.header import Stored
from rekindle.store.index import read_json

BETA1, EPS = 0.9, 1e-8

Names = Mapping[str, str | tuple[tuple[str, ...], ...]]


def make_optimizer(model: torch.nn.Module, weight_decay: float, beta2: float) -> torch.optim.AdamW:
    """Fused AdamW; weight decay on matrices only, not on norms and biases."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(BETA1, beta2), eps=EPS, fused=True)


def save_optimizer(
    model: torch.nn.Module,
    optimizer: torch.optim.AdamW,
    config: Mapping[str, Any],
    folder: Path,
    schedule: Mapping[str, Any],
) -> None:
    """Write the moments of `model`'s parameters into `folder`; `config` is the model's config.json."""
    names = runtime_names(config)
    tensors, steps = {}, {}
    for name, parameter in model.named_parameters():
        state = optimizer.state[parameter]
        for moment in MOMENTS:
            for disk, part in split(names, name, state[moment]):
                tensors[f"{disk}.{moment}"] = part.to("cpu", torch.float32, copy=True).contiguous()
                steps[disk] = int(state["step"])
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, folder / WEIGHTS)
    described = description(optimizer, steps, schedule)
    (folder / DESCRIPTION).write_text(json.dumps(described, indent=1) + "\n", encoding="utf-8")


def description(
    optimizer: torch.optim.Optimizer, steps: Mapping[str, int], schedule: Mapping[str, Any]
) -> dict[str, Any]:
    """optimizer.json."""
    betas = list(optimizer.param_groups[0]["betas"])
    return {"algorithm": "adamw", "betas": betas, "eps": EPS, "steps": dict(steps), "schedule": dict(schedule)}


def load_optimizer(
    model: torch.nn.Module, optimizer: torch.optim.AdamW, config: Mapping[str, Any], folder: Path
) -> None:
    """Fill the optimizer with the moments in `folder`.

    Raises RekindleError naming entries that are missing, superfluous, NaN or of another shape than their weight. Of a
    stacked parameter whose parts took different numbers of steps the largest counts: the bias correction of an
    old moment is nearly 1, and a part that starts at zero takes its first steps the more carefully.
    """
    parameters = dict(model.named_parameters())
    found = read_state(folder, config, {name: tuple(x.shape) for name, x in parameters.items()})
    names, steps, stored = runtime_names(config), _described(found.info, found.path)["steps"], found.moments
    wanted = {
        f"{disk}.{moment}": part.shape
        for name, parameter in parameters.items()
        for disk, part in split(names, name, parameter.data)
        for moment in MOMENTS
    }
    _check(wanted, {key: tensor.shape for key, tensor in stored.items()}, steps, folder)
    sick = []
    with Files() as files:
        for name, parameter in parameters.items():
            state: dict[str, torch.Tensor] = {}
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(parameter, dtype=torch.float32)
                for disk, part in split(names, name, state[moment]):
                    part.copy_(_tensor(files, stored[f"{disk}.{moment}"]))
                    if not part.isfinite().all():
                        sick.append(f"{disk}.{moment}")
            taken = max(steps[disk] for disk, _ in split(names, name, parameter.data))
            state["step"] = torch.tensor(float(taken), device=parameter.device)
            optimizer.state[parameter] = state
    if sick:
        others = f" and {counted(len(sick) - 1, 'other')}" if len(sick) > 1 else ""
        raise CheckFailed(
            f"The optimizer state holds NaN or infinite values, in {sick[0]}{others}.",
            where=found.path,
            why="the first step would make weights of them that are no numbers either",
            hint="an earlier state, or start fresh: without --optimizer-state",
        )


def _tensor(files: Files, stored: Stored) -> torch.Tensor:
    data = bytearray(files.read(stored.path, stored.offset, stored.nbytes))
    return torch.frombuffer(data, dtype=getattr(torch, TORCH[stored.dtype])).reshape(stored.shape)


def read_description(folder: Path) -> dict[str, Any]:
    """optimizer.json, checked; raises RekindleError where it is missing or another algorithm's."""
    path = folder / DESCRIPTION
    return _described(read_json(path, missing=f"{folder} holds no optimizer state."), path)


def _described(description: dict[str, Any], path: Path) -> dict[str, Any]:
    if checked(description, path).get("algorithm") is None:
        raise RekindleError("This state does not say that it is of adamw.", where=path)
    return description


def split(names: Names, name: str, tensor: torch.Tensor) -> Iterator[tuple[str, torch.Tensor]]:
    """Views of a parameter-shaped tensor, each with its name on disk."""
    disk = names[name]
    if isinstance(disk, str):
        yield disk, tensor
        return
    for expert, parts in zip(tensor, disk, strict=True):
        yield from zip(parts, expert.chunk(len(parts)), strict=True)


def _check(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], steps: Mapping[str, int], folder: Path
) -> None:
    """All that is wrong with the entries of a state, at once."""
    problems = [
        RekindleError(f"The optimizer state has no {key}.", hint="recycle it with the weights, or start fresh")
        for key in sorted(wanted.keys() - found.keys())
    ]
    problems += [RekindleError(f"No weight is called {key}.") for key in sorted(found.keys() - wanted.keys())]
    problems += [
        RekindleError(f"{key} has the shape {list(found[key])}, but its weight has {list(wanted[key])}.")
        for key in sorted(wanted.keys() & found.keys())
        if tuple(found[key]) != tuple(wanted[key])
    ]
    weights = sorted({key.rpartition(".")[0] for key in wanted} - steps.keys())
    problems += [RekindleError(f"{DESCRIPTION} has no step for {name}.") for name in weights]
    if problems:
        raise RekindleError(f"The optimizer state does not fit the weights. {together(problems)}", where=folder)
