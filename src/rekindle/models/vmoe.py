"""V-MoE: a vision transformer some of whose feed-forwards are experts.

With `routing="experts"` an expert chooses tokens, each the same number of them: of the n tokens of a group its best
C n / E, C being `num_experts_per_tok`. So the load is even without any loss for that. A token's output is the mean of
its experts', weighed by their probabilities. One that no expert chose goes to its own best expert: as all tokens
have one, a mixture of equal experts is the feed-forward that they were copied from, whatever the router says. With
`routing="tokens"` each token chooses its best K experts.

Departures from the papers, with reasons:
- leftover tokens are not passed over: some 3 % of a batch's, 8 % of an image's, would lose their feed-forward;
- a group is an image unless `routing_group="batch"`: out of a whole batch's, what an image is taken for depends on the
  others beside it;
- no noise on the router's logits.

Source: Riquelme et al. 2021, "Scaling Vision with Sparse Mixture of Experts", arXiv 2106.05974; Zhou et al. 2022,
"Mixture-of-Experts with Expert Choice Routing", arXiv 2202.09368; Komatsuzaki et al. 2023, arXiv 2212.05055, section 3.

G groups   n tokens of a group   N all tokens   D hidden size   E experts   X units of an expert   c tokens of an expert
"""

from dataclasses import dataclass
from typing import Any

import torch
from huggingface_hub.dataclasses import strict
from torch import nn
from torch.nn import functional as F
from transformers import ViTConfig
from transformers.activations import ACT2FN
from transformers.core_model_loading import MergeModulelist, WeightConverter, WeightRenaming
from transformers.modeling_outputs import ImageClassifierOutput
from transformers.models.vit.modeling_vit import ViTForImageClassification, ViTModel, ViTPreTrainedModel
from transformers.utils.generic import can_return_tuple
from transformers.utils.output_capturing import OutputRecorder

ON_DISK: list[WeightConverter | WeightRenaming] = [
    WeightConverter(
        f".experts.*.{projection}.{kind}", f".experts.{projection}{end}", operations=[MergeModulelist(dim=0)]
    )
    for projection in ("up_proj", "down_proj")
    for kind, end in (("weight", ""), ("bias", "_bias"))
]  # the experts of a layer are tensors of their own in files, and one in memory


@strict
class VMoEConfig(ViTConfig):
    """A ViT's, and which layers have experts (`moe_layers`: every second where none is named), and how many.

    Raises ValueError for what makes no mixture.
    """

    model_type = "vmoe"
    num_experts: int = 8
    num_experts_per_tok: int = 2
    moe_layers: list[int] | None = None
    routing: str = "experts"
    routing_group: str = "image"
    output_router_logits: bool = False
    router_aux_loss_coef: float = 0.01

    def __post_init__(self, **kwargs: Any) -> None:
        if self.moe_layers is None:
            self.moe_layers = list(range(1, self.num_hidden_layers, 2))
        super().__post_init__(**kwargs)
        for name, known in (("routing", ("experts", "tokens")), ("routing_group", ("image", "batch"))):
            if getattr(self, name) not in known:
                raise ValueError(f"{name} is {getattr(self, name)!r}, not {' or '.join(known)}")
        if not 1 <= self.num_experts_per_tok <= self.num_experts:
            raise ValueError(f"num_experts_per_tok is {self.num_experts_per_tok}, of {self.num_experts} experts")


class VMoEExperts(nn.Module):
    """The feed-forwards of all experts, in one tensor each."""

    def __init__(self, config: VMoEConfig):
        super().__init__()
        self.num_experts, d, x = config.num_experts, config.hidden_size, config.intermediate_size
        self.up_proj = nn.Parameter(torch.empty(self.num_experts, x, d))
        self.up_proj_bias = nn.Parameter(torch.zeros(self.num_experts, x))
        self.down_proj = nn.Parameter(torch.empty(self.num_experts, d, x))
        self.down_proj_bias = nn.Parameter(torch.zeros(self.num_experts, d))
        self.activation_fn = ACT2FN[config.hidden_act]

    def forward(self, x: torch.Tensor, expert: int | None = None) -> torch.Tensor:
        """Of as many tokens for each expert [E, c, D]; or of those of one `expert` [N, D]."""
        if expert is not None:
            hidden = self.activation_fn(F.linear(x, self.up_proj[expert], self.up_proj_bias[expert]))
            return F.linear(hidden, self.down_proj[expert], self.down_proj_bias[expert])
        hidden = self.activation_fn(torch.baddbmm(self.up_proj_bias[:, None], x, self.up_proj.mT))
        return torch.baddbmm(self.down_proj_bias[:, None], hidden, self.down_proj.mT)


class VMoERouter(nn.Linear):
    """Logits of each token for each expert [N, E]."""


