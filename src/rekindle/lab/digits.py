"""scikit-learn's digits as a world of images: 1,797 of 8 x 8, split once, and a net to compare them by.

The split is stratified and the same for every seed of a study: 1,000 to train on, 400 that a search may compare with,
397 that only the report sees. Data: UCI's optical recognition of handwritten digits, as scikit-learn ships them.
"""

from __future__ import annotations

from functools import cache
from typing import Any, NamedTuple

import torch
from torch import nn

from rekindle.errors import RekindleError

TRAIN, SEARCH = 1000, 400
SEED = 0  # of the split, and of the net that is looked through


class Digits(NamedTuple):
    """Images [n, 64] from -1 to 1, and labels [n]."""

    train: torch.Tensor
    search: torch.Tensor
    report: torch.Tensor
    labels: torch.Tensor  # of those to train on


@cache
def digits() -> Digits:
    try:
        from sklearn.datasets import load_digits
        from sklearn.model_selection import train_test_split
    except ImportError:
        what = "The digits are scikit-learn's, which is not installed."
        raise RekindleError(what, hint="pip install 'rekindle[images]'") from None
    held: Any = load_digits()
    x, y = (held.data / 8 - 1).astype("float32"), held.target
    how = {"random_state": SEED}
    train, rest, labels, others = train_test_split(x, y, train_size=TRAIN, stratify=y, **how)
    search, report = train_test_split(rest, train_size=SEARCH, stratify=others, **how)
    return Digits(*(torch.from_numpy(part) for part in (train, search, report, labels)))


@cache
def classifier() -> nn.Sequential:
    """64-64-32-10, trained on the training images alone with a committed seed: about 97 % right on the others."""
    data = digits()
    with torch.random.fork_rng(), torch.enable_grad():
        torch.manual_seed(SEED)
        net = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10))
        optimizer = torch.optim.AdamW(net.parameters(), lr=3e-3, weight_decay=1e-2)
        for _ in range(600):
            rows = torch.randint(0, len(data.train), (128,))
            noisy = data.train[rows] + 0.1 * torch.randn(128, 64)
            loss = nn.functional.cross_entropy(net(noisy), data.labels[rows])
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
    return net.requires_grad_(False).eval()


def features(images: torch.Tensor) -> torch.Tensor:
    """What the classifier makes of images [n, 64] before its last layer: [n, 32], after the ReLU."""
    return classifier()[:4](images.flatten(1))
