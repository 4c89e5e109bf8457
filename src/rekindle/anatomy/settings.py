"""What a model computes, in the field's words, whatever its library calls it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple


class Role(NamedTuple):
    """What a tensor is: `ffn.up` of layer 3, or `expert.up` of layer 3, expert 5. -1: not in a layer, or no expert.

    `tower`: whose layer it is, in a model of several; methods see one tower, whose roles do not name it.
    """

    part: str
    layer: int = -1
    expert: int = -1
    tower: str = ""

    def __str__(self) -> str:
        where = f" of layer {self.layer}" if self.layer >= 0 else ""
        where += f", expert {self.expert}" if self.expert >= 0 else ""
        return self.part + where + (f" of the {self.tower}" if self.tower else "")


role_of = partial(tuple.__new__, Role)  # role_of((part, layer, expert, tower)): three times faster, for long tables


@dataclass(frozen=True, kw_only=True)
class Settings:
    """Everything of a config that decides the function, family by family spelt in its table.

    A setting with a default here is one that a family has only if its table says so.
    """

    vocab_size: int
    hidden_size: int
    num_layers: int
    num_heads: int
    num_kv_heads: int
    head_dim: int  # of queries and keys
    intermediate_size: int  # of a dense feed-forward; 0 where no layer has one
    hidden_act: str
    norm_eps: float
    tie_word_embeddings: bool
    max_position_embeddings: int
    windows: tuple[int | None, ...]  # attention window of each layer, None: full
    rope_theta: float
    rope_scaling: Mapping[str, Any] | None
    rotary_dim: int  # dims of each head that RoPE turns, in pairs (i, i + rotary_dim / 2); 0: no RoPE
    qkv_bias: bool
    o_bias: bool
    mlp_bias: bool
    qk_norm: str = "none"  # "none", "head" (each head on its own) or "full" (all heads together)
    # "pre" (before each branch), "post" (after it, before the residual is added), "sandwich" (both), or "post_ln"
    # (of the sum with the residual)
    norm_order: str = "pre"
    norm: str = "rms"  # or "layer": the mean is taken off, and there is a bias
    norm_offset: float = 0.0  # a norm's gain is this plus its weight
    # language-model head: "causal", "masked" (it fills gaps), "seq2seq" (it writes a text for another), or "none"
    # (hidden states); "labels" (which of `num_labels` an image has), "taught" (and which one a teacher would give it);
    # "class": whatever its class puts out, which no table knows
    output: str = "causal"
    bidirectional: bool = False  # each token sees those after it
    parallel_residual: bool = False  # attention and feed-forward both read what entered the layer
    learned_positions: bool = False  # a vector for each position is added to the embeddings
    first_position: int = 0  # whose vector the first token gets; those before it are for padding
    relative_buckets: int = 0  # kinds of distances that have a bias each, one for each head, added to the scores
    relative_distance: int = 0  # beyond which all distances are of one kind
    merged_attention: bool = False  # the decoder's attention reads what the encoder has read as well
    cross_size: int = 0  # hidden size of the tower that cross-attention reads; 0: there is none
    cross_projected: bool = False  # what is read is brought to the decoder's hidden size before, once for all layers
    token_types: int = 0  # kinds of tokens that have a vector each, added to the embeddings
    # images, which are read in patches
    num_channels: int = 0  # 0: what is read is a text
    image_size: tuple[int, int] = (0, 0)  # height and width, pixels
    patch_size: tuple[int, int] = (0, 0)
    prefix_tokens: int = 0  # vectors that stand before the patches, such as that of the class
    mask_token: bool = False  # there is one for patches that are hidden
    num_labels: int = 0
    scaled_embeddings: bool = False  # times the root of hidden_size
    gated: bool = True  # down(act(gate x) * up x); False: down(act(up x))
    local_rope_theta: float | None = None  # of the layers with a window, where it is another
    rope_interleaved: bool = False  # RoPE turns the pairs (2i, 2i + 1)
    query_scalar: float | None = None  # scores are divided by its root; None: by that of head_dim
    attn_softcap: float | None = None  # scores are bent below this by tanh
    logit_softcap: float | None = None
    scaled_output: bool = False  # the last hidden state is divided by the root of hidden_size
    clip_qkv: float | None = None
    # latent attention: queries, and keys and values together, come out of small vectors
    kv_rank: int = 0  # 0: none
    q_rank: int | None = None  # None: queries come straight out of the hidden state
    value_dim: int = 0  # of each head
    # experts
    num_experts: int = 0
    top_k: int = 0
    expert_size: int = 0  # intermediate size of one expert
    shared_size: int = 0  # intermediate size of the expert every token uses; 0: there is none
    shared_switch: bool = False  # the shared expert's output is multiplied by a sigmoid gate
    norm_topk_prob: bool = True  # the top-k routing weights are divided by their sum
    routing: str = "tokens"  # who chooses; "experts": each takes its best top_k / num_experts of the tokens
    routing_group: str = "batch"  # out of which tokens experts choose; or "image": its own
    scoring: str = "softmax"  # or "sigmoid": what turns router logits into routing weights
    router_bias: bool = False  # added to the scores for the choice of experts alone
    num_groups: int = 1  # experts stand in groups of equal size;
    top_k_groups: int = 1  # those of the best so many groups can be chosen
    routed_scaling: float = 1.0  # factor on the routing weights
    router_jitter: float = 0.0
    expert_capacity: int = 0  # tokens of a text that an expert takes, the first ones; 0: all
    aux_loss_coef: float | None = None  # of the load-balance loss in training; None: the family has none
    sparse_layers: tuple[int, ...] = ()
    # of a model of several towers, each one's own, by name; all above is then the last one's, which writes
    towers: Mapping[str, Settings] = field(default_factory=dict)

    @property
    def latent_attention(self) -> bool:
        return self.kv_rank > 0

    @property
    def context(self) -> int:
        """Tokens of the longest text, in any tower."""
        own = self.max_position_embeddings - self.first_position
        return min([own, *(tower.context for tower in self.towers.values())])

    def dims(self) -> dict[str, int]:
        """The letters shapes are written in, see `rows`."""
        nope = self.head_dim - self.rotary_dim
        return {
            "V": self.vocab_size,
            "D": self.hidden_size,
            "H": self.num_heads * self.head_dim,
            "K": self.num_kv_heads * self.head_dim,
            "A": self.head_dim,
            "F": self.intermediate_size,
            "M": self.max_position_embeddings,
            "T": self.token_types,
            "N": self.num_heads,
            "P": self.relative_buckets,
            "Y": self.cross_size,
            "E": self.num_experts,
            "X": self.expert_size,
            "S": self.shared_size,
            "Q": self.q_rank or 0,
            "C": self.kv_rank,
            "R": self.kv_rank + self.rotary_dim,
            "B": self.num_heads * (nope + self.value_dim),
            "O": self.num_heads * self.value_dim,
            "c": self.num_channels,
            "h": self.patch_size[0],
            "w": self.patch_size[1],
            "d": 2 * self.hidden_size,
            "L": self.num_labels,
            "1": 1,
        }


ROUTING = ("shared_switch", "scoring", "router_bias")  # of which a parent without experts says nothing

# How a refusal names a setting that a family cannot be set to.
MEANING = {
    "qk_norm": {
        "none": "does not normalise queries and keys",
        "head": "normalises queries and keys head by head",
        "full": "normalises queries and keys over all heads",
    },
    "norm_order": {
        "pre": "normalises before each branch",
        "post": "normalises after each branch",
        "sandwich": "normalises before and after each branch",
        "post_ln": "normalises the sum after each branch",
    },
    "norm": {"rms": "has RMS norms", "layer": "has layer norms with biases"},
    "qkv_bias": {True: "has biases on q, k and v", False: "has no biases on q, k and v"},
    "o_bias": {True: "has a bias on the attention output", False: "has no bias on the attention output"},
    "mlp_bias": {True: "has biases in its feed-forwards", False: "has no biases in its feed-forwards"},
    "gated": {True: "has gated feed-forwards", False: "has feed-forwards without a gate"},
    "parallel_residual": {
        True: "computes attention and feed-forward side by side",
        False: "computes the feed-forward after the attention",
    },
    "learned_positions": {True: "has learned positions", False: "has no learned positions"},
    "first_position": {0: "counts its positions from 0"},
    "bidirectional": {True: "looks both ways", False: "looks back only"},
    "output": {
        "causal": "predicts the next token",
        "masked": "predicts masked tokens",
        "seq2seq": "writes a text for the one it reads",
        "none": "has no language-model head",
        "labels": "gives an image a label",
        "taught": "gives an image a label, and one as its teacher would",
        "class": "puts out what no table knows",
    },
    "norm_offset": {0.0: "multiplies by its norms' weights", 1.0: "multiplies by 1 + its norms' weights"},
    "local_rope_theta": {None: "has one RoPE theta for all layers"},
    "query_scalar": {None: "divides scores by the root of head_dim"},
    "scaled_embeddings": {True: "scales its embeddings", False: "does not scale its embeddings"},
    "scaled_output": {
        True: "scales its last hidden state down before the head",
        False: "does not scale its last hidden state",
    },
    "relative_buckets": {0: "has no relative positions"},
    "cross_size": {0: "has no cross-attention"},
    "kv_rank": {0: "has no latent attention"},
    "routing": {"tokens": "lets tokens choose experts", "experts": "lets experts choose tokens"},
    "scoring": {"softmax": "routes by softmax", "sigmoid": "routes by sigmoid"},
    "shared_switch": {True: "gates its shared expert", False: "does not gate its shared expert"},
    "router_bias": {True: "has a bias for the choice of experts", False: "has no bias for the choice of experts"},
}


def meaning(setting: str, value: Any) -> str:
    """ "normalises queries and keys head by head", or "has head_dim 64"."""
    return MEANING.get(setting, {}).get(value, f"has {setting} {value}")
