"""A stage at work: its optimizer and schedule, and what the supervisor can ask of it.

Each method is a command, gets its header and tensors, and returns those of the answer. All that goes from stage to
stage goes in the group: activations, gradients, and the layers that a lost stage is made of.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist

from rekindle.anatomy.adam import MOMENTS
from rekindle.recovery.dying import Dying
from rekindle.recovery.group import Group, received
from rekindle.recovery.passes import Passes
from rekindle.recovery.shadows import Shadows
from rekindle.recovery.stage import Place, Stage
from rekindle.train.device import peak_memory
from rekindle.train.losses import expert_counts, inputs_and_targets
from rekindle.train.model import cast_experts
from rekindle.train.objectives.next_token import NextToken
from rekindle.train.optimizer import make_optimizer

Tensors = Mapping[str, torch.Tensor]
Answer = tuple[dict[str, Any], Tensors]


class Seat:
    """`told`: its place, the config of a model of these layers, and `how` it is trained. `tensors`: its weights and
    moments by the names of the whole model, as far as they are known.
    """

    def __init__(self, told: Mapping[str, Any], tensors: Tensors, device: torch.device):
        self.how, self.device = SimpleNamespace(**told["how"]), device
        self.place = Place(**told["place"])
        self.stage = Stage(told["config"], self.place, device).train()
        if self.how.bf16 and self.stage.routers:
            cast_experts(self.stage.body)
        if self.how.gradient_checkpointing:
            self.stage.body.gradient_checkpointing_enable({"use_reentrant": False})
        nothing: Any = None  # is read here: rows are sent
        self.objective = NextToken(nothing, self.how.seq_len)
        self.optimizer = make_optimizer(self.stage, self.how.weight_decay, self.how.beta2)
        self._layers = self.stage.of_layers()
        _part(self.optimizer, self._layers)
        self.lr_scale = told["lr_scale"]  # of the layers
        self.shadows = Shadows(self.place, [*self.stage.parameters()], device)
        self.passes: Passes | None = None
        self.alike: Any = None  # the group of this stage in all replicas
        self.twin: Seat | None = None  # the stage before this one, where that is to be redundant
        self.targets = 1  # of a step
        self.stage.fill(tensors)
        for name, p in self.stage.own.items():
            if f"{name}.step" in tensors:
                self.optimizer.state[p] = {key: tensors[f"{name}.{key}"].to(p.device) for key in ("step", *MOMENTS)}

    def enter(self, group: Group) -> None:
        """A group has been formed: a step that was begun in another one is forgotten."""
        self.drop({}, {})
        self.passes = Passes(self.stage, self.how, self._loss, self.device, group.replica)
        self.alike = group.alike

    def leave(self) -> None:
        """Nothing here holds the group any more."""
        self.passes = self.alike = None
        self.shadows.forget()

    def rehearse(self) -> None:
        """A step alone, of zeros: modules are imported by it, and kernels chosen."""
        s, share = self.stage.settings, {"aux_loss": 0.0, "z_loss": 0.0}
        with torch.no_grad():
            for p in self.stage.parameters():
                p.zero_()
        x = torch.zeros((self.how.micro_batch, self.how.seq_len, s.hidden_size), device=self.device)
        self.stage.weighing = share
        self.stage(x[..., 0].long() if self.place.begins else x).sum().backward()
        self.optimizer.step()

    # -- a step ------------------------------------------------------------------------------------------------------

    def step(self, told: Mapping[str, Any], tensors: Tensors) -> Answer:
        """Forward and backward; the gradients are held."""
        stage = self.stage
        torch.manual_seed(told["seed"] + self.place.rank)
        stage.weighing, stage.told = told["weighing"], {}
        stage.share = 1 / (self.how.chunks * self.place.replicas)
        self.targets = told["targets"]
        windows = tensors["windows"].to(self.device) if tensors else None
        assert self.passes is not None
        shading = told["shading"]
        if shading == []:
            self.shadows.begin()
        on_their_way = self.shadows.on_their_way(shading) if shading else nullcontext()
        with on_their_way, self._autocast(), Dying(told.get("die"), stage) as dying:
            losses = self.passes.run(windows)
            if self.alike:
                self._add_replicas()
            self._add_shared()
            if self.twin:
                self._mirror(self.twin)
            dying.at("ready")
        found = {name: float(x) for name, x in stage.told.items()}
        if losses:
            found["loss"] = float(torch.stack(losses).detach().double().sum())
        norms = {"square": _square(self._counted()), "layers": _square(self._layers)}
        return {"losses": found, **norms, "shadow": 0 if shading is None else self.shadows.nbytes()}, {}

    def commit(self, told: Mapping[str, Any], tensors: Tensors) -> Answer:
        """The update with the gradients that are held, times `scale`."""
        dying = Dying(told.get("die"))
        dying.at("commit")
        if told["scale"] < 1:
            for p in self.stage.parameters():
                if p.grad is not None:
                    p.grad.mul_(told["scale"])
        for group in self.optimizer.param_groups:
            group["lr"] = told["lr"] * (self.lr_scale if group["layers"] else 1.0)
        self.optimizer.step()
        if self.twin:
            self.twin.commit({"scale": told["scale"], "lr": told["lr"]}, {})
        if told.get("shadowed"):
            self.shadows.count()
        self.drop({}, {})
        dying.at("committed")
        return {"peak_memory": peak_memory(self.device)}, {}

    def drop(self, told: Mapping[str, Any], tensors: Tensors) -> Answer:
        """No update."""
        for seat in filter(None, (self, self.twin)):
            seat.optimizer.zero_grad(set_to_none=True)
        return {}, {}

    def _loss(self, logits: torch.Tensor, windows: torch.Tensor) -> torch.Tensor:
        """Of a chunk its part of the mean over all targets of the step."""
        batch = {"windows": windows}
        share = self.objective.targets(batch).sum() / self.targets
        return self.objective.losses(SimpleNamespace(logits=logits), batch)["loss"] * share

    def _mirror(self, twin: Seat) -> None:
        """The next stage gets the gradients of this one, and the twin here those of the stage before."""
        own = torch.cat([p.grad.flatten() for p in self.stage.parameters() if p.grad is not None])
        sent = dist.isend(own, self.place.after)
        theirs = [*twin.stage.parameters()]
        sizes = [p.numel() for p in theirs]
        parts = received((sum(sizes),), self.place.before, self.device).split(sizes)
        for p, grad in zip(theirs, parts, strict=True):
            p.grad = grad.view_as(p)
        assert sent is not None
        sent.wait()

    def _add_replicas(self) -> None:
        """All replicas get the sum of their gradients; where none of them has one, none gets one."""
        own = [*self.stage.parameters()]
        there = torch.tensor([float(p.grad is not None) for p in own], device=self.device)
        grads = [torch.zeros_like(p) if p.grad is None else p.grad for p in own]
        total = torch.cat([there, *(grad.flatten() for grad in grads)])
        dist.all_reduce(total, group=self.alike)
        there, *sums = total.split([len(own), *(p.numel() for p in own)])
        for p, some, grad in zip(own, there, sums, strict=True):
            p.grad = grad.view_as(p) if some else None

    def _add_shared(self) -> None:
        """Of parameters that several stages have all get the sum of their gradients, added up in one order."""
        own = self.stage.own
        for name, holders in self.stage.shared.items():
            first, *others = (self.place.rank_of(stage) for stage in holders)
            grad = own[name].grad
            assert grad is not None
            if self.place.rank == first:
                for other in others:
                    grad.add_(received(grad.shape, other, self.device))
                for other in others:
                    dist.send(grad, other)
            else:
                dist.send(grad, first)
                grad.copy_(received(grad.shape, first, self.device))

    def _counted(self) -> list[torch.nn.Parameter]:
        """Its parameters, but for those that a stage before it has as well."""
        at, shared = self.place.stage, self.stage.shared
        return [p for name, p in self.stage.own.items() if shared.get(name, (at,))[0] == at]

    # -- what else is asked ------------------------------------------------------------------------------------------

    @torch.no_grad()
    def evaluate(self, told: Mapping[str, Any], tensors: Tensors) -> Answer:
        """The loss of each held-out row [n], of the last stage; how often each router chose each expert."""
        stage, place, size = self.stage.eval(), self.place, self.how.micro_batch
        each: list[torch.Tensor] = []
        counts: list[torch.Tensor] = []
        for lo in range(0, told["rows"], size):
            rows = min(size, told["rows"] - lo)
            windows = tensors["windows"][lo : lo + rows].to(self.device) if tensors else None
            if windows is not None and place.begins:
                x = inputs_and_targets(windows)[0]
            else:
                x = received((rows, self.how.seq_len, stage.settings.hidden_size), place.before, self.device)
            with self._autocast():
                h, logits = stage.run(x)
            if logits:
                counts.append(torch.stack([expert_counts(layer, stage.top_k) for layer in logits]))
            if windows is not None and place.ends:
                each.append(self.objective.each(SimpleNamespace(logits=h), {"windows": windows})["loss"].float())
            else:
                dist.send(h.float().contiguous(), place.after)
        stage.train()
        found = {"each": torch.cat(each)} if each else {}
        return {}, found | ({"counts": torch.stack(counts).sum(0)} if counts else {})

    def weights(self, told: Mapping[str, Any], tensors: Tensors) -> Answer:
        """With the moments, by the names of the whole model."""
        found = self.stage.weights()
        for name, p in self.stage.own.items():
            found |= {f"{name}.{key}": value for key, value in self.optimizer.state.get(p, {}).items()}
        return {}, found

    def sound(self, told: Mapping[str, Any], tensors: Tensors) -> Answer:
        """Whether all weights are numbers."""
        return {"sound": all(bool(p.isfinite().all()) for p in self.stage.parameters())}, {}

    def _autocast(self) -> Any:
        return torch.autocast(self.device.type, torch.bfloat16) if self.how.bf16 else nullcontext()


def _square(parameters: Sequence[torch.nn.Parameter]) -> float:
    """The sum of the squares of their gradients."""
    return sum(float(p.grad.double().square().sum()) for p in parameters if p.grad is not None)


def _part(optimizer: torch.optim.Optimizer, layers: Sequence[torch.nn.Parameter]) -> None:
    """Its groups once for layers and once for what stands at the ends, since rates may differ."""
    ids, groups = {id(p) for p in layers}, optimizer.param_groups
    halves = [
        {**group, "params": own, "layers": inside}
        for group in groups
        for inside in (True, False)
        if (own := [p for p in group["params"] if (id(p) in ids) == inside])
    ]
    optimizer.param_groups[:] = halves
