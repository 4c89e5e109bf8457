"""What a checkpoint computes on text, as far as measurements ask for it: moments of the inputs of attention, and how
large what branches put out is.

Memory: the model, whole or a block at a time, and 8 (D + 1)^2 bytes for each layer, D being the hidden size: about a
sixth of a dense model's float32 weights.
"""

from __future__ import annotations

from collections.abc import Iterable
from contextlib import ExitStack
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from rekindle.anatomy import Role, Settings
from rekindle.apply.probe import Shown, probe_of
from rekindle.apply.verify import loaded
from rekindle.edit.checkpoint import Checkpoint
from rekindle.edit.measure import BRANCHES
from rekindle.errors import RekindleError


def nbytes(checkpoint: Checkpoint) -> int:
    """Memory of the moments."""
    _, settings = _reader(checkpoint)
    return 8 * settings.num_layers * (settings.hidden_size + 1) ** 2


class Calibration:
    """What a checkpoint, or its encoder where there is one, computes on a text; see edit.measure.Activations."""

    def __init__(self, checkpoint: Checkpoint, batches: Iterable[Shown], *, blockwise: bool = False):
        """Runs the model of the checkpoint's folder, in float32, on all batches, see apply.probe.

        Raises RekindleError where keys do not come out of the hidden state (latent attention), and where the model
        computes NaN.
        """
        if checkpoint.settings.latent_attention:
            raise RekindleError(f"{checkpoint.family.model_type} has latent attention: its keys have no inputs to see.")
        _, settings = _reader(checkpoint)
        size = settings.hidden_size + 1
        self._moments = np.zeros((settings.num_layers, size, size))
        self._sizes = np.zeros((settings.num_layers, len(BRANCHES)))
        self._tokens = 0
        self._run(checkpoint, batches, blockwise)
        if not (np.isfinite(self._moments).all() and np.isfinite(self._sizes).all()):
            raise RekindleError("The model computes NaN or infinite values on this text.", where=checkpoint.folder.path)

    def attention_inputs(self, layer: int) -> NDArray[np.float64]:
        return self._moments[layer] / self._tokens

    def branch_size(self, layer: int, branch: str) -> float:
        return float(self._sizes[layer, list(BRANCHES).index(branch)] / self._tokens)

    def _run(self, checkpoint: Checkpoint, batches: Iterable[Shown], blockwise: bool) -> None:
        import torch

        probe = probe_of(checkpoint.settings)
        with loaded(checkpoint, "float32", blockwise) as model, torch.no_grad(), ExitStack() as hooks:
            for layer, name in enumerate(_modules(checkpoint, "attn.k")):
                hook = model.get_submodule(name).register_forward_pre_hook(partial(self._add, layer))
                hooks.callback(hook.remove)
            for number, part in enumerate(BRANCHES.values()):
                for layer, name in enumerate(_modules(checkpoint, part)):
                    if name:  # a layer may have experts instead
                        hook = model.get_submodule(name).register_forward_hook(partial(self._measure, layer, number))
                        hooks.callback(hook.remove)
            for batch in batches:
                mask = batch.get("attention_mask")
                self._kept = None if mask is None else mask.flatten().bool()
                self._tokens += batch["input_ids"].numel() if mask is None else int(mask.sum())
                model.base_model(**probe.inputs(model, batch))  # without the head: logits are not needed, and large

    def _add(self, layer: int, module: Any, inputs: tuple[Any, ...]) -> None:
        """Called before a layer's keys are computed, with their input [N, T, D]."""
        x = inputs[0].flatten(0, -2).double()
        x = x if self._kept is None else x[self._kept]
        total, moment = x.sum(0).numpy(), self._moments[layer]
        moment[:-1, :-1] += (x.T @ x).numpy()
        moment[-1, :-1] += total
        moment[:-1, -1] += total
        moment[-1, -1] += len(x)

    def _measure(self, layer: int, number: int, module: Any, inputs: tuple[Any, ...], out: Any) -> None:
        """Called when a branch has put out [N, T, D]."""
        sizes = out.flatten(0, -2).double().square().mean(-1).sqrt()
        self._sizes[layer, number] += float((sizes if self._kept is None else sizes[self._kept]).sum())


def _reader(checkpoint: Checkpoint) -> tuple[str, Settings]:
    """The tower that reads what `input_ids` and `attention_mask` are of, "" of an only one; and its settings."""
    return next(iter(checkpoint.settings.towers.items()), ("", checkpoint.settings))


def _modules(checkpoint: Checkpoint, part: str) -> list[str]:
    """The module of each layer that has a part, perhaps with others, by its name in transformers; "" where none has."""
    names = {role: name for role, (name, _, _) in checkpoint.family.table(checkpoint.settings, fused=True)}
    tower, settings = _reader(checkpoint)
    found = (names.get(Role(part, layer, tower=tower), "") for layer in range(settings.num_layers))
    return [name.removesuffix(".weight") for name in found]
