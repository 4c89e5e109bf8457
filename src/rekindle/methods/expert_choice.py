"""Experts that choose their tokens, as in the paper's encoders: V-MoE's.

Each of E experts takes the best C n / E of n tokens, and a token's output is the mean of its experts', weighed by their
probabilities. Among equal experts that mean is the feed-forward's output, for a token that some expert takes; the class
has the others go to their own best expert, so all are exact. C is `--top-k`: as many experts as a token has on average.

A decoder cannot have it: which tokens an expert takes depends on those that follow.

Source: Komatsuzaki et al. 2023, "Sparse Upcycling", arXiv 2212.05055, section 3 and appendix B; Zhou et al. 2022,
"Mixture-of-Experts with Expert Choice Routing", arXiv 2202.09368.
"""

from __future__ import annotations

from collections.abc import Iterator

from rekindle.anatomy import Family
from rekindle.errors import RekindleError

LAYERS = "every:2"


def can_choose(family: Family) -> bool:
    """Whether the experts of this family can choose."""
    return "routing" in family.keys


def unable(routing: str, group: str, init: str, family: Family) -> Iterator[RekindleError]:
    """A sentence for each option that does not go with the others."""
    if routing == "experts" and not can_choose(family):
        why = "no class of transformers lets them, and which tokens they take would depend on those that follow"
        yield RekindleError(f"The experts of a {family.name} do not choose.", why=why, hint="--routing tokens")
    if routing == "experts" and init == "virtual-group":
        what = "A token that an expert chose has one shard of its virtual group, and not the others."
        yield RekindleError(what, hint="--routing tokens, or another --init")
    if routing == "tokens" and group != "image":
        yield RekindleError("--group is for experts that choose.", hint="--routing experts")
