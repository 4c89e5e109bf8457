"""What a model computes, in the field's words, whatever its library calls it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple


class Role(NamedTuple):
    """What a tensor is: `ffn.up` of layer 3, or `expert.up` of layer 3, expert 5. -1: not in a layer, or no expert."""

    part: str
    layer: int = -1
    expert: int = -1

    def __str__(self) -> str:
        where = f" of layer {self.layer}" if self.layer >= 0 else ""
        return self.part + where + (f", expert {self.expert}" if self.expert >= 0 else "")


role_of = partial(tuple.__new__, Role)  # role_of((part, layer, expert)): three times faster, for long tables


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything of a config that decides the function, family by family spelt in its table."""

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int
    intermediate_size: int  # of a dense feed-forward; 0 where no layer has one
    hidden_act: str
    rms_norm_eps: float
    tie_word_embeddings: bool
    max_position_embeddings: int
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None
    windows: tuple[int | None, ...]  # attention window of each layer, None: full
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: str  # "none", "head" (each head on its own) or "full" (all heads together)
    norm_order: str  # "pre" (before each branch) or "post" (after it, before the residual is added)
    clip_qkv: float | None = None
    num_experts: int = 0
    top_k: int = 0
    expert_size: int = 0  # intermediate size of one expert
    shared_size: int = 0  # intermediate size of the expert every token uses; 0: there is none
    norm_topk_prob: bool = True  # the top-k routing weights are divided by their sum
    router_jitter: float = 0.0
    sparse_layers: tuple[int, ...] = ()

    def dims(self) -> dict[str, int]:
        """The letters shapes are written in: V D H=heads*dim K=kv heads*dim A=head dim F E X=expert S=shared."""
        return {
            "V": self.vocab_size,
            "D": self.hidden_size,
            "H": self.num_heads * self.head_dim,
            "K": self.num_kv_heads * self.head_dim,
            "A": self.head_dim,
            "F": self.intermediate_size,
            "E": self.num_experts,
            "X": self.expert_size,
            "S": self.shared_size,
            "1": 1,
        }


# How a refusal names a setting that a family cannot be set to.
MEANING = {
    "qk_norm": {
        "none": "does not normalise queries and keys",
        "head": "normalises queries and keys head by head",
        "full": "normalises queries and keys over all heads",
    },
    "norm_order": {"pre": "normalises before each branch", "post": "normalises after each branch"},
    "qkv_bias": {True: "has biases on q, k and v", False: "has no biases on q, k and v"},
    "o_bias": {True: "has a bias on the attention output", False: "has no bias on the attention output"},
    "mlp_bias": {True: "has biases in its feed-forwards", False: "has no biases in its feed-forwards"},
}


def meaning(setting: str, value: Any) -> str:
    """ "normalises queries and keys head by head", or "has head_dim 64"."""
    return MEANING.get(setting, {}).get(value, f"has {setting} {value}")
