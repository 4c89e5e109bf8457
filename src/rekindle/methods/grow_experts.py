"""Expert growth: a mixture of E experts becomes one of m E, each expert copied; noise lets the copies part ways.

`--top-k scale`, the width growth of Orthogonal Growth: each token visits m K experts. Preserves the parent's function
exactly at noise 0. The m copies of an expert have equal scores, so the best m K are whole sets of copies, and the
weights of a set sum to its expert's: a softmax over m times as many experts gives each copy 1/m, divided by their sum
or not; sigmoid scores divided by their sum do so too, and where they are not, `routed_scaling` is divided by m. Where
experts stand in groups (DeepSeek-V3) the copies are new groups, equal in score to theirs, and m times as many are open.

`--top-k keep`, Expert Upcycling: each token still visits K experts. Lossy: copies take one another's places among
the K. `--copies utility` copies those experts more often that the loss leans on: the next copy goes to the expert
with the largest utility per copy, 3 times at most to the same.

Departures from the papers, with reasons:
- noise is on the copies alone, and on their router rows only if asked for: there it sends tokens elsewhere, which
  costs more function than on the experts;
- with `keep` nothing is added to the copies' router bias (Expert Upcycling: uniform within 1e-3), which most families
  do not have: the noise on the experts tells copies apart instead;
- with `keep` copies stay in the group of their expert, so that the groups are kept as K is;
- an expert's utility is shared among its copies before the next one is given; the code released with the paper gives
  the first expert all of its three;
- with `scale` the load-balance coefficient is divided by m: transformers' loss counts assignments, m times as many;
- Adam's moments follow as those of exact copies do (those of noisy ones start empty); Expert Upcycling resets them all,
  which here is to leave `--optimizer-state` out.

Sources: "Orthogonal Growth", arXiv 2510.08008; Dwivedi et al. 2026, "Expert Upcycling", arXiv 2604.19835, section 3.

E experts   K experts per token   m factor
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush
from pathlib import Path
from typing import Any, Literal, NamedTuple

from rekindle.anatomy.engines import Engine, where_not
from rekindle.config import option
from rekindle.edit import Checkpoint, Normal, Promise, exact, lossy
from rekindle.edit.arithmetic import Sum, Twin
from rekindle.edit.checkpoint import Block
from rekindle.edit.joining import joined
from rekindle.edit.measure import Statistics
from rekindle.errors import RekindleError, counted, together
from rekindle.methods.scores import Scores, read_scores
from rekindle.methods.serving import check_engine

MOST_EXPERTS = 100_000  # of a layer
MOST_COPIES = 3  # of one expert, besides itself, where utility decides


@dataclass(frozen=True, kw_only=True)
class Config:
    factor: int = option(2, help="how many times as many experts (m)")
    top_k: Literal["scale", "keep"] = option("scale", help="experts per token: m times as many, or as many as now")
    noise: float = option(0.01, help="noise on the copies, in standard deviations of each tensor (0: exact copies)")
    noise_router: bool = option(False, help="noise on the copies' router rows too")
    copies: Literal["uniform", "utility"] = option("uniform", help="as many of each expert, or more of useful ones")
    scores: str | None = option(None, help="FILE that `rekindle utility` wrote, for utility copies")
    engine: Engine = option("transformers", help="what will serve it: refused where it is another function there")
    seed: int = option(0, help="seed of the noise")


class Place(NamedTuple):
    """Where an expert of the child comes from."""

    old: int  # expert of the parent
    copy: int  # 0: the expert itself, 1: its first copy, ...
    of: int  # how many there are of it, itself included


def grow_experts(parent: Checkpoint, config: Config) -> Checkpoint:
    scores = _check(parent, config)
    s = parent.settings
    child = parent.as_family(parent.family.model_type, **_settings(parent, config))
    check_engine(child, config.engine)
    groups = s.num_groups if config.top_k == "keep" else 1
    counts = [config.factor] * s.num_experts
    for layer in s.sparse_layers:
        if scores:
            counts = _share_out(scores.layers[layer], config.factor, groups)
        # the number of experts is in the key, so that a second growth draws other noise than the first
        key = f"{layer}/of {s.num_experts}"
        _grow(parent[layer], child[layer], _places(counts, groups), config, key)
    child.noting(*_notes(parent, child, config, scores))
    return child.with_rest_of(parent).promising(_promise(child, config))


def _grow(parent: Block, child: Block, places: Sequence[Place], config: Config, key: str) -> None:
    """Fill the experts and the router of one layer."""
    router, rows = parent["router"], []
    for new, place in enumerate(places):
        name = f"{key}/{place.old}/copy {place.copy}"
        noise = config.noise if place.copy else 0.0
        child.expert[new] = parent.expert[place.old].noisy(noise, config.seed, name).twin(place.of)
        row = router.rows(place.old, place.old + 1)
        if noise and config.noise_router:
            std = Statistics(router)["std"] * noise
            row = Sum(row, Normal(row.dtype, row.shape, std, config.seed, f"{name}/router"))
        rows.append(Twin(row, place.of))
    child["router"] = joined(rows)
    if "router.bias" in parent:
        bias = parent["router.bias"]
        child["router.bias"] = joined([bias.rows(place.old, place.old + 1) for place in places])


def _settings(parent: Checkpoint, config: Config) -> dict[str, Any]:
    """What changes in the config."""
    s, m = parent.settings, config.factor
    changed: dict[str, Any] = {"num_experts": m * s.num_experts}
    if config.top_k == "keep":
        return changed
    changed["top_k"] = m * s.top_k
    if s.num_groups > 1:  # one group of all experts stays one
        changed |= {"num_groups": m * s.num_groups, "top_k_groups": m * s.top_k_groups}
    if s.scoring == "sigmoid" and not s.norm_topk_prob:
        changed["routed_scaling"] = s.routed_scaling / m
    if s.aux_loss_coef is not None:
        changed["aux_loss_coef"] = s.aux_loss_coef / m
    return changed


def _places(counts: Sequence[int], groups: int) -> list[Place]:
    """Group by group: its experts, then the first copy of each that has one, then the second, ..."""
    size = len(counts) // groups
    return [
        Place(old, copy, counts[old])
        for first in range(0, len(counts), size)
        for copy in range(max(counts))
        for old in range(first, first + size)
        if copy < counts[old]
    ]


def _share_out(utility: Sequence[float], factor: int, groups: int) -> list[int]:
    """How many there will be of each expert: in each group `factor` times its size, 1 + MOST_COPIES of one at most."""
    counts, size = [1] * len(utility), len(utility) // groups
    for first in range(0, len(counts), size):
        heap = [(-utility[expert], expert) for expert in range(first, first + size)]
        heapify(heap)
        for _ in range((factor - 1) * size):
            _, expert = heappop(heap)
            counts[expert] += 1
            if counts[expert] <= MOST_COPIES:
                heappush(heap, (-utility[expert] / counts[expert], expert))
    return counts


# -- refusals, notes, promise ------------------------------------------------------------------------------------


def _check(parent: Checkpoint, config: Config) -> Scores | None:
    """The scores that decide, None where none do; raises RekindleError with every problem."""
    if not parent.settings.sparse_layers:
        what = f"This {parent.family.name} is dense: it has no experts to copy."
        able = "rekindle upcycle SRC OUT --experts 8 makes some"
        raise RekindleError(what, hint=able if parent.family.twins else "a mixture, such as mixtral or deepseek_v3")
    problems = []
    if config.factor < 1:
        problems.append(RekindleError(f"{config.factor} times as many experts are none.", hint="--factor 2"))
    if config.factor * parent.settings.num_experts > MOST_EXPERTS:
        what = f"{config.factor} times {parent.settings.num_experts} experts are more than any model has."
        problems.append(RekindleError(what, hint=f"--factor 2, and {MOST_EXPERTS} experts at most"))
    if config.top_k == "scale" and config.factor > 1 and "top_k" not in parent.family.keys:
        name, now = parent.family.name, parent.settings.top_k
        what = f"{name} has top_k {now} and no other: --top-k scale would have it {config.factor * now}."
        problems.append(RekindleError(what, hint="--top-k keep"))
    if not 0 <= config.noise < math.inf:
        problems.append(
            RekindleError(f"noise is {config.noise}, not a number of standard deviations.", hint="--noise 0.01")
        )
    scores = None
    if config.copies == "utility":
        problems += _unfit_for_utility(config)
    elif config.scores is not None:
        problems.append(RekindleError("Uniform copies ask for no scores.", hint="--copies utility, or no --scores"))
    if config.copies == "utility" and config.scores is not None:
        try:
            scores = read_scores(Path(config.scores), parent)
        except RekindleError as error:
            problems.append(error)
    if problems:
        raise together(problems)
    return scores


def _unfit_for_utility(config: Config) -> list[RekindleError]:
    problems = []
    if config.top_k == "scale":
        why = "the best experts are whole sets of copies only where every expert has as many"
        problems.append(RekindleError("Utility copies cannot have top-k scale.", why=why, hint="--top-k keep"))
    if config.factor > 1 + MOST_COPIES:
        what = f"{MOST_COPIES} copies of an expert at most do not make {config.factor} times as many."
        problems.append(RekindleError(what, hint=f"--factor 2 to {1 + MOST_COPIES}, or --copies uniform"))
    if config.scores is None:
        hint = "rekindle utility SRC --out scores.json, then --scores scores.json"
        problems.append(RekindleError("Utility copies need the experts' scores.", hint=hint))
    return problems


def _notes(parent: Checkpoint, child: Checkpoint, config: Config, scores: Scores | None) -> list[str]:
    old, new, notes = parent.settings, child.settings, where_not(child.family.model_type, child.settings)
    if new.top_k != old.top_k:
        notes.append(f"a token visits {new.top_k} experts, not {old.top_k}: their FLOPs grow {config.factor} times")
    if new.aux_loss_coef != old.aux_loss_coef:
        notes.append(
            f"load-balance coefficient {new.aux_loss_coef:g}, not {old.aux_loss_coef:g}: that loss counts visits"
        )
    if not config.noise:
        notes.append("noise 0: copies get equal gradients, and may stay copies; --noise 0.01 tells them apart")
    if scores and scores.checkpoint != parent.origin.folder.fingerprint:
        notes.append(f"{config.scores} has the scores of another checkpoint, {scores.checkpoint}")
    return notes


def _promise(child: Checkpoint, config: Config) -> Promise:
    if config.factor == 1:
        return exact()
    noisy = "the copies of the experts" + (" and of the router rows" if config.noise_router else "")
    changes = [f"noise of {config.noise:g} standard deviations is on {noisy}"] if config.noise else []
    if config.top_k == "keep":
        changes.insert(0, f"{child.settings.num_experts} experts compete for {counted(child.settings.top_k, 'place')}")
    return lossy("; ".join(changes)) if changes else exact()
