"""Adam's moments of layers on their way to a stage that is made of others.

What Adam has after t updates is short of a mean by 1 - beta^t (Kingma and Ba 2015, "Adam", arXiv 1412.6980, section 3).
Where several give theirs it is the means that are averaged, and the sum stands for as many updates as the oldest has
seen.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import reduce

import torch

from rekindle.anatomy.adam import MOMENTS
from rekindle.train.held import untouched

Parameters = Sequence[torch.nn.Parameter]


def moments_of(optimizer: torch.optim.Optimizer, parameters: Parameters) -> torch.Tensor:
    """Updates of each of k parameters, then their first moments, then the second, end to end [k + 2 n]."""
    states = [optimizer.state.get(p) or untouched(p) for p in parameters]
    steps = [state["step"].reshape(1).to(p.device) for state, p in zip(states, parameters, strict=True)]
    return torch.cat([*steps, *(state[key].flatten() for key in MOMENTS for state in states)])


def put_moments(
    optimizer: torch.optim.Optimizer, parameters: Parameters, given: Sequence[torch.Tensor], shares: Sequence[float]
) -> None:
    """The average of what `moments_of` gave, by their shares; parameters that nobody has updated stay as they are."""
    betas, sizes = optimizer.param_groups[0]["betas"], [p.numel() for p in parameters]
    parts = [x.split([len(sizes), *sizes, *sizes]) for x in given]
    for i, p in enumerate(parameters):
        known = [(float(x[0][i]), share, x) for x, share in zip(parts, shares, strict=True) if x[0][i] and share]
        if not known:
            continue
        step, all_shares = max(t for t, _, _ in known), sum(share for _, share, _ in known)
        state = {"step": torch.tensor(step)}
        for key, beta, at in zip(MOMENTS, betas, (1 + i, 1 + len(sizes) + i), strict=True):
            factors = [share / all_shares * (1 - beta**step) / (1 - beta**t) for t, share, _ in known]
            terms = (x[at] * factor for factor, (_, _, x) in zip(factors, known, strict=True))
            state[key] = reduce(torch.add, terms).view_as(p)  # not `sum`, which would make 0.0 of one's -0.0
        optimizer.state[p] = state
