"""AdamW, and its moments on disk under the checkpoint's own tensor names.

In OUT/optimizer, float32, as `apply/moments.py` says. The layout is the weights' layout on disk, expert by expert, so
that a method can recycle the moments by the same expressions as the weights. In memory transformers stacks the experts
of a layer into one parameter (gate_up_proj [E, 2F, D], down_proj [E, D, F]); `runtime_names` maps one to the other.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from rekindle.anatomy import runtime_names
from rekindle.anatomy.adam import MOMENTS
from rekindle.apply.moments import ALGORITHM, DESCRIPTION, described, moment_name, weight_of, write_moments
from rekindle.apply.state import read_state
from rekindle.edit import TIED
from rekindle.errors import CheckFailed, RekindleError, counted, together
from rekindle.store.dtypes import TORCH
from rekindle.store.files import Files
from rekindle.store.header import Stored
from rekindle.train.held import Whole, split

BETA1, EPS = 0.9, 1e-8


def make_optimizer(model: torch.nn.Module, weight_decay: float, beta2: float) -> torch.optim.AdamW:
    """Fused AdamW; weight decay on matrices only, not on norms and biases."""
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=0.0, betas=(BETA1, beta2), eps=EPS, fused=True)


def save_optimizer(whole: Whole, config: Mapping[str, Any], folder: Path, schedule: Mapping[str, Any]) -> None:
    """Write the moments into `folder`; `config` is the model's config.json."""
    names = runtime_names(config, whole.parameters)
    moments = {
        name: part.to("cpu", torch.float32, copy=True).contiguous() for name, part in whole.moments_on_disk(names)
    }
    steps = whole.steps_on_disk(names)
    for copy, of in (config.get(TIED) or {}).items():  # of parameters that are one and are written twice
        if of in steps and copy not in steps:
            steps[copy] = steps[of]
            moments |= {moment_name(copy, moment): moments[moment_name(of, moment)].clone() for moment in MOMENTS}
    write_moments(folder, moments, described(whole.betas, EPS, steps, schedule))


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
    if found.info.get("algorithm") is None:
        raise RekindleError(f"This state does not say that it is of {ALGORITHM}.", where=found.path)
    names, steps, stored = runtime_names(config, parameters), found.info["steps"], found.moments
    wanted = {
        moment_name(disk, moment): part.shape
        for name, parameter in parameters.items()
        for disk, part in split(names, name, parameter.data)
        for moment in MOMENTS
    }
    copies = {moment_name(name, moment) for name in config.get(TIED) or {} for moment in MOMENTS} - wanted.keys()
    shapes = {name: tensor.shape for name, tensor in stored.items() if name not in copies}
    _check(wanted, shapes, steps, folder)
    sick = []
    with Files() as files:
        for name, parameter in parameters.items():
            state: dict[str, torch.Tensor] = {}
            for moment in MOMENTS:
                state[moment] = torch.zeros_like(parameter, dtype=torch.float32)
                for disk, part in split(names, name, state[moment]):
                    part.copy_(_tensor(files, stored[moment_name(disk, moment)]))
                    if not part.isfinite().all():
                        sick.append(moment_name(disk, moment))
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


def _check(
    wanted: Mapping[str, tuple[int, ...]], found: Mapping[str, tuple[int, ...]], steps: Mapping[str, int], folder: Path
) -> None:
    """All that is wrong with the entries of a state, at once."""
    problems = [
        RekindleError(f"The optimizer state has no {name}.", hint="recycle it with the weights, or start fresh")
        for name in sorted(wanted.keys() - found.keys())
    ]
    problems += [RekindleError(f"No weight is called {name}.") for name in sorted(found.keys() - wanted.keys())]
    problems += [
        RekindleError(f"{name} has the shape {list(found[name])}, but its weight has {list(wanted[name])}.")
        for name in sorted(wanted.keys() & found.keys())
        if tuple(found[name]) != tuple(wanted[name])
    ]
    weights = sorted(set(map(weight_of, wanted)) - steps.keys())
    problems += [RekindleError(f"{DESCRIPTION} has no step for {name}.") for name in weights]
    if problems:
        raise RekindleError(f"The optimizer state does not fit the weights. {together(problems)}", where=folder)
