"""Denoisers of the digits: diffusion, consistency distillation, consistency training; small, and saved often.

Each is F in D(x; sigma) = c_skip x + c_out F(c_in x; ln(sigma) / 4), preconditioned as diffusers' schedulers do it:

diffusion     EDM (Karras et al. 2022, arXiv 2206.00364): |D(y + sigma z) - y|^2 / c_out^2, ln(sigma) normal
distillation  a consistency model of such a teacher (Song et al. 2023, arXiv 2303.01469, algorithm 2): neighbours on a
              path of the teacher's (one step of Heun) are to give the same image
training      the same without a teacher (algorithm 3): neighbours are one image with one noise at two levels

The grid of noise levels is fixed, N = 18; the network that gives the targets is an average that keeps .95 at each step.
"""

from __future__ import annotations

import copy
import json
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from torch import nn

from rekindle.lab.digits import digits
from rekindle.search.sampling import quiet_diffusers, sample

Kind = Literal["diffusion", "distillation", "training"]
SIGMA_MIN, SIGMA_MAX, SIGMA_DATA, LEVELS, RHO = 0.02, 20.0, 0.75, 18, 7.0
TARGET_DECAY = 0.95
Tensors = dict[str, torch.Tensor]


class Denoiser(nn.Module):
    """A residual MLP of 64 values and a noise level: F(x, ln(sigma) / 4)."""

    def __init__(self, width: int = 128, blocks: int = 2):
        super().__init__()
        self.register_buffer("frequencies", 2.0 ** torch.arange(8) * math.pi / 2, persistent=False)
        self.image, self.level = nn.Linear(64, width), nn.Linear(16, width)
        self.blocks = nn.ModuleList(
            nn.Sequential(nn.LayerNorm(width), nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, width))
            for _ in range(blocks)
        )
        self.out = nn.Linear(width, 64)

    def forward(self, x: torch.Tensor, level: torch.Tensor) -> torch.Tensor:
        angle = level.reshape(-1, 1).float() * self.frequencies
        h = self.image(x) + self.level(torch.cat([angle.sin(), angle.cos()], dim=1))
        for block in self.blocks:
            h = h + block(h)
        return self.out(h)


@dataclass(frozen=True)
class Recipe:
    """How one is trained, and which steps of it are saved."""

    kind: Kind
    lr: float
    batch: int
    steps: int = 4000
    every: int = 60


def scheduler_of(kind: Kind) -> Any:
    """diffusers' scheduler that samples from such a model."""
    diffusers = quiet_diffusers()
    sizes = {"sigma_min": SIGMA_MIN, "sigma_max": SIGMA_MAX, "sigma_data": SIGMA_DATA, "rho": RHO}
    if kind == "diffusion":
        return diffusers.EDMEulerScheduler(**sizes)
    return diffusers.CMStochasticIterativeScheduler(**sizes, num_train_timesteps=LEVELS, clip_denoised=False)


def images(tensors: Tensors, kind: Kind, n: int, steps: int, seed: int) -> torch.Tensor:
    """Samples [n, 64] of a denoiser with these tensors."""
    net, unit = _empty(), 1.0 if kind == "diffusion" else 1000.0  # in which the scheduler counts ln(sigma) / 4

    def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
        return torch.func.functional_call(net, tensors, (x, torch.as_tensor(t / unit)))

    return sample(denoise, scheduler_of(kind), (n, 64), steps, seed)


def _empty() -> Denoiser:
    return Denoiser().requires_grad_(False)


def train(recipe: Recipe, seed: int, teacher: Tensors | None = None) -> Iterator[tuple[int, Tensors]]:
    """Train, and yield (step, tensors) at each step that is saved; `teacher`: what is distilled."""
    torch.manual_seed(seed)
    net, data = Denoiser(), digits().train
    target = copy.deepcopy(net).requires_grad_(False)
    loss_of = _loss(recipe.kind, net, target, teacher)
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.lr, weight_decay=0.0)
    for step in range(1, recipe.steps + 1):
        loss = loss_of(data[torch.randint(0, len(data), (recipe.batch,))])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for own, other in zip(target.parameters(), net.parameters(), strict=True):
                own.lerp_(other, 1 - TARGET_DECAY)
        if step % recipe.every == 0:
            yield step, {name: x.clone() for name, x in net.state_dict().items()}


def save(folder: Path, kind: Kind, saved: Iterator[tuple[int, Tensors]]) -> Path:
    """A folder of checkpoints, as a run of any trainer's leaves them."""
    from safetensors.torch import save_file

    for step, tensors in saved:
        place = folder / f"checkpoint-{step}"
        place.mkdir(parents=True)
        save_file(tensors, place / "model.safetensors")
        (place / "config.json").write_text(json.dumps({"model_type": "digits-denoiser", "kind": kind}) + "\n")
    return folder


# -- what they learn -------------------------------------------------------------------------------------------------


def _loss(
    kind: Kind, net: Denoiser, target: Denoiser, teacher: Tensors | None
) -> Callable[[torch.Tensor], torch.Tensor]:
    if kind == "diffusion":
        return lambda y: _diffusion(net, y)
    levels = karras()
    old = _empty()
    if teacher is not None:
        old.load_state_dict(teacher, strict=False)

    def consistency(y: torch.Tensor) -> torch.Tensor:
        n = torch.randint(0, LEVELS - 1, (len(y), 1))
        low, high, z = levels[n], levels[n + 1], torch.randn_like(y)
        x = y + high * z
        with torch.no_grad():
            below = y + low * z if teacher is None else heun(old, x, high, low)
            goal = consistent(target, below, low)
        return (consistent(net, x, high) - goal).square().mean()

    return consistency


def _diffusion(net: Denoiser, y: torch.Tensor) -> torch.Tensor:
    sigma = torch.exp(torch.randn(len(y), 1) * 1.2 - 0.8).clamp(SIGMA_MIN, SIGMA_MAX)
    c_out = sigma * SIGMA_DATA / (sigma**2 + SIGMA_DATA**2).sqrt()
    return ((denoised(net, y + sigma * torch.randn_like(y), sigma) - y) / c_out).square().mean()


def denoised(net: Denoiser, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """EDM's D, table 1: as EDMEulerScheduler has it."""
    total = sigma**2 + SIGMA_DATA**2
    inner = net(x / total.sqrt(), sigma.log() / 4)
    return x * SIGMA_DATA**2 / total + inner * sigma * SIGMA_DATA / total.sqrt()


def consistent(net: Denoiser, x: torch.Tensor, sigma: torch.Tensor) -> torch.Tensor:
    """A consistency function: x itself at the least level, as CMStochasticIterativeScheduler has it."""
    above, total = sigma - SIGMA_MIN, sigma**2 + SIGMA_DATA**2
    inner = net(x / total.sqrt(), sigma.log() / 4)
    return x * SIGMA_DATA**2 / (above**2 + SIGMA_DATA**2) + inner * above * SIGMA_DATA / total.sqrt()


def heun(net: Denoiser, x: torch.Tensor, high: torch.Tensor, low: torch.Tensor) -> torch.Tensor:
    """One step down a denoiser's path."""
    slope = (x - denoised(net, x, high)) / high
    there = x + slope * (low - high)
    return x + (slope + (there - denoised(net, there, low)) / low) / 2 * (low - high)


def karras() -> torch.Tensor:
    """The grid of noise levels [N], the least first."""
    along = torch.linspace(0, 1, LEVELS)
    return (SIGMA_MIN ** (1 / RHO) + along * (SIGMA_MAX ** (1 / RHO) - SIGMA_MIN ** (1 / RHO))) ** RHO
