"""A run of a tiny network, its checkpoints on disk, and objectives over them: seconds to make, the same every time."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from rekindle.search.ledger import Ledger
from rekindle.search.objective import objective_of
from rekindle.search.series import Place
from rekindle.search.store import Store

EVERY, STEPS = 20, 240


def network() -> torch.nn.Sequential:
    """With statistics that are no average, and a tensor that never moves."""
    net = torch.nn.Sequential(torch.nn.Linear(6, 16), torch.nn.BatchNorm1d(16), torch.nn.ReLU(), torch.nn.Linear(16, 3))
    net.register_buffer("scale", torch.full((3,), 1.5))
    return net


def data() -> tuple[torch.Tensor, torch.Tensor]:
    """3,000 points of three classes that overlap."""
    g = torch.Generator().manual_seed(1)
    x = torch.randn(3000, 6, generator=g)
    noise = 0.8 * torch.randn(3000, 3, generator=g)
    return x, (x @ torch.randn(6, 3, generator=g) + noise).argmax(1)


def run(folder: Path, dtype: torch.dtype = torch.float32) -> Path:
    """checkpoint-20 to checkpoint-240, at a constant learning rate."""
    torch.manual_seed(0)
    net, (x, y) = network(), data()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.3)
    for step in range(1, STEPS + 1):
        rows = torch.randint(0, 1000, (16,))
        loss = torch.nn.functional.cross_entropy(net(x[rows]), y[rows])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % EVERY == 0:
            save(folder / f"checkpoint-{step}", net.state_dict(), dtype)
    return folder


def save(folder: Path, tensors: dict[str, torch.Tensor], dtype: torch.dtype | None = torch.float32) -> Path:
    folder.mkdir(parents=True)
    cast = {name: x.to(dtype) if dtype and x.is_floating_point() else x for name, x in tensors.items()}
    save_file({name: x.contiguous() for name, x in cast.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(json.dumps({"model_type": "toy"}))
    return folder


class Loss:
    """Cross entropy on a third of the data for each split, and the error beside it."""

    def __init__(self) -> None:
        self.net, (self.x, self.y) = network().eval(), data()

    def __call__(self, tensors, draw):
        first = {"search": 0, "rerank": 1000, "report": 2000}[draw.split]
        rows = first + torch.randperm(1000, generator=torch.Generator().manual_seed(draw.seed))[: int(500 * draw.share)]
        out = torch.func.functional_call(self.net, dict(tensors), self.x[rows])
        loss = torch.nn.functional.cross_entropy(out, self.y[rows])
        return {"loss": loss, "error": (out.argmax(1) != self.y[rows]).float().mean()}


def ledger(store: Store, function, **how) -> Ledger:
    """Scores of a function of one tensor `w` [P]."""
    return Ledger(objective_of(function), store, {"w": Place(0, (store.size,))}, {}, **how)


def store_of(thetas: np.ndarray, held: str = "float32", parts=(), averages: int = 0) -> Store:
    """A store of these vectors [K, P]; parts of them have coefficients of their own, the first are averages."""
    from rekindle.store.window import loops

    last = np.ascontiguousarray(thetas[-1], np.float32)
    rows = (thetas[:-1].astype(np.float32) - last).astype(np.float32)
    rows = rows if held == "float32" else np.stack([loops().round(row, "BF16") for row in rows])
    return Store(rows, last, held, parts, averages)
