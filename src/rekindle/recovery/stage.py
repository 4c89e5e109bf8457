"""A stage: some layers of a decoder as a module, which gets token ids or hidden states and gives these or logits.

It is transformers' own class for a model of these layers, without what stands at the ends that it does not have. So
masks, positions and routers are the class's.

Where half of the chunks go with ends swapped (stages 1, 0, 2, ..., s - 3, s - 1, s - 2), both stages at an end have
what stands there, and `first` and `last` say of the pass that comes whether it is its chunk's.

b rows   T tokens   D hidden size   V vocabulary
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from rekindle.anatomy import Family, family_of
from rekindle.anatomy.settings import Settings
from rekindle.apply.load import fit_experts, quietly
from rekindle.apply.probe import one_tower
from rekindle.train.losses import experts_per_token, forward, router_logits, router_losses

LAYER = re.compile(r"(?<=\.)\d+(?=\.)")  # of the numbers in a name the first


@dataclass(frozen=True)
class Place:
    """`stage` of `stages`, whose `layers` begin with layer `first` of the model, in `replica` of `replicas` pipelines.

    Ranks count through the stages of the first replica, then through those of the next.
    """

    stage: int
    stages: int
    first: int
    layers: int
    routers: int = 0  # layers with a router in the whole model
    swapped: bool = False  # half of the chunks, at the ends
    replica: int = 0
    replicas: int = 1

    def rank_of(self, stage: int) -> int:
        """Of a stage of this replica; after the last one comes the first."""
        return self.replica * self.stages + stage % self.stages

    @property
    def rank(self) -> int:
        return self.rank_of(self.stage)

    @property
    def before(self) -> int:
        """The rank of the stage before."""
        return self.rank_of(self.stage - 1)

    @property
    def after(self) -> int:
        return self.rank_of(self.stage + 1)

    @property
    def begins(self) -> bool:
        return self.stage == 0

    @property
    def ends(self) -> bool:
        return self.stage == self.stages - 1

    @property
    def embeds(self) -> bool:
        """Whether it has the embeddings."""
        return self.stage in self.firsts

    @property
    def heads(self) -> bool:
        """Whether it has the last norm and the head."""
        return self.stage in self.lasts

    @property
    def firsts(self) -> tuple[int, ...]:
        return (0, 1) if self.swapped else (0,)

    @property
    def lasts(self) -> tuple[int, ...]:
        return (self.stages - 2, self.stages - 1) if self.swapped else (self.stages - 1,)

    @property
    def order(self) -> list[int]:
        """The stages as a chunk goes through them whose ends are swapped."""
        return [1, 0, *range(2, self.stages - 2), self.stages - 1, self.stages - 2]

    def told(self) -> dict[str, int]:
        return asdict(self)

    def named(self) -> dict[str, int]:
        """What rows about it say."""
        return {"stage": self.stage} | ({"replica": self.replica} if self.replicas > 1 else {})

    def may_need(self, name: str) -> bool:
        """Of a tensor of the whole model: one of these layers, or of none."""
        layer = LAYER.search(name)
        return layer is None or self.first <= int(layer[0]) < self.first + self.layers


class Stage(torch.nn.Module):
    """Its weights are empty until they are filled. `config`: of a model that has these layers alone."""

    def __init__(self, config: Mapping[str, Any], place: Place, device: torch.device):
        super().__init__()
        family = family_of(config)
        settings = family.settings(config)
        model, self._config = _empty(config), config
        _trim(model, family, settings, place)
        self.place, self.settings = place, settings
        self.body = model if place.heads else model.base_model
        self.first, self.last = place.begins, place.ends  # of the forward pass that comes
        self.routers, self.top_k = len(settings.sparse_layers), experts_per_token(model)
        self.weighing: dict[str, float] = {}  # what the routers' losses of one forward pass count
        self.share = 1.0  # of a step's rows that are in one forward pass
        self.told: dict[str, torch.Tensor] = {}  # those losses, summed over passes
        _materialise(self.body, device)
        prefix = "" if place.heads else f"{model.base_model_prefix}."
        local = {name: prefix + name for name, _ in self.body.named_parameters()}
        local |= {name: prefix + name for name in self.body.state_dict() if name not in local}
        self.names = {name: LAYER.sub(lambda n: str(int(n[0]) + place.first), long, 1) for name, long in local.items()}
        embed = dict(family.table(settings, fused=True))[family.embed][0]
        if settings.tie_word_embeddings and place.heads:
            matrix = self.body.get_output_embeddings().weight
            self.names[next(name for name, p in self.body.named_parameters() if p is matrix)] = embed
        self.shared = {name: held for name in sorted(self.own) if len(held := self._holders(name, embed)) > 1}
        if place.swapped:
            _open(model, family, settings, self)

    @property
    def own(self) -> dict[str, torch.nn.Parameter]:
        """Its parameters by the names of the whole model."""
        return {self.names[name]: p for name, p in self.body.named_parameters()}

    def _holders(self, name: str, embed: str) -> tuple[int, ...]:
        """All stages that have a parameter, of which this is one."""
        place = self.place
        if LAYER.search(name):
            return (place.stage,)
        if name == embed and self.settings.tie_word_embeddings:
            return (*place.firsts, *place.lasts)
        return place.firsts if place.embeds else place.lasts

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """[b, T] of the first stage, else [b, T, D]; to [b, T, D], or [b, T, V] of the last one."""
        h, logits = self.run(x)
        if not logits:
            return h
        losses, own = router_losses(logits, self.top_k), len(logits) / self.place.routers * self.share
        total: Any = 0
        for name, loss in losses.items():
            self.told[name] = self.told.get(name, 0) + loss.detach() * own
            total = total + loss * own * self.weighing[name]
        return _Attached.apply(h, total)

    def run(self, x: torch.Tensor) -> tuple[torch.Tensor, tuple[torch.Tensor, ...]]:
        """What it gives, and the logits of its routers."""
        inputs = one_tower(x) if self.first else {"inputs_embeds": x, "use_cache": False}
        out = forward(self.body if self.last else self.body.base_model, inputs, routers=self.routers > 0)
        h = out.logits if self.last else out.last_hidden_state
        return h, router_logits(out) if self.routers else ()

    @torch.no_grad()
    def fill(self, tensors: Mapping[str, torch.Tensor]) -> None:
        """With those of its tensors that are given, by the names of the whole model."""
        own = self.body.state_dict()
        for name, long in self.names.items():
            if long in tensors:
                own[name].copy_(tensors[long])

    def weights(self) -> dict[str, torch.Tensor]:
        """Parameters and saved buffers, by the names of the whole model."""
        own = self.body.state_dict()
        return {long: own[name] for name, long in self.names.items()}

    def redraw(self, seed: int) -> None:
        """New values, as those of a model that nobody has trained."""
        torch.manual_seed(seed)
        model = _model(self._config)
        new = (model if self.place.heads else model.base_model).state_dict()
        with torch.no_grad():
            for name, tensor in self.body.named_parameters():
                tensor.copy_(new[name])

    def of_layers(self) -> list[torch.nn.Parameter]:
        """The parameters of its layers, in an order that all stages have."""
        own = [(name.removeprefix(f"{self._prefix}."), p) for name, p in self.body.named_parameters()]
        return [p for name, p in sorted(own, key=lambda x: x[0]) if LAYER.search(f".{name}")]

    @property
    def _prefix(self) -> str:
        return self.body.base_model_prefix if self.place.heads else ""


class _Attached(torch.autograd.Function):
    """Hidden states as they are; backward, a loss beside them gets its gradient, 1, when they get theirs."""

    @staticmethod
    def forward(ctx: Any, h: torch.Tensor, loss: torch.Tensor) -> torch.Tensor:
        return h.view_as(h)

    @staticmethod
    def backward(ctx: Any, *grads: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return grads[0], torch.ones((), device=grads[0].device)


def _empty(config: Mapping[str, Any]) -> Any:
    """transformers' model, without memory for its parameters."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        model = _model(config)
    fit_experts(model)
    return model


