"""Images of a denoiser by a scheduler of diffusers: the plain loop, with a gradient where the tensors have one.

diffusers' own pipelines run without gradients; this is what they do for a model that is told no class.
"""

from __future__ import annotations

import copy
import hashlib
import inspect
from collections.abc import Callable
from typing import Any

import torch

Denoise = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]  # of noisy samples and a timestep


def sample(
    denoise: Denoise, scheduler: Any, shape: tuple[int, ...], steps: int, seed: int, device: str | torch.device = "cpu"
) -> torch.Tensor:
    """Samples [n, ...] in the scheduler's `steps`: the same noise for the same seed."""
    start, each = torch.Generator().manual_seed(seed), torch.Generator().manual_seed(mixed(seed, "steps"))
    scheduler = copy.deepcopy(scheduler)  # which counts its steps
    scheduler.set_timesteps(steps)
    noisy = {"generator": each} if "generator" in inspect.signature(scheduler.step).parameters else {}
    x = torch.randn(shape, generator=start).to(device) * scheduler.init_noise_sigma
    for t in scheduler.timesteps:
        out = denoise(scheduler.scale_model_input(x, t), t)
        x = scheduler.step(out, t, x, **noisy).prev_sample
    return x


def mixed(seed: int, of: object) -> int:
    """Another seed for everything that noise is drawn for."""
    return int.from_bytes(hashlib.blake2b(f"{seed}/{of}".encode(), digest_size=6).digest(), "big")


def quiet_diffusers() -> Any:
    """diffusers without its advice and its bars: stderr is the user's."""
    import diffusers

    diffusers.utils.logging.set_verbosity_error()
    diffusers.utils.logging.disable_progress_bar()
    return diffusers
