"""Adam's state as it is found: this project's folder `optimizer/`, or a file that torch or a Trainer saved."""

from __future__ import annotations

import struct
from collections.abc import Iterator, Mapping
from math import prod
from pathlib import Path
from typing import Any

from rekindle.anatomy import runtime_names
from rekindle.anatomy.adam import MOMENTS, Adam, Shape, adams_in, deal, parameters_of
from rekindle.apply.moments import DESCRIPTION, FOLDER, State, described, moment_name, read_moments
from rekindle.errors import RekindleError
from rekindle.store.dtypes import BITS
from rekindle.store.header import Stored
from rekindle.store.torch_file import TorchFile, View, read_torch

TORCH_FILES = ("optimizer.pt", "optimizer.bin")  # Trainer's name, and accelerate's
# Beside the weights or in a Trainer's checkpoint: ours, torch's, one of FSDP's, those of DeepSpeed's ranks.
_PLACES = (FOLDER, *TORCH_FILES, "optimizer_[0-9]*", "global_step*/*optim_states*")

Disk = str | tuple[tuple[str, ...], ...]


def read_state(place: Path, config: Mapping[str, Any], parameters: Mapping[str, Shape] | None = None) -> State:
    """The state at `place` for the model of a config.json. Raises RekindleError that says what it is, where it is none.

    `parameters` are the model's as torch has them, in its order; without them torch's files need transformers' class.
    """
    place = place.expanduser()
    if (place / DESCRIPTION).is_file():
        return read_moments(place)
    found = [place] if place.is_file() else [place / name for name in TORCH_FILES if (place / name).is_file()]
    if not found:
        raise _none(place)
    content = read_torch(found[0])
    states = adams_in(content.tree) if content else []
    if content is None or len(states) != 1:
        why = "nothing in it, or too much, has the two moments of an Adam for each parameter"
        if content is None:
            why = "it is no file of torch's, is torn, or was written before torch 1.6"
        raise RekindleError(f"{found[0]} holds no optimizer state.", why=why, hint="the optimizer.pt of an AdamW")
    return _of_torch(content, states[0], config, parameters, found[0])


def states_in(folder: Path) -> list[Path]:
    """Where optimizer state lies in the folder of a training, by its name alone."""
    folders = (folder, *sorted(folder.glob("checkpoint-*")))
    return [path for place in folders for pattern in _PLACES for path in sorted(place.glob(pattern))]


def _of_torch(
    content: TorchFile, adam: Adam, config: Mapping[str, Any], parameters: Mapping[str, Shape] | None, path: Path
) -> State:
    if adam.options.get("amsgrad") is True:
        raise RekindleError("This is the state of an AMSGrad, not of adamw.", where=path)
    if parameters is None:
        parameters = parameters_of(config)
    names = deal(adam, parameters) if parameters else None
    if names is None:
        held = sum(map(len, adam.groups))
        why = f"there is not just one way to deal the model's {len(parameters or ())} parameters to its groups in order"
        if adam.names:
            strange = [name for name in adam.names.values() if name not in (parameters or {})]
            why = f"the model has no {strange[0]}" if strange else "shapes are not those of the model"
        elif parameters is None:
            why = "it knows them by number alone, and transformers has no class for this config that has their order"
        what = f"Which weights the {held} parameters of this optimizer state are cannot be told for sure."
        hint = "AdamW(model.named_parameters()) writes names too; or no --optimizer-state"
        raise RekindleError(what, where=path, why=why, hint=hint)
    disk, moments, steps = runtime_names(config, parameters or ()), {}, {}
    for number, name in names.items():
        for order, suffix in enumerate(MOMENTS):
            view = adam.moment(number, order)
            stored = content.stored(view) if view else None
            if name not in disk or stored is None:
                raise RekindleError(f"{suffix} of {name} cannot be read.", where=path)
            for part, place in _parts(disk[name], stored):
                moments[moment_name(part, suffix)] = place
                steps[part] = _number(content, adam.state[number].get("step"))
    betas, eps = adam.options.get("betas"), adam.options.get("eps")
    info = described(betas if isinstance(betas, list | tuple) else None, eps, steps, {})
    return State(info, moments, path)


def _parts(disk: Disk, stored: Stored) -> Iterator[tuple[str, Stored]]:
    """Of a stack of experts each part under its own name: rows one after the other."""
    if isinstance(disk, str):
        yield disk, stored
        return
    names = [name for expert in disk for name in expert]
    shape = (stored.shape[1] // len(disk[0]), *stored.shape[2:])
    size = prod(shape) * BITS[stored.dtype] // 8
    for i, name in enumerate(names):
        yield name, Stored(stored.path, stored.dtype, shape, stored.offset + i * size, size)


def _number(content: TorchFile, step: Any) -> int:
    """A step, a number or a tensor of one."""
    place = content.stored(step) if isinstance(step, View) else None
    if place is not None and place.dtype in ("F32", "I64") and place.nbytes in (4, 8):
        with open(place.path, "rb") as file:
            file.seek(place.offset)
            step = struct.unpack("<f" if place.dtype == "F32" else "<q", file.read(place.nbytes))[0]
    if not isinstance(step, int | float) or not 0 <= step < 2**53:
        raise RekindleError("The optimizer state does not say the step of each tensor.", where=content.path)
    return int(step)


def _none(place: Path) -> RekindleError:
    """What is there in its place."""
    names = sorted(path.name for path in place.iterdir()) if place.is_dir() else []
    why, hint = f"there is neither {DESCRIPTION} nor {TORCH_FILES[0]} in it", None
    if not place.exists():
        why = "there is no such folder or file"
    elif "optimizer" in names and (place / "optimizer" / DESCRIPTION).is_file():
        why, hint = "it is the folder around one", f"{place / 'optimizer'}"
    elif sharded := _sharded(place, names):
        why = f"{sharded} is one that torch saved in pieces, by many processes"
        convert = "python -m torch.distributed.checkpoint.format_utils dcp_to_torch"
        hint = f"{convert} {sharded} optimizer.pt, and --optimizer-state optimizer.pt"
        if sharded.name.startswith("pytorch_model_fsdp"):
            why = f"{sharded} is the weights, saved in pieces by many processes; moments lie beside it in optimizer_0"
            hint = f"{sharded.with_name('optimizer_0')}; for the weights accelerate merge-weights {sharded} OUT"
    elif any(name.startswith("global_step") or name.endswith("optim_states.pt") for name in names):
        why = "DeepSpeed keeps it in flat pieces, one for each process, that name no weights"
        hint = "no --optimizer-state: moments start empty"
    elif "trainer_state.json" in names:
        why = "this Trainer saved none (save_only_model)"
    return RekindleError(f"{place} holds no optimizer state.", why=why, hint=hint)


def _sharded(place: Path, names: list[str]) -> Path | None:
    """The folder of torch's distributed checkpoint that was meant."""
    if any(name.endswith(".distcp") for name in names):
        return place
    inner = [name for name in names if name.startswith(("optimizer_", "pytorch_model_fsdp"))]
    return next((place / name for name in inner if list((place / name).glob("*.distcp"))), None)
