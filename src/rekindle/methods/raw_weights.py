"""Experts whose outputs are multiplied by their probabilities as they are, which do not sum to 1: Switch's.

Among E equal experts the router's softmax gives each about 1/E, so that K of them put out K/E of the feed-forward. The
down-projections times E/K make up for that, as far as the router says nothing: its weights are drawn small, and are
not zero, which would send every token to the first expert. What is left is the router's first opinion.

Departures from the paper, with reasons: Switch's one expert a token (the paper's encoders use expert choice, its
decoders two experts, which no class of transformers computes); no expert is full (capacity drops tokens, each a part of
the feed-forward that is missing).

Source: Komatsuzaki et al. 2023, "Sparse Upcycling", arXiv 2212.05055, section 3; Fedus et al. 2022, "Switch
Transformers", arXiv 2101.03961, section 2.1.

E experts   K experts per token
"""

from __future__ import annotations

from rekindle.anatomy import Family
from rekindle.edit.feedforward import FeedForward

ROUTER_STD = 1e-4  # moves a tiny T5's logits by 6e-4 of the largest, where 0.02 moves them by 0.1
LAYERS = "every:2"
NEVER_FULL = 2**31 - 1  # tokens


def keeps_raw(family: Family) -> bool:
    """Whether all that it can compute is so."""
    return family.fixed.get("norm_topk_prob") is False


def evened(ffn: FeedForward, experts: int, top_k: int) -> FeedForward:
    """An expert whose output, times K/E, is the feed-forward's."""
    return ffn.scaled({"down": experts / top_k})


def promised(experts: int, top_k: int) -> str:
    return (
        f"{experts} experts are weighed by their probabilities, about 1/{experts} each, and down-projections times "
        f"{experts / top_k:g} make up for that but for what the new router says"
    )
