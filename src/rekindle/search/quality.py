"""How near a model's samples come to real data, as an objective: by the Frechet distance in features, or by KID.

What is searched in the features of one net may get worse in all that this net does not look at (Goodhart). So the
Frechet distance in plain pixels is searched too, as a geometric mean of both; and the report has the distances that
nobody searched: sliced Wasserstein, KID, and how far the samples are from the nearest training image.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal, Protocol

import torch

from rekindle.search.distances import Gaussian, frechet, gaussian, kernel, nearest, sliced_wasserstein
from rekindle.search.draw import Draw

Features = Callable[[torch.Tensor], torch.Tensor]  # [n, ...] -> [n, d]
Metric = Literal["fd", "kid"]
SEARCHED = "searched"


class Sampler(Protocol):
    """Samples [n, ...] of a model with these tensors: for a smaller n the first ones, for one seed the same noise."""

    def __call__(self, tensors: Mapping[str, torch.Tensor], n: int, seed: int) -> torch.Tensor: ...


@dataclass(frozen=True)
class Real:
    """Real data, seen through features and as it is."""

    plain: torch.Tensor
    seen: torch.Tensor
    gaussian: Gaussian
    plain_gaussian: Gaussian


def real(data: torch.Tensor, features: Features) -> Real:
    with torch.no_grad():
        seen = features(data).flatten(1)
    return Real(data.flatten(1), seen, gaussian(seen), gaussian(data))


@dataclass(frozen=True)
class Quality:
    """The distance of `n` samples to real data: `searched` while coefficients are chosen, `held_out` in the report."""

    sampler: Sampler
    features: Features
    searched: Real
    held_out: Real
    train: torch.Tensor | None = None  # what it was trained on, to tell what was learnt by heart
    n: int = 2000
    metric: Metric = "fd"
    plain: float = 1.0  # fd: the share of the distance in plain values in what is searched; 0: none

    def __call__(self, tensors: Mapping[str, torch.Tensor], draw: Draw) -> dict[str, torch.Tensor]:
        x = self.sampler(tensors, max(2, round(self.n * draw.share)), draw.seed)
        seen = self.features(x).flatten(1)
        if draw.split != "report":
            first = self._distance(seen, self.searched)
            if not self.plain or self.metric == "kid":  # which may be below 0
                return {self.metric: first}
            logs = first.log() + self.plain * frechet(x, self.searched.plain_gaussian).log()
            return {SEARCHED: (logs / (1 + self.plain)).exp()}
        return self._told(x, seen)

    def floor(self) -> dict[str, float]:
        """What is reported, of `n` real data, or all, instead of samples: those of the search against those that are
        held out.

        To the nearest it is the other way round: how far data are that nobody learnt.
        """
        found = self._apart(self.searched.plain[: self.n], self.searched.seen[: self.n])
        if self.train is not None:
            found["nearest"] = nearest(self.held_out.plain[: self.n], self.train)
        return {name: float(value) for name, value in found.items()}

    def _told(self, x: torch.Tensor, seen: torch.Tensor) -> dict[str, torch.Tensor]:
        found = self._apart(x, seen)
        return found if self.train is None else found | {"nearest": nearest(x, self.train)}

    def _apart(self, x: torch.Tensor, seen: torch.Tensor) -> dict[str, torch.Tensor]:
        """The metric that is searched first."""
        found = {
            "fd": frechet(seen, self.held_out.gaussian),
            "kid": kernel(seen, self.held_out.seen),
            "pixel fd": frechet(x, self.held_out.plain_gaussian),
            "sliced W": sliced_wasserstein(x, self.held_out.plain),
        }
        return {self.metric: found[self.metric], **found}

    def _distance(self, seen: torch.Tensor, real: Real) -> torch.Tensor:
        return frechet(seen, real.gaussian) if self.metric == "fd" else kernel(seen, real.seen)
