"""Depth growth: n layers become N, each a copy of one of the parent's. Four orders say which copy stands where.

interpose   each layer is followed by its own copies: 1 1 2 2 3 3. Layer j of the child copies layer
            ceil((j + 1) n / N) - 1 of the parent, so that copies are spread evenly for any N.
stack       the whole stack again, from layer 0: 1 2 3 1 2 3; where N is no multiple of n it stops on the way.
solar       the stack without its last m layers, then the stack without its first m: N = 2 (n - m).
llama-pro   as interpose, but each copy adds nothing to the residual stream yet.

Preserves the parent's function exactly with llama-pro alone, mixtures and parallel branches included: both branches
of a copy end in a zero. The zero is the last projection (o of the attention, down of the feed-forward, of every expert
and of the shared one, with their biases) where a branch is added as it is. Where a norm follows the branch the zero is
that norm's gain: a zero projection would be as exact, but what reaches the norm is then so small that the norm's
derivative, 1 / sqrt(eps), makes the first step of any optimizer explode. Where the sum is normalised (post-LN) no copy
can be silent, and llama-pro is refused. The other orders are lossy: copies act on what their originals have made.

Departures from the papers: any N of n layers or more (LLaMA-Pro: one copy after each n / (N - n) layers, which the
formula gives where it divides; Orthogonal Growth: N = 2n); `--layers` and `--factor` choose SOLAR's m.

Adam's moments: copies keep their layer's. They stand one behind the other and are not twins, whose outputs are
averaged and who share a gradient between them: the gradient of each is of the parent's size. What llama-pro inserts
starts empty: its zeros as new tensors do, the rest because no gradient reaches it before they have moved.

Source: "Orthogonal Growth", arXiv 2510.08008 (interpose); Du et al. 2024, "Stacking Your Transformers", arXiv
2405.15319 (stack); Wu et al. 2024, "LLaMA Pro", arXiv 2401.02415, section 3; Kim et al. 2023, "SOLAR 10.7B", arXiv
2312.15166, section 2.

n layers of the parent   N of the child   m left out of each copy of the stack at the seam
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Literal, get_args

from rekindle.anatomy.settings import Settings, role_of
from rekindle.config import option
from rekindle.edit import Checkpoint, exact, lossy
from rekindle.edit.arithmetic import Fill, Fresh, computable
from rekindle.edit.expressions import Expr
from rekindle.edit.layers import empty_of
from rekindle.edit.promise import Promise
from rekindle.errors import RekindleError, together

SOLAR_DROP = 8  # m, of SOLAR's 32 layers
MOST_LAYERS = 10_000

Order = Literal["interpose", "stack", "llama-pro", "solar"]
LAST = ("attn.o", "cross.o", "ffn.down", "expert.down", "shared.down")  # what a branch ends in,
AFTER = ("attn.post_norm", "cross.post_norm", "ffn.post_norm")  # and what may follow it

JUMPS = {
    "interpose": "each copy acts on what its original has made of the stream",
    "stack": "layer 0 acts again, on what the last layer has made of the stream",
    "solar": "the second copy of the stack begins in its middle, on what the first copy has made of the stream",
}


@dataclass(frozen=True, kw_only=True)
class Config:
    factor: float | None = option(None, help="times as many layers: 2, or 1.5 where that is a whole number")
    layers: int | None = option(None, help="number of layers of the child (N), instead of a factor")
    order: Order = option("interpose", help="which copy stands where; llama-pro alone keeps the function")
    drop: int | None = option(
        None, help="solar: layers left out of each copy at the seam (m), 8 where nothing else says how deep"
    )


def grow_depth(parent: Checkpoint, config: Config) -> Checkpoint:
    source = _sources(parent.settings.num_layers, _depth(parent, config), config.order)
    child = _empty(parent, source, config.order)
    inserted = _inserted(source) if config.order == "llama-pro" else ()
    for layer, old in enumerate(source):
        for (part, expert), x in parent.by_layer[old].items():
            silent = layer in inserted
            child.tensors[role_of((part, layer, expert, ""))] = _silent(part, x, parent.settings) if silent else x
    if inserted:
        child.noting(f"layers {', '.join(map(str, inserted))} are new: LLaMA-Pro trains these alone")
    return child.with_rest_of(parent).promising(_promise(parent, child, config.order))


def _sources(n: int, depth: int, order: str) -> tuple[int, ...]:
    """The parent's layer that each of the child's layers copies."""
    if order == "stack":
        return tuple(layer % n for layer in range(depth))
    if order == "solar":
        return (*range(depth // 2), *range(n - depth // 2, n))
    return tuple(-(-(layer + 1) * n // depth) - 1 for layer in range(depth))


def _inserted(source: Sequence[int]) -> tuple[int, ...]:
    return tuple(layer for layer in range(1, len(source)) if source[layer] == source[layer - 1])


def _empty(parent: Checkpoint, source: Sequence[int], order: str) -> Checkpoint:
    """The child of these layers, to be filled: whatever differs from layer to layer goes with its layer."""
    try:
        return empty_of(parent, source)
    except RekindleError as refused:
        what = f"The config of {parent.family.name} cannot say which layers are which after --order {order}."
        others = [other for other in get_args(Order) if _can(parent, len(source), other)]
        hint = f"--order {' or '.join(others)}" if others else None
        raise RekindleError(what, why=str(refused), hint=hint) from None


def _can(parent: Checkpoint, depth: int, order: Order) -> bool:
    """Whether this order makes a child of this depth."""
    with suppress(RekindleError):
        depth = _depth(parent, Config(layers=depth, order=order))
        empty_of(parent, _sources(parent.settings.num_layers, depth, order))
        return True
    return False


def _silent(part: str, x: Expr, s: Settings) -> Expr:
    """A tensor of an inserted copy: zero where one of its branches ends."""
    if part.removesuffix(".bias") not in (LAST if s.norm_order == "pre" else AFTER):
        return Fresh(x)
    computable(x)
    return Fill(x.dtype, x.shape, 0.0 - s.norm_offset if part in AFTER else 0.0)  # a gain is offset + weight


def _promise(parent: Checkpoint, child: Checkpoint, order: str) -> Promise:
    if order == "llama-pro":
        return exact("inserted layers add nothing yet")
    if child.settings.num_layers == parent.settings.num_layers:
        return exact("the child has the parent's layers")
    return lossy(JUMPS[order])


def _depth(parent: Checkpoint, config: Config) -> int:
    """N; raises RekindleError with every reason why there is none, and what would do."""
    n, solar = parent.settings.num_layers, config.order == "solar"
    problems: list[RekindleError] = []
    if config.order == "llama-pro" and parent.settings.norm_order == "post_ln":
        what = f"No inserted layer of a {parent.family.name} leaves the function as it is."
        why = "it normalises the sum of a branch and its input, so a layer acts even where its branches are zero"
        problems.append(RekindleError(what, why=why, hint="--order interpose or stack, which are lossy"))
    if config.order == "llama-pro" and (known := next((role for role in parent.opaque if role.layer >= 0), None)):
        what = f"This {parent.family.name}'s layers have tensors that no table names, such as {known}."
        hint = "--order interpose or stack"
        problems.append(RekindleError(what, why="whether a copy of them is silent cannot be told", hint=hint))
    if config.drop is not None and not solar:
        hint = "--order solar, or no --drop"
        problems.append(RekindleError(f"--drop is for --order solar, not for {config.order}.", hint=hint))
    ways = {"--factor": config.factor, "--layers": config.layers, "--drop": config.drop if solar else None}
    given = [flag for flag, value in ways.items() if value is not None]
    if len(given) > 1:
        problems.append(RekindleError(f"{' and '.join(given)} both say how deep the child is.", hint="one of them"))
    elif not given and not solar:
        problems.append(RekindleError("Nothing says how deep the child is.", hint=f"--factor 2 or --layers {2 * n}"))
    elif wrong := _wrong(_asked(n, config), n, config):
        problems.append(wrong)
    if problems:
        raise together(problems)
    return round(_asked(n, config))


def _asked(n: int, config: Config) -> float:
    if config.factor is not None:
        return n * config.factor
    if config.layers is not None:
        return config.layers
    return 2 * (n - (SOLAR_DROP if config.drop is None else config.drop))


def _wrong(depth: float, n: int, config: Config) -> RekindleError | None:
    """Why this order makes no child of such a depth out of n layers."""
    said = config.factor is not None or config.layers is not None
    if not math.isfinite(depth):
        return RekindleError(f"factor is {config.factor}, not a number of times.", hint="--factor 2")
    if abs(depth - round(depth)) > 1e-6:
        near = sorted({max(n, math.floor(depth)), max(n, math.ceil(depth))})
        what = f"{n} layers times {config.factor:g} are {depth:g}, not a whole number."
        return RekindleError(what, hint="--layers " + " or ".join(map(str, near)))
    if depth > MOST_LAYERS:
        what = f"A child of {depth:g} layers is deeper than any model."
        return RekindleError(what, hint=f"--layers {2 * n}, and {MOST_LAYERS} at most")
    if depth < n - 0.5:
        left = "" if said else f", {SOLAR_DROP if config.drop is None else config.drop} left out at the seam,"
        what = f"A child of {depth:g} layers{left} would be shallower than its parent of {n}."
        return RekindleError(what, hint=f"--layers {2 * n}" if said else f"--drop 0 to {n // 2}")
    if config.order == "solar" and (round(depth) % 2 or depth > 2 * n + 0.5):
        what = f"solar makes an even number of layers, {2 * n} at most out of {n}; not {depth:g}."
        return RekindleError(what, hint=f"--layers {n + n % 2} to {2 * n}, even" if said else f"--drop 0 to {n // 2}")
    return None
