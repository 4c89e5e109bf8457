"""What a stage gives to others where one is lost, and takes from them where it is the one in its place."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch.nn.utils import parameters_to_vector, vector_to_parameters

from rekindle.anatomy.adam import MOMENTS
from rekindle.edit.expressions import Leaf
from rekindle.methods.repair import stand_in
from rekindle.recovery.group import received
from rekindle.recovery.moments import moments_of, put_moments
from rekindle.recovery.seat import Answer, Seat, Tensors
from rekindle.store.files import Files
from rekindle.store.legacy import Held
from rekindle.train.held import untouched

HELD, KNOWN, TWIN = "held", "known", "twin "  # beside names of tensors, or before them


class Recovering(Seat):
    """Each of these is said to all stages that are concerned at once; see stages.Stages.mend."""

    def __init__(self, told: Mapping[str, Any], tensors: Tensors, device: torch.device):
        super().__init__(told, tensors, device)
        if HELD in tensors:
            self.shadows.held, self.shadows.known = (tensors[name].numpy() for name in (HELD, KNOWN))

    def left(self) -> dict[str, torch.Tensor]:
        """All that another process needs to be what this one was after the last step."""
        found = dict(self.weights({}, {})[1])
        if self.shadows.held.size:
            found |= {HELD: torch.from_numpy(self.shadows.held), KNOWN: torch.from_numpy(self.shadows.known)}
        twin = self.twin.weights({}, {})[1] if self.twin else {}
        return found | {TWIN + name: x for name, x in twin.items()}

    def lend(self, told: Mapping[str, Any], tensors: Tensors) -> Answer:
        """The next stage holds all of these weights, where this one is among the givers."""
        self.shadows.lend(told["givers"])
        return {}, {}

    def stand_by(self, told: Mapping[str, Any], tensors: Tensors) -> Answer:
        """The stage before this one is here once more, and makes each of its updates."""
        self.twin = Seat(told, tensors, self.device)
        return {}, {}

    def give_back(self, told: Mapping[str, Any], tensors: Tensors) -> Answer:
        """All that the twin knows."""
        assert self.twin is not None
        return self.twin.weights({}, {})

    def share(self, told: Mapping[str, Any], tensors: Tensors) -> Answer:
        """Parameters that others have too, and their moments: `to` gets them from the first of these that lives."""
        own, rank, to = self.stage.own, self.place.rank, told["to"]
        for name, stages in self.stage.shared.items():
            holders = [self.place.rank_of(stage) for stage in stages]
            giver = next((one for one in holders if one not in told["lost"]), None)
            if to not in holders or rank not in (giver, to):
                continue
            p = own[name]
            if rank == giver:
                state = self.optimizer.state.get(p) or untouched(p)
                dist.send(torch.stack([p.detach(), *(state[key] for key in MOMENTS)]), to)
                dist.send(state["step"].to(self.device).reshape(1), to)
            elif giver is not None:
                weight, *moments = received((1 + len(MOMENTS), *p.shape), giver, self.device)
                with torch.no_grad():
                    p.copy_(weight)
                step = received((1,), giver, self.device)[0]
                self.optimizer.state[p] = {"step": step, **dict(zip(MOMENTS, moments, strict=True))}
        return {}, {}

    def copy(self, told: Mapping[str, Any], tensors: Tensors) -> Answer:
        """Weights and moments, exactly, from one replica of a stage to another."""
        own, source = [*self.stage.parameters()], told["source"]
        if self.place.rank == source:
            dist.send(parameters_to_vector(own).detach(), told["to"])
            dist.send(moments_of(self.optimizer, own), told["to"])
            return {}, {}
        n = sum(p.numel() for p in own)
        vector_to_parameters(received((n,), source, self.device), own)
        put_moments(self.optimizer, own, [received((len(own) + len(MOMENTS) * n,), source, self.device)], [1.0])
        self.lr_scale = told["lr_scale"]
        return {}, {}

    def give(self, told: Mapping[str, Any], tensors: Tensors) -> Answer:
        """To the new process of a lost stage: these layers, or their moments, or the shadow of it."""
        if told["what"] == "moments":
            vector = moments_of(self.optimizer, self._layers)
        elif told["what"] == "layers":
            vector = parameters_to_vector(self.stage.of_layers()).detach()
        else:
            assert self.shadows.held.size
            vector = torch.from_numpy(self.shadows.held).to(self.device)
        dist.send(vector, told["to"])
        return {}, {}

    def take(self, told: Mapping[str, Any], tensors: Tensors) -> Answer:
        """What this stage is made of again: a weighted sum of others' layers, its own shadow, or new values."""
        self.lr_scale = told["lr_scale"]
        if told["what"] == "nothing":
            self.stage.redraw(told["seed"])
            return {}, {}
        own = self.stage.of_layers() if told["what"] == "layers" else list(self.stage.parameters())
        size = (sum(p.numel() for p in own),)
        given = [received(size, source, self.device).cpu().numpy() for source, _ in told["sources"]]
        leaves = [Leaf(str(i), Held("", "F32", size, x, x.nbytes)) for i, x in enumerate(given)]
        made = stand_in(leaves, [share for _, share in told["sources"]])  # as `repair` makes it on disk
        with Files() as files:
            values = torch.from_numpy(made.values(0, made.num_rows, files)).flatten()
        vector_to_parameters(values.to(self.device), own)
        if told["what"] == "shadow":
            self.shadows.known = given[0].copy()  # by whoever gave it
        matrices = np.repeat([p.ndim > 1 for p in own], [p.numel() for p in own])  # gains are near 1 in all stages
        return {"distance": round(_apart(*(x[matrices] for x in given)), 4)} if len(given) == 2 else {}, {}

    def take_moments(self, told: Mapping[str, Any], tensors: Tensors) -> Answer:
        """Those of the layers are a weighted sum of others'."""
        size = (len(self._layers) + len(MOMENTS) * sum(p.numel() for p in self._layers),)
        given = [received(size, source, self.device) for source, _ in told["sources"]]
        put_moments(self.optimizer, self._layers, given, [share for _, share in told["sources"]])
        return {}, {}


def _apart(a: np.ndarray, b: np.ndarray) -> float:
    """Their distance, of the mean of their norms: 1.4 of strangers, 0 of what averages have made alike."""
    return float(2 * np.linalg.norm(a - b) / max(np.linalg.norm(a) + np.linalg.norm(b), 1e-30))
