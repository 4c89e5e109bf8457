"""Sparse upcycling: each chosen feed-forward becomes E copies of itself behind a new router.

Preserves the parent's function exactly, whatever the router says: the K chosen experts are equal and their weights,
renormalised, sum to 1. The copies part ways as training sends them different tokens. Later papers begin with experts
that differ: `noise` and `drop` give exactness up for that (see drop_upcycling), `virtual-group` cuts the copies into
smaller experts and keeps it (see virtual_groups).

Shared experts take the first N of the G shards (the whole feed-forward where N = G; then the routed experts start
with a zero down-projection, and any of the inits is exact).

A ViT becomes a V-MoE, whose experts choose their tokens (see expert_choice), and a T5 a Switch Transformer, in every
second layer, of both towers, as in the paper. The latter is not exact: its one expert a token is multiplied by its
probability (see raw_weights).

Departures from the paper, with reasons:
- decoders: every layer by default, not every second: the sparse twins the serving engines know have experts in all;
- routing weights renormalised (the paper does so for vision only): without it the child starts far from the parent;
- token choice in all that is no ViT (the paper's encoders of T5 use expert choice, which no class computes);
- noise is a share of each tensor's standard deviation, as in later work: one number for tensors of any scale.

Source: Komatsuzaki et al. 2023, "Sparse Upcycling", arXiv 2212.05055, section 3.

E experts   K experts per token   D hidden size   F hidden units   G shards of them   N shards shared
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields, replace
from typing import Any, Literal

from rekindle.anatomy import FAMILIES, Family
from rekindle.anatomy.engines import Engine, where_not
from rekindle.config import option
from rekindle.edit import Checkpoint, Fill, Normal, Promise, exact, lossy
from rekindle.edit.feedforward import FeedForward
from rekindle.errors import RekindleError, together
from rekindle.methods import expert_choice, raw_weights
from rekindle.methods.drop_upcycling import partly_new
from rekindle.methods.serving import check_engine, fill_for_engine, reading_of
from rekindle.methods.virtual_groups import indivisible, prototypes, rounds, virtual_groups

Target = Literal["auto", "mixtral", "qwen2_moe", "qwen3_moe", "olmoe", "flex_olmo", "switch_transformers", "vmoe"]

NEVER = {"nllb_moe": "transformers' class (5.23) sends tokens to its experts 0 and 1 alone, whatever the router says"}
OPEN = ("top_k", "layers", "router_std", "routing")  # options whose default follows from the target
OURS = "transformers has no class for it: rekindle.load(OUT), or import {} before its from_pretrained"
SHARED_FRACTION = 8  # where the target insists on a shared expert: an eighth of the feed-forward's width
SWITCH = 2.0  # a switch of zeros lets half of the shared expert's output through: sigmoid(0)


@dataclass(frozen=True, kw_only=True)
class Config:
    experts: int = option(help="experts per layer (E), shared ones not counted")
    top_k: int | None = option(None, help="experts each token is routed to (K; default: 2; of switch_transformers 1)")
    init: Literal["copy", "noise", "drop", "virtual-group"] = option("copy", help="how the experts begin")
    target: Target = option(
        "auto", help="sparse family to become; auto: the first that can hold the request", never=NEVER
    )
    engine: Engine = option("transformers", help="what will serve it: target and init are chosen to be exact there")
    layers: str | None = option(
        None,
        help="which get experts: all, every:2, last:6 or 0,3,5 (default: all; of switch_transformers, vmoe every:2)",
    )
    routing: Literal["tokens", "experts"] | None = option(
        None,
        help="who chooses: tokens their K experts, or experts their share of tokens (default: tokens; of vmoe experts)",
    )
    group: Literal["image", "batch"] = option("image", help="routing experts: the tokens that each chooses among")
    noise: float = option(0.01, help="noise: its standard deviation, as a share of each tensor's own")
    drop_ratio: float = option(0.5, help="drop: share of each expert's hidden units that are drawn anew (r)")
    drop_indices: Literal["shared", "independent"] = option("shared", help="drop: same units of gate, up, down, or not")
    granularity: int = option(1, help="virtual-group: shards of the feed-forward, one to an expert (G)")
    scale: Literal["down", "spread"] = option("down", help="virtual-group: weights that bear the factor (down: exact)")
    shared_experts: int = option(0, help="experts' widths that every token uses; all G: routed ones start silent (N)")
    router_std: float | None = option(
        None, help="standard deviation of the new router's weights (default: 0.02; of switch_transformers 1e-4)"
    )
    seed: int = option(0, help="seed of the router, the noise and the choice of units")

    @property
    def silent(self) -> bool:
        """Whether the routed experts start without output: all of the feed-forward is shared."""
        return self.shared_experts == self.granularity

    @property
    def set_size(self) -> int:
        """Routed experts that together are (the routed part of) one feed-forward."""
        return self.granularity if self.silent else self.granularity - self.shared_experts


@dataclass(frozen=True, kw_only=True)
class Request(Config):
    """A Config with what it left open."""

    top_k: int
    layers: str
    router_std: float
    routing: Literal["tokens", "experts"]


def sparse_upcycling(parent: Checkpoint, config: Config) -> Checkpoint:
    config = _settled(parent, config)
    _check(parent, config)
    layers = parent.layers(config.layers)
    child, config = _sparse_twin(parent, config, layers)
    shape_CD = (config.experts // config.set_size, parent.settings.hidden_size)
    raw = raw_weights.keeps_raw(child.family)
    for layer in layers:
        ffn = parent[layer].ffn
        for expert, weights in enumerate(_routed(ffn, config, layer)):
            child[layer].expert[expert] = raw_weights.evened(weights, config.experts, config.top_k) if raw else weights
        for part, weight in _shared(ffn, config, child.settings.shared_switch).items():
            child[layer][f"shared.{part}"] = weight
        rows_CD = Normal(parent.dtype, shape_CD, config.router_std, config.seed, f"{layer}/router")
        child[layer]["router"] = prototypes(rows_CD, config.set_size)
    fill_for_engine(parent, child, config.engine, layers)
    child.noting(*_notes(parent, child, config))
    return child.with_rest_of(parent).promising(_promise(parent, child, config, layers))


def _settled(parent: Checkpoint, config: Config) -> Request:
    """With the defaults of what it will become."""
    target = next(iter(_targets(parent, config)), "")
    family = parent.table_of(target) if target in FAMILIES else None
    usual: tuple[Any, ...] = (2, "all", 0.02, "tokens")
    if family and raw_weights.keeps_raw(family):
        usual = (1, raw_weights.LAYERS, raw_weights.ROUTER_STD, "tokens")
    elif family and expert_choice.can_choose(family):
        usual = (2, expert_choice.LAYERS, 0.02, "experts")
    settled: dict[str, Any] = asdict(config)
    settled |= {name: value for name, value in zip(OPEN, usual, strict=True) if settled[name] is None}
    return Request(**settled)


def _targets(parent: Checkpoint, config: Config) -> tuple[str, ...]:
    return parent.family.twins if config.target == "auto" else (config.target,)


def _routed(ffn: FeedForward, config: Request, layer: int) -> list[FeedForward]:
    """The E routed experts of a layer."""
    if not config.silent:
        return _experts(ffn, config, layer)
    silence = {"down": Fill(ffn["down"].dtype, (ffn["down"].shape[0], ffn.width // config.granularity), 0.0)}
    return [FeedForward(expert | silence) for expert in _experts(ffn.fresh(), config, layer)]


def _experts(ffn: FeedForward, config: Request, layer: int) -> list[FeedForward]:
    keys = [f"{layer}/{expert}" for expert in range(config.experts)]
    if config.init == "virtual-group":
        shared = config.granularity - config.set_size
        return virtual_groups(ffn, config.experts, config.granularity, shared, config.scale)
    copy = ffn.twin(of=config.experts)
    if config.init == "drop":
        return [partly_new(copy, config.drop_ratio, config.drop_indices, config.seed, key) for key in keys]
    return [copy.noisy(config.noise if config.init == "noise" else 0.0, config.seed, key) for key in keys]


def _shared(ffn: FeedForward, config: Request, switched: bool) -> FeedForward:
    """The first N shards, for every token; none where the family's own neutral one will do."""
    if not config.shared_experts:
        return FeedForward()
    shards = ffn.units(0, config.shared_experts * ffn.width // config.granularity)
    return shards.scaled({"down": SWITCH if switched else 1.0})


def _sparse_twin(parent: Checkpoint, config: Request, layers: tuple[int, ...]) -> tuple[Checkpoint, Request]:
    """The empty child in the asked-for family, or in the first twin of the parent's that can hold the request.

    And the request as the engine computes it exactly.
    """
    targets = _targets(parent, config)
    problems: list[RekindleError] = []
    for target in targets:
        try:
            family = parent.table_of(target)
            fitted = _fitted(config, family)
            child = parent.as_family(target, **_settings(parent, fitted, family, layers))
            check_engine(child, config.engine, "" if config.layers == "all" else "--layers all, or ")
            return child, fitted
        except RekindleError as refused:
            what = f"This {parent.family.name} cannot become {target}."
            problems.append(RekindleError(what, why=refused.what, hint=refused.hint))
    if not targets:
        what = f"No family with experts can hold a {parent.family.name}."
        able = ", ".join(name for name, family in FAMILIES.items() if family.twins)
        problems.append(RekindleError(what, why="none has its norms, positions or biases", hint=f"a {able}"))
    elif config.target != "auto" and parent.family.twins:
        problems[0].hint = problems[0].hint or f"--target {' or '.join(parent.family.twins)}, or auto"
    raise together(problems)


def _fitted(config: Request, family: Family) -> Request:
    """The request as the engine computes it exactly.

    Where it keeps the top-k weights as they are, their sum is not 1: then no routed expert may matter, so all of the
    feed-forward is shared; or each token visits all experts, whose weights do sum to 1.
    """
    reading, able = reading_of(config.engine, family.model_type), "shared_size" in family.keys
    if reading is None or reading.weights != "kept" or config.silent or config.top_k == config.experts:
        return config
    if able and not config.shared_experts:
        return replace(config, shared_experts=config.granularity)
    what = f"{config.engine} keeps the top-k weights as they are: those of some experts do not sum to 1."
    all_ = f"--shared-experts {config.granularity}" if able else f"--top-k {config.experts} (the weights of all do)"
    raise RekindleError(what, hint=f"{all_}, or --engine transformers")


def _settings(parent: Checkpoint, config: Request, family: Family, layers: tuple[int, ...]) -> dict[str, Any]:
    """What changes in the config."""
    keys, fixed, width = family.keys, family.fixed, parent.settings.intermediate_size
    if unable := list(expert_choice.unable(config.routing, config.group, config.init, family)):
        raise together(unable)
    if config.shared_experts and "shared_size" not in keys:
        raise RekindleError(f"{family.name} has no shared expert.")
    shared = config.shared_experts * width // config.granularity or max(1, width // SHARED_FRACTION)
    reading, raw = reading_of(config.engine, family.model_type), raw_weights.keeps_raw(family)
    changed = {
        "num_experts": config.experts,
        "top_k": config.top_k,
        "expert_size": width // config.granularity,
        "intermediate_size": width if "intermediate_size" in keys else 0,
        "shared_size": shared if "shared_size" in keys else 0,
        "shared_switch": fixed.get("shared_switch", False),
        "norm_topk_prob": not raw and (reading is None or reading.weights != "kept"),
        "expert_capacity": raw_weights.NEVER_FULL if "expert_capacity" in keys else 0,
        "routing": config.routing,
        "routing_group": config.group if expert_choice.can_choose(family) else "batch",
        "sparse_layers": layers,
    }
    return changed | ({"tie_word_embeddings": False} if reading and "own head" in reading.wants else {})


# -- promise --------------------------------------------------------------------------------------------------


def _promise(parent: Checkpoint, child: Checkpoint, config: Request, layers: tuple[int, ...]) -> Promise:
    promise = _promised(parent, config, layers)
    if raw_weights.keeps_raw(child.family) and config.top_k < config.experts:
        raw = raw_weights.promised(config.experts, config.top_k)
        return lossy(raw if promise.exact else f"{promise.text}; {raw}")
    if promise.exact and config.engine != "transformers":
        return exact(f"{promise.text}; {config.engine} weighs experts so too, by its source")
    return promise


def _promised(parent: Checkpoint, config: Request, layers: tuple[int, ...]) -> Promise:
    size = config.set_size
    if config.silent:
        return exact("the shared expert is the parent's feed-forward, and the routed ones start silent")
    if config.init == "noise" and config.noise:
        return lossy(f"noise of {config.noise:g} of each tensor's standard deviation was added to the experts")
    if config.init == "drop" and config.drop_ratio:
        return lossy(f"{config.drop_ratio:.0%} of each expert's hidden units were drawn anew")
    if size > 1 and config.scale == "spread":
        times = f"{size ** (1 / 3):.3g} times as large"
        return lossy(f"gate, up and down are each {times}, which is exact for homogeneous activations alone")
    dtypes = sorted({parent[layer]["ffn.down"].dtype for layer in layers})
    if rounds(size, dtypes):
        return lossy(f"the down-projections times {size} are rounded to {', '.join(dtypes)}")
    return exact()


# -- refusals --------------------------------------------------------------------------------------------------

ONLY_FOR = {
    "noise": "noise",
    "drop_ratio": "drop",
    "drop_indices": "drop",
    "granularity": "virtual-group",
    "scale": "virtual-group",
}


def _check(parent: Checkpoint, config: Request) -> None:
    problems = [*_misplaced(config), *_out_of_range(config)]
    if parent.settings.sparse_layers:
        what = "This checkpoint has experts already; upcycling starts from a dense one."
        problems.append(RekindleError(what, hint="rekindle grow-experts SRC OUT makes more of them"))
    elif not problems:
        problems += indivisible(parent[0].ffn, config.experts, config.top_k, config.granularity, config.set_size)
    try:
        parent.layers(config.layers)
    except RekindleError as error:
        problems.append(error)
    if problems:
        raise together(problems)


def _misplaced(config: Request) -> Iterator[RekindleError]:
    """Options of another init: they would be ignored."""
    for f in fields(config):
        value, init = getattr(config, f.name), ONLY_FOR.get(f.name, config.init)
        if value != f.default and config.init != init:
            flag = f"--{f.name.replace('_', '-')} {value}"
            yield RekindleError(f"{flag} is for --init {init}, not for --init {config.init}.", hint=f"--init {init}")


def _out_of_range(config: Request) -> Iterator[RekindleError]:
    experts, shards = config.experts, config.granularity
    if experts < 1:
        yield RekindleError(f"{experts} experts are too few.", hint="--experts 8")
    if not 1 <= config.top_k <= max(experts, 1):
        what = f"{config.top_k} of {experts} experts cannot be chosen."
        yield RekindleError(what, hint=f"--top-k 1 to {max(experts, 1)}")
    for name in ("router_std", "noise"):
        if not 0 <= getattr(config, name) < float("inf"):
            yield RekindleError(f"{name} is {getattr(config, name)}, not a standard deviation.")
    if not 0 <= config.drop_ratio <= 1:
        yield RekindleError(f"drop_ratio is {config.drop_ratio}, not a share.", hint="--drop-ratio 0.5, or 0 to 1")
    if shards < 1:
        yield RekindleError(f"A feed-forward cannot be cut into {shards} shards.", hint="--granularity 8")
    elif not 0 <= config.shared_experts <= shards:
        what = f"{config.shared_experts} experts cannot be shared: the feed-forward has {shards} of their width."
        more = f", or --init virtual-group --granularity {config.shared_experts}" if shards == 1 else ""
        yield RekindleError(what, hint=f"--shared-experts 0 to {shards}{more}")


def _notes(parent: Checkpoint, child: Checkpoint, config: Request) -> list[str]:
    s = child.settings
    ours = child.family.module != "transformers"
    notes = [OURS.format(child.family.module)] if ours else where_not(child.family.model_type, s)
    if parent.settings.tie_word_embeddings and not s.tie_word_embeddings:
        notes.append(f"{config.engine} reads no head that is tied to the embeddings: the child has a copy of them")
    if config.silent and config.engine != "transformers":
        notes.append("all of the feed-forward is shared by all tokens, and the routed experts start silent")
    if config.top_k == 1 and s.norm_topk_prob and config.routing == "tokens":
        notes.append(
            "top-k 1: the one routing weight is always 1, so the language-model loss gives the router no gradient; "
            "only a load-balance loss will train it"
        )
    if s.shared_size and not config.shared_experts:
        units, share = s.expert_size * config.granularity, s.shared_size / (config.top_k * s.expert_size)
        notes.append(
            f"{child.family.model_type} insists on a shared expert: {s.shared_size} of the parent's "
            f"{units} units, silent at the start; it adds {share:.1%} to the experts' FLOPs"
        )
    return notes