def _model(config: Mapping[str, Any]) -> Any:
    """transformers' model in float32, which weights are trained in."""
    from transformers import AutoConfig, AutoModelForCausalLM

    with quietly():
        return AutoModelForCausalLM.from_config(AutoConfig.for_model(**config), dtype=torch.float32)


def _trim(model: Any, family: Family, settings: Settings, place: Place) -> None:
    """Without the ends that a stage does not have."""
    tops = _tops(family, settings)
    if not place.embeds:
        model.set_input_embeddings(None)
        if "positions" in tops:
            model.set_submodule(tops["positions"], _Nothing())
        for name, module in model.base_model.named_children():
            if isinstance(module, torch.nn.Dropout):
                model.base_model.set_submodule(name, torch.nn.Identity())
    if not place.heads:
        model.set_submodule(tops["norm"], torch.nn.Identity())


def _tops(family: Family, settings: Settings) -> dict[str, str]:
    """The modules outside the layers, by what they are."""
    table = dict(family.table(settings, fused=True)).items()
    return {
        role.part.split(".")[0]: family.name_in_memory(row[0]).rpartition(".")[0]
        for role, row in table
        if role.layer < 0
    }


def _open(model: Any, family: Family, settings: Settings, stage: Stage) -> None:
    """Ends that a stage has let hidden states through as they are in passes that are not the first, or the last."""
    tops = _tops(family, settings)
    if stage.place.heads:
        model.get_submodule(tops["norm"]).register_forward_hook(lambda _, x, out: out if stage.last else x[0])
    if stage.place.embeds:
        for module in model.base_model.children():
            if isinstance(module, torch.nn.Dropout):
                module.register_forward_hook(lambda _, x, out: out if stage.first else x[0])
        if "positions" in tops:
            nothing = model.get_submodule(tops["positions"])
            nothing.register_forward_hook(lambda _, x, out: out if stage.first else torch.zeros_like(out))


class _Nothing(torch.nn.Module):
    """Adds nothing, where positions would be added."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return torch.zeros((), device=x.device)


def _materialise(body: torch.nn.Module, device: torch.device) -> None:
    for module in body.modules():
        for name, p in module.named_parameters(recurse=False):
            setattr(module, name, torch.nn.Parameter(torch.empty_like(p, device=device)))
    body.to(device)
