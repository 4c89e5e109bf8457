"""Sparse upcycling: each chosen feed-forward becomes E copies of itself behind a new router.

Preserves the parent's function exactly, whatever the router says: the K chosen experts are equal and their weights,
renormalised, sum to 1. The copies part ways as training sends them different tokens.

Departures from the paper, with reasons:
- every layer by default, not every second: the sparse twins the serving engines know have experts in all layers;
- routing weights renormalised (the paper does so for vision only): without it the child starts far from the parent;
- token choice everywhere (the paper's encoders use expert choice, which leaks the future in a decoder).

Source: Komatsuzaki et al. 2023, "Sparse Upcycling", arXiv 2212.05055, section 3.

E experts   K experts per token   D hidden size
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from rekindle.anatomy import FAMILIES
from rekindle.config import option
from rekindle.edit import Checkpoint, Normal, exact, lossy
from rekindle.errors import RekindleError, together

Target = Literal["auto", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "flex_olmo"]

SHARED_FRACTION = 8  # where the target insists on a shared expert: an eighth of the feed-forward's width


@dataclass(frozen=True, kw_only=True)
class Config:
    experts: int = option(help="experts per layer (E)")
    top_k: int = option(2, help="experts each token is routed to (K)")
    target: Target = option("auto", help="sparse family to become; auto: the first that can hold the request")
    layers: str = option("all", help="which layers get experts: all, every:2, last:6 or 0,3,5")
    router_std: float = option(0.02, help="standard deviation of the new router's weights")
    expert_noise: float = option(0.0, help="standard deviation of noise added to each expert (0: exact copies)")
    seed: int = option(0, help="seed of the router and the noise")


def sparse_upcycling(parent: Checkpoint, config: Config) -> Checkpoint:
    _check(parent, config)
    layers = parent.layers(config.layers)
    child = _sparse_twin(parent, config, layers)
    for layer in layers:
        copy = parent[layer].ffn.twin(of=config.experts)
        for expert in range(config.experts):
            child[layer].expert[expert] = copy.noisy(config.expert_noise, config.seed, f"{layer}/{expert}")
        shape_ED = (config.experts, parent.settings.hidden_size)
        child[layer]["router"] = Normal(parent.dtype, shape_ED, config.router_std, config.seed, f"{layer}/router")
    child.noting(*_notes(child, config))
    promise = lossy(f"noise of {config.expert_noise:g} was added to the experts") if config.expert_noise else exact()
    return child.with_rest_of(parent).promising(promise)


def _sparse_twin(parent: Checkpoint, config: Config, layers: tuple[int, ...]) -> Checkpoint:
    """The empty child in the asked-for family, or in the first twin of the parent's that can hold the request."""
    targets = parent.family.twins if config.target == "auto" else (config.target,)
    width = parent.settings.intermediate_size
    problems: list[RekindleError] = []
    for target in targets:
        whole = "intermediate_size" not in FAMILIES[target].keys
        try:
            return parent.as_family(
                target,
                num_experts=config.experts,
                top_k=config.top_k,
                expert_size=width,
                intermediate_size=0 if whole else width,
                shared_size=max(1, width // SHARED_FRACTION) if "shared_size" in FAMILIES[target].keys else 0,
                norm_topk_prob=True,
                sparse_layers=layers,
            )
        except RekindleError as refused:
            problems.append(RekindleError(f"This {parent.family.model_type} cannot become {target}.", why=str(refused)))
    if config.target != "auto" and parent.family.twins:
        problems[0].hint = f"--target {' or '.join(parent.family.twins)}, or auto"
    raise together(problems)


def _check(parent: Checkpoint, config: Config) -> None:
    problems = []
    if parent.settings.sparse_layers:
        problems.append(RekindleError("This checkpoint has experts already; upcycling starts from a dense one."))
    if config.experts < 1:
        problems.append(RekindleError(f"{config.experts} experts are too few.", hint="--experts 8"))
    if not 1 <= config.top_k <= max(config.experts, 1):
        what = f"{config.top_k} of {config.experts} experts cannot be chosen."
        problems.append(RekindleError(what, hint=f"--top-k 1 to {max(config.experts, 1)}"))
    for name in ("router_std", "expert_noise"):
        if not 0 <= getattr(config, name) < float("inf"):
            problems.append(RekindleError(f"{name} is {getattr(config, name)}, not a standard deviation."))
    try:
        parent.layers(config.layers)
    except RekindleError as error:
        problems.append(error)
    if problems:
        raise together(problems)


def _notes(child: Checkpoint, config: Config) -> list[str]:
    notes, s = [], child.settings
    if config.top_k == 1:
        notes.append(
            "top-k 1: the one routing weight is always 1, so the language-model loss gives the router no gradient; "
            "only a load-balance loss will train it"
        )
    if s.shared_size:
        share = s.shared_size / (config.top_k * s.expert_size)
        notes.append(
            f"{child.family.model_type} insists on a shared expert: {s.shared_size} of the parent's "
            f"{s.expert_size} units, silent at the start; it adds {share:.1%} to the experts' FLOPs"
        )
    return notes
