"""One Adam step of a parent and of its child, from recycled moments: how far apart are the functions afterwards?

As `rekindle train --optimizer-state` does it, but for what would blur the answer: the language-model loss alone, no
clipping, and Adam's eps near 0, which is not scaled with the gradients.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import torch

from rekindle import api
from rekindle.apply.load import load_model
from rekindle.train.held import whole_of
from rekindle.train.losses import cross_entropy
from rekindle.train.model import save_model
from rekindle.train.optimizer import load_optimizer, make_optimizer, save_optimizer

LR, EPS = 1e-4, 1e-30
SCHEDULE = {"name": "constant", "peak": LR, "total": 10, "warmup": 0, "decay": 0, "start": 10, "rewarm": 0}


class Apart(NamedTuple):
    """Largest differences of logits, of the parent's largest logit."""

    before: float  # child and parent
    after: float  # both after one step of their own
    step: float  # the parent before and after its step


def one_step_apart(folder: Path, verb: str, work: Path, **options: Any) -> Apart:
    """Train the model in `folder` a little, apply a method to it and its moments, take one step with both."""
    parent = trained(folder, work / "parent")
    model = api.apply(verb, parent, **options)
    child = model.save(work / "child", optimizer_state=str(parent / "optimizer"))
    (parent_before, parent_after), (child_before, child_after) = stepped(parent), stepped(child)
    largest = parent_before.abs().max()

    def apart(x: torch.Tensor, y: torch.Tensor) -> float:
        return float((x - y).abs().max() / largest)

    return Apart(
        apart(child_before, parent_before), apart(child_after, parent_after), apart(parent_after, parent_before)
    )


def trained(folder: Path, out: Path, steps: int = 4) -> Path:
    """The model in `folder` after a few steps, with the moments that they left, in `out`."""
    model = load_model(folder)
    optimizer = make_optimizer(model, weight_decay=0.1, beta2=0.95)
    for seed in range(steps):
        step(model, optimizer, seed)
    out.mkdir(parents=True)
    save_model(model, out)
    config = json.loads((out / "config.json").read_text())
    save_optimizer(whole_of(model, optimizer), config, out / "optimizer", SCHEDULE)
    return out


def stepped(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits of a checkpoint, before and after one step from the moments in it, on tokens it did not train on."""
    model = load_model(folder)
    optimizer = make_optimizer(model, weight_decay=0.1, beta2=0.95)
    load_optimizer(model, optimizer, json.loads((folder / "config.json").read_text()), folder / "optimizer")
    before = logits(model)
    step(model, optimizer, seed=100)
    return before, logits(model)


def step(model: Any, optimizer: torch.optim.AdamW, seed: int) -> None:
    for group in optimizer.param_groups:
        group |= {"lr": LR, "eps": EPS}
    tokens = torch.randint(0, model.config.vocab_size, (4, 33), generator=torch.Generator().manual_seed(seed))
    cross_entropy(model(input_ids=tokens[:, :-1], use_cache=False).logits, tokens[:, 1:]).backward()
    optimizer.step()
    optimizer.zero_grad()


@torch.no_grad()
def logits(model: Any) -> torch.Tensor:
    tokens = torch.randint(0, model.config.vocab_size, (4, 32), generator=torch.Generator().manual_seed(200))
    return model(input_ids=tokens, use_cache=False).logits
