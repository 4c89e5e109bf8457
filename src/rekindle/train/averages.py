"""Averages of the weights that are kept while a run trains, so that one of any length can be had afterwards.

EDM2's power-function averages (Karras et al. 2023, "Analyzing and Improving the Training Dynamics of Diffusion Models",
arXiv 2312.02696, section 3 and appendix C): after step t the average weighs theta(s) by (g + 1) s^g / t^(g + 1), so its
length grows with the run, and

    average(t) = b average(t - 1) + (1 - b) theta(t)        b = (1 - 1 / t)^(g + 1)

Two of them, of relative widths .05 and .10, at every saved state span all other lengths: see `rekindle average`.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from rekindle.methods.merging.post_hoc import KEPT, SIGMAS, exponent
from rekindle.store.folder import Folder
from rekindle.store.publish import publishing
from rekindle.train.model import as_stored, save_model

FILE = "averages.safetensors"  # in a saved state


class Averages:
    """Of `model`, in float32 on its device; the main rank alone has them."""

    def __init__(self, model: torch.nn.Module):
        self._model = model
        self.held = {sigma: {name: p.detach().clone() for name, p in model.named_parameters()} for sigma in SIGMAS}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Take in the weights after `step` updates."""
        now = [p.detach() for _, p in self._model.named_parameters()]
        for sigma, average in self.held.items():
            torch._foreach_lerp_([*average.values()], now, 1 - (1 - 1 / step) ** (exponent(sigma) + 1))

    def state(self) -> dict[str, torch.Tensor]:
        return {f"{sigma}/{name}": x for sigma, average in self.held.items() for name, x in average.items()}

    def load(self, state: Mapping[str, torch.Tensor]) -> None:
        """What `state` gave; raises KeyError where it is of another model."""
        for sigma, average in self.held.items():
            for name, x in average.items():
                x.copy_(state[f"{sigma}/{name}"])

    def save(self, folder: Path, step: int, source: Folder, buffers: Mapping[str, torch.Tensor]) -> None:
        """FOLDER/sigma-.../checkpoint-STEP for each, a checkpoint like any other; what is there is replaced."""
        for sigma, average in self.held.items():
            place = folder / f"sigma-{sigma:.2f}" / f"checkpoint-{step}"
            with publishing(place, overwrite=True) as part:
                save_model(self._model, part, as_stored({**average, **buffers}, source))
                source.carry(part)
                (part / KEPT).write_text(json.dumps({"sigma": sigma, "step": step}) + "\n", encoding="utf-8")


def averages_of(out: Path) -> Path:
    """Where those of the run into OUT lie."""
    return out.with_name(f"{out.name}-averages")
