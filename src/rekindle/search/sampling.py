"""Images of a denoiser by a scheduler of diffusers: the plain loop, with a gradient where the tensors have one.

diffusers' own pipelines run without gradients; this is what they do for a model that is told no class.
"""

from __future__ import annotations

import copy
import inspect
from collections.abc import Callable
from typing import Any

import torch

Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of noisy samples and a timestep


def sample(
    denoise: Denoise, scheduler: Any, shape: tuple[int, ...], steps: int, seed: int, device: str | torch.device = "cpu"
) -> torch.Tensor:
    """Samples [n, ...] in the scheduler's `steps`: the same noise for the same seed, the first ones for a smaller n."""
    noise = [torch.Generator().manual_seed(seed + i) for i in range(2)]  # of the start, and of each step
    scheduler = copy.deepcopy(scheduler)  # which counts its steps
    scheduler.set_timesteps(steps)
    x = torch.randn(shape, generator=noise[0]).to(device) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        out = denoise(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(out, t, x, **_noisy(scheduler, noise[1])).prev_sample
    return x


def _noisy(scheduler: Any, generator: torch.Generator) -> dict[str, Any]:
    """The generator, for schedulers that draw noise."""
    return {"generator": generator} if "generator" in inspect.signature(scheduler.step).parameters else {}


def quiet_diffusers() -> Any:
    """diffusers without its advice and its bars: stderr is the user's."""
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    return diffusers
