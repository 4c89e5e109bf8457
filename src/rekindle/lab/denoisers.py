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
from pathlib import Path
from typing import Any, Literal, NamedTuple

import torch
from torch import nn

from rekindle.lab.digits import digits
from rekindle.search.sampling import quiet_diffusers, sample

Kind = Literal["diffusion", "distillation", "training"]
SIGMA_MIN, SIGMA_MAX, SIGMA_DATA, LEVELS, RHO = 0.02, 20.0, 0.75, 18, 7.0
TARGET_DECAY = 0.95
ONLINE = (0.99, 0.995, 0.998, 0.999, 0.9995)  # averages that are kept while it trains, by what stays at each step
AVERAGES = "averages"
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


class Recipe(NamedTuple):
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


class Saved(NamedTuple):
    step: int
    tensors: Tensors
    online: list[Tensors]  # averages, for each of ONLINE


def train(recipe: Recipe, seed: int, teacher: Tensors | None = None) -> Iterator[Saved]:
    """Train, and yield what each step that is saved has; `teacher`: what is distilled."""
    torch.manual_seed(seed)
    net, data = Denoiser(), digits().train
    target, *online = (copy.deepcopy(net).requires_grad_(False) for _ in range(1 + len(ONLINE)))
    loss_of = _loss(recipe.kind, net, target, teacher)
    optimizer = torch.optim.AdamW(net.parameters(), lr=recipe.lr, weight_decay=0.0)
    for step in range(1, recipe.steps + 1):
        loss = loss_of(data[torch.randint(0, len(data), (recipe.batch,))])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        with torch.no_grad():
            for decay, average in zip((TARGET_DECAY, *ONLINE), (target, *online), strict=True):
                torch._foreach_lerp_(_all(average), _all(net), 1 - decay)
        if step % recipe.every == 0:
            yield Saved(step, _copied(net), [_copied(average) for average in online])


def _all(net: Denoiser) -> list[torch.Tensor]:
    return list(net.parameters())


def _copied(net: Denoiser) -> Tensors:
    return {name: x.clone() for name, x in net.state_dict().items()}


def save(folder: Path, kind: Kind, run: Iterator[Saved]) -> Path:
    """A folder of checkpoints, as a run of any trainer's leaves them; averages in a folder of each."""
    from safetensors.torch import save_file

    for saved in run:
        place = folder / f"checkpoint-{saved.step}"
        place.mkdir(parents=True)
        save_file(saved.tensors, place / "model.safetensors")
        (place / "config.json").write_text(json.dumps({"model_type": "digits-denoiser", "kind": kind}) + "\n")
        online = {f"{decay}/{name}": x for decay, own in zip(ONLINE, saved.online) for name, x in own.items()}
        (place / AVERAGES).mkdir()
        save_file(online, place / AVERAGES / "online.safetensors")
    return folder


def saved_at(run: Path, step: int) -> Tensors:
    """What a run that was saved had at a step."""
    from safetensors.torch import load_file

    return load_file(run / f"checkpoint-{step}" / "model.safetensors")


def online_averages(checkpoint: Path) -> list[Tensors]:
    """Those that were kept until a checkpoint, in the order of ONLINE."""
    from safetensors.torch import load_file

    held = load_file(checkpoint / AVERAGES / "online.safetensors")
    of = {decay: f"{decay}/" for decay in ONLINE}
    return [{name.removeprefix(own): x for name, x in held.items() if name.startswith(own)} for own in of.values()]


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
