"""What training costs, counted one way in every study: attention in, input embedding out.

Comparisons at equal FLOPs stand on this. Counting the embedding, which is looked up and multiplied by nothing, would
make whatever has it once beside more of all the rest, as a mixture has, look cheaper than it is.
"""

from __future__ import annotations

from pathlib import Path


def training_flops(folder: Path, tokens: float, length: int) -> float:
    """Of `tokens` tokens in sequences of `length`, forward and backward, of the checkpoint in `folder`."""
    from rekindle import api
    from rekindle.anatomy import flops

    checkpoint = api.open(folder).checkpoint
    return flops.training_flops(checkpoint.family, checkpoint.settings, tokens, length)


def times(one: Path, other: Path, length: int) -> float:
    """How many times the FLOPs per token of `other` does `one` cost?"""
    return training_flops(one, 1, length) / training_flops(other, 1, length)
