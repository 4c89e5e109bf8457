"""What a lost stage is made of again.

checkfree   the average of its neighbours' layers, weighed by the norms of their last gradients to a `power`: the larger
            its gradient, the less has a stage converged, and the more it counts
checkfree+  the same, but at the ends of one alone: stage 0 of 1, 1 of 0, and so the last two, swapped for half
            of the chunks; embeddings and head, which both of them hold, as they are, with their moments
copy        the layers of the stage before it
random      new values
shadow      its own weights, as the next stage has held them since the last time that they were sent there
redundant   itself: the next stage holds its weights and moments too, and makes each update with its gradients
checkpoint  nothing: all stages go back to the state that was saved last, and do its steps again
none        nothing: the run ends

Moments begin anew where the weights are not a checkpoint's; or they are its neighbours', averaged, or a neighbour's.
The learning rate is `lr_scale` times as high from then on, which a second loss does not raise again.

Source: "All is Not Lost: LLM Recovery without Checkpoints", arXiv 2506.15461, section 4 and algorithm 1:
W_i = (w_l W_l + w_r W_r) / (w_l + w_r); CheckFree+ as in the authors' code, where stages 1 and s - 2 are copies too,
which the paper does not say. Departures: the norms are those before clipping, since where both neighbours
are clipped, each by itself as in the authors' code, the average is a plain one. Shadows are ours.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Literal

from rekindle.train.config import Recover, RecoverMoments

EPS = 1e-4  # beside a norm, as in the authors' code


class Uncovered(Exception):
    """A policy has nothing to make these stages of; says why."""


@dataclass(frozen=True)
class Remedy:
    """`what` others give, and each giver's share of the sum."""

    what: Literal["layers", "shadow", "twin", "nothing"]
    sources: tuple[tuple[int, float], ...] = ()
    moments: tuple[tuple[int, float], ...] = ()  # from whom those of the layers come; from nobody: they begin anew


def remedies(
    policy: Recover,
    lost: Sequence[int],
    stages: int,
    norms: Sequence[float],
    power: float,
    moments: RecoverMoments = "reset",
) -> dict[int, Remedy]:
    """Of each lost stage; raises Uncovered. `norms`: of the last gradients of all stages, in their order."""
    gone = set(lost)
    if policy in ("checkpoint", "none"):
        raise Uncovered(f"{policy} makes no stage of others")
    found = {stage: _remedy(policy, stage, gone, stages, norms, power) for stage in sorted(gone)}
    if policy == "redundant" or moments == "reset":
        return found
    return {at: replace(one, moments=_moments(moments, at, gone, stages, one)) for at, one in found.items()}


def _moments(
    how: RecoverMoments, stage: int, lost: set[int], stages: int, remedy: Remedy
) -> tuple[tuple[int, float], ...]:
    """Of those who give the layers; where no layers are given, of the neighbours that live."""
    near = tuple((one, 0.5) for one in (stage - 1, stage + 1) if 0 <= one < stages and one not in lost)
    sources = remedy.sources if remedy.what == "layers" else near
    return sources if how == "average" else sources[:1]


def _remedy(policy: Recover, stage: int, lost: set[int], stages: int, norms: Sequence[float], power: float) -> Remedy:
    if policy == "random":
        return Remedy("nothing")
    if policy in ("shadow", "redundant"):
        what = "shadow" if policy == "shadow" else "twin"
        return Remedy(what, ((_living((stage + 1) % stages, lost, f"holds the {what} of", stage), 1.0),))
    if policy == "checkfree+" and stage in _twins(stages):
        return Remedy("layers", ((_living(_twins(stages)[stage], lost, "takes turns with", stage), 1.0),))
    if stage in (0, stages - 1):
        raise Uncovered(f"stage {stage} stands at an end, and has more than layers")
    before = _living(stage - 1, lost, "is to stand in for", stage)
    if policy == "copy":
        return Remedy("layers", ((before, 1.0),))
    after = _living(stage + 1, lost, "is to stand in for", stage)
    left, right = ((norms[other] + EPS) ** power for other in (before, after))
    return Remedy("layers", ((before, left / (left + right)), (after, right / (left + right))))


def _twins(stages: int) -> dict[int, int]:
    """Stages that stand in each other's place in half of the passes."""
    return {0: 1, 1: 0, stages - 2: stages - 1, stages - 1: stages - 2}


def _living(other: int, lost: set[int], does: str, stage: int) -> int:
    if other in lost:
        raise Uncovered(f"stage {other}, which {does} stage {stage}, is lost as well")
    return other
