"""What is asked: a checkpoint, what was sunk into it, what may still be spent, and the mixture it could become."""

from __future__ import annotations

from dataclasses import dataclass

from rekindle.errors import RekindleError, together

# Share of a dense model's parameters in feed-forward layers: 15M with 8 experts are 92.2M (arXiv 2502.03009, table 3)
FEED_FORWARD = 0.735
LEAST, MOST = 1000, 1e18  # parameters or tokens
FLOPS = 6  # per active parameter and token, Kaplan et al. 2020


@dataclass(frozen=True)
class Question:
    """N1 params, D1 sunk tokens, D2 tokens of the second stage; E experts, K per token.

    D1 includes the anneal of the recycled checkpoint. N1 counts all parameters of the dense model (the paper does not
    say which), N2 those active in the mixture, and training costs 6 FLOPs per active parameter and token.
    """

    params: float
    sunk: float
    tokens: float
    experts: int = 8
    top_k: int = 2
    feed_forward: float = FEED_FORWARD

    def __post_init__(self) -> None:
        problems = [
            RekindleError(f"{name} is {value:g}.", hint=f"--{name} {example}")
            for name, value, example in (
                ("params", self.params, "1B"),
                ("sunk", self.sunk, "100B"),
                ("tokens", self.tokens, "50B"),
            )
            if not 0 < value < float("inf")
        ]
        for name, value in (("params", self.params), ("sunk", self.sunk), ("tokens", self.tokens)):
            if MOST < value < float("inf"):
                problems.append(RekindleError(f"{name} is {value:g}: more than there is.", hint=f"--{name} 1e12"))
            if 0 < value < LEAST:
                what = f"{name} is {value:g}: counts are whole numbers, not billions."
                problems.append(RekindleError(what, hint=f"--{name} {value:g}B"))
        if not 1 <= self.top_k <= self.experts:
            what = f"{self.top_k} of {self.experts} experts cannot be chosen for a token."
            problems.append(RekindleError(what, hint="--experts 8 --top-k 2"))
        if problems:
            raise together(problems)

    @property
    def active(self) -> float:
        """N2, parameters of the mixture that a token meets."""
        return self.params * (1 + (self.top_k - 1) * self.feed_forward)

    @property
    def total(self) -> float:
        """Parameters of the mixture, all experts."""
        return self.params * (1 + (self.experts - 1) * self.feed_forward)

    @property
    def ratio(self) -> float:
        """N2 / N1: what a token of the mixture costs in tokens of the dense model."""
        return self.active / self.params

    @property
    def flops(self) -> float:
        """Of the second stage of the mixture."""
        return FLOPS * self.active * self.tokens