class VMoEFeedForward(nn.Module):
    """A router and its experts, in the place of a ViT's feed-forward."""

    def __init__(self, config: VMoEConfig):
        super().__init__()
        self.config = config
        self.router = VMoERouter(config.hidden_size, config.num_experts, bias=False)
        self.experts = VMoEExperts(config)

    def forward(self, x_BTD: torch.Tensor) -> torch.Tensor:
        x_ND = x_BTD.flatten(0, 1)
        p_NE = self.router(x_ND).float().softmax(-1)
        if self.config.routing == "tokens":
            return self._of_chosen_experts(x_ND, p_NE).view_as(x_BTD)
        groups = len(x_BTD) if self.config.routing_group == "image" else 1
        return self._of_choosing_experts(x_ND, p_NE, groups).view_as(x_BTD)

    def _of_choosing_experts(self, x_ND: torch.Tensor, p_NE: torch.Tensor, groups: int) -> torch.Tensor:
        n, experts = len(x_ND) // groups, p_NE.shape[1]
        count = min(n, max(1, round(self.config.num_experts_per_tok * n / experts)))
        weight_GEc, index_GEc = p_NE.view(groups, n, experts).mT.topk(count, dim=-1)
        first_G11 = torch.arange(groups, device=x_ND.device)[:, None, None] * n
        index_Ec = (index_GEc + first_G11).transpose(0, 1).flatten(1)
        weight_Ec = weight_GEc.transpose(0, 1).flatten(1)
        y_ED = self.experts(x_ND[index_Ec]) * weight_Ec[..., None].to(x_ND.dtype)
        index = index_Ec.flatten()
        out_ND = torch.zeros_like(x_ND, dtype=y_ED.dtype).index_add(0, index, y_ED.flatten(0, 1))
        total_N = p_NE.new_zeros(len(x_ND)).index_add(0, index, weight_Ec.flatten())
        left = total_N == 0
        out_ND = out_ND / total_N.masked_fill(left, 1.0)[:, None].to(out_ND.dtype)
        return self._with_leftovers(x_ND, out_ND, left.nonzero().flatten(), p_NE)

    def _with_leftovers(
        self, x_ND: torch.Tensor, out_ND: torch.Tensor, left: torch.Tensor, p_NE: torch.Tensor
    ) -> torch.Tensor:
        """Tokens that no expert chose, each by its own best one."""
        best = p_NE[left].argmax(-1)
        for expert in best.unique().tolist():
            rows = left[best == expert]
            out_ND = out_ND.index_copy(0, rows, self.experts(x_ND[rows], expert).to(out_ND.dtype))
        return out_ND

    def _of_chosen_experts(self, x_ND: torch.Tensor, p_NE: torch.Tensor) -> torch.Tensor:
        weight_NK, index_NK = p_NE.topk(self.config.num_experts_per_tok, dim=-1)
        weight_NK = weight_NK / weight_NK.sum(-1, keepdim=True)
        out_ND = torch.zeros_like(x_ND)
        for expert in index_NK.unique().tolist():
            rows, place = (index_NK == expert).nonzero(as_tuple=True)
            y = self.experts(x_ND[rows], expert) * weight_NK[rows, place, None].to(x_ND.dtype)
            out_ND = out_ND.index_add(0, rows, y.to(out_ND.dtype))
        return out_ND


@dataclass
class VMoEClassifierOutput(ImageClassifierOutput):
    router_logits: tuple[torch.Tensor, ...] | None = None  # of each layer with experts [N, E]


class VMoEPreTrainedModel(ViTPreTrainedModel):
    config: VMoEConfig  # pyrefly: ignore[bad-override-mutable-attribute]
    config_class = VMoEConfig
    _can_record_outputs = {
        **(ViTPreTrainedModel._can_record_outputs or {}), "router_logits": OutputRecorder(VMoERouter),
    }  # fmt: skip

    @torch.no_grad()
    def _init_weights(self, module: nn.Module) -> None:
        super()._init_weights(module)
        if isinstance(module, VMoEExperts):
            for weight in (module.up_proj, module.down_proj):
                nn.init.normal_(weight, std=self.config.initializer_range)
            for bias in (module.up_proj_bias, module.down_proj_bias):
                nn.init.zeros_(bias)


class VMoEModel(VMoEPreTrainedModel, ViTModel):  # pyrefly: ignore[inconsistent-inheritance]
    """A ViTModel with experts."""

    def __init__(self, config: VMoEConfig, add_pooling_layer: bool = True):
        super().__init__(config, add_pooling_layer=add_pooling_layer)
        for layer in config.moe_layers or ():
            block: Any = self.layers[layer]
            block.mlp = VMoEFeedForward(config)
        self.post_init()


class VMoEForImageClassification(VMoEPreTrainedModel, ViTForImageClassification):
    """A ViTForImageClassification with experts; `output_router_logits` gives those of each layer that has some."""

    def __init__(self, config: VMoEConfig):
        super().__init__(config)
        self.vit = VMoEModel(config, add_pooling_layer=False)
        self.post_init()

    @can_return_tuple
    def forward(
        self, pixel_values: torch.Tensor | None = None, labels: torch.Tensor | None = None, **kwargs: Any
    ) -> VMoEClassifierOutput:
        """`pixel_values` [B, channels, height, width], `labels` [B]."""
        out = self.vit(pixel_values, **kwargs)
        logits = self.classifier(out.last_hidden_state[:, 0])
        loss = None if labels is None else self.loss_function(labels, logits, self.config)
        same = {name: out.get(name) for name in ("hidden_states", "attentions", "router_logits")}
        return VMoEClassifierOutput(loss=loss, logits=logits, **same)
