"""A candidate as a model sees it: tensors by name that are views of one vector."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray

from rekindle.edit.expressions import Expr
from rekindle.search.series import STATISTICS, Place, Series
from rekindle.store.dtypes import COMPUTED, TORCH
from rekindle.store.files import Files


class Candidate:
    """One vector [P] that is written into again and again, and a model's tensors as views of it.

    `kept`: those that are no part of it, the same in every candidate.
    """

    def __init__(self, places: Mapping[str, Place], kept: Mapping[str, torch.Tensor], theta: NDArray):
        self.theta = theta
        self._views = {name: _view(theta, place) for name, place in places.items()}
        self._places, self._kept = places, kept
        self._gradient: NDArray | None = None

    @property
    def tensors(self) -> dict[str, torch.Tensor]:
        return {**self._views, **self._others()}

    def _others(self) -> dict[str, torch.Tensor]:
        """What is kept; of statistics, which a model in training mode changes, a copy each time."""
        return {name: x.clone() if name.endswith(STATISTICS) else x for name, x in self._kept.items()}

    def leaves(self) -> tuple[dict[str, torch.Tensor], NDArray]:
        """The tensors as leaves of a graph, and the vector that their gradients are added up in, 0 at first."""
        if self._gradient is None:
            self._gradient = np.zeros_like(self.theta)
        self._gradient.fill(0)
        found = {}
        for name, place in self._places.items():
            found[name] = self._views[name].detach().requires_grad_()
            found[name].grad = _view(self._gradient, place)  # backward adds to what is there
        return {**found, **self._others()}, self._gradient


def kept_of(series: Series) -> dict[str, torch.Tensor]:
    """What all candidates have of the last checkpoint."""
    with Files() as files:
        return {name: as_tensor(series.last[name], files) for name in series.kept}


def as_tensor(x: Expr, files: Files) -> torch.Tensor:
    """A stored tensor as it is; floats as float32."""
    if x.dtype in COMPUTED:
        return torch.from_numpy(x.values(0, x.num_rows, files).astype(np.float32).reshape(x.shape))
    raw = x.raw(0, x.num_rows, files)
    return torch.from_numpy(np.array(raw)).view(getattr(torch, TORCH[x.dtype])).reshape(x.shape)


def _view(vector: NDArray, place: Place) -> torch.Tensor:
    return torch.from_numpy(vector[place.at : place.at + place.size]).view(place.shape)
