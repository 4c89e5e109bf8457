"""The ways to merge: what combines one tensor of each, and which options it reads."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields
from typing import Literal, NamedTuple

from rekindle.config import option
from rekindle.edit import Expr
from rekindle.errors import RekindleError
from rekindle.methods.merging.breadcrumbs import breadcrumbs
from rekindle.methods.merging.dare import dare
from rekindle.methods.merging.karcher import karcher
from rekindle.methods.merging.linear import linear
from rekindle.methods.merging.model_stock import model_stock
from rekindle.methods.merging.series import ema, mean, wsm
from rekindle.methods.merging.slerp import slerp
from rekindle.methods.merging.task_arithmetic import task_arithmetic
from rekindle.methods.merging.ties import ties


@dataclass(frozen=True, kw_only=True)
class Config:
    how: Literal["linear", "slerp", "karcher", "task", "ties", "dare", "breadcrumbs", "stock", "mean", "ema", "wsm"] = (
        option("linear", help="how tensors become one")
    )
    weights: tuple[str, ...] | None = option(
        None, help="one for each source, such as 0.3,0.7; 0:1 goes from first layer to last (default: equal)"
    )
    by_role: dict[str, tuple[str, ...]] | None = option(
        None, help="weights of roles, or of names, such as {ffn: [1, 0], attn.q: [0.5, 0.5]}; of slerp t, [0.3]"
    )
    base: str | None = option(None, help="the model that the sources were trained from, and adapters are put on")
    normalize: bool = option(False, help="divide the weights by their sum")
    any_sum: bool = option(False, help="linear: weights need not sum to 1")
    t: str = option("0.5", help="slerp: how far from the first to the second, 0 to 1; 0:1 from layer to layer")
    lambda_: float = option(1.0, help="task, ties, dare, breadcrumbs: factor on what is added to the base")
    density: float = option(0.5, help="ties, dare, breadcrumbs: share of a task vector's entries that is kept")
    gamma: float = option(0.01, help="breadcrumbs: share of a task vector's entries, the largest, that are outliers")
    seed: int = option(0, help="dare: random seed of what is dropped")
    decay: float = option(0.9, help="ema: share of the average that stays at each checkpoint")
    shape: Literal["linear", "cosine", "1-sqrt"] = option("1-sqrt", help="wsm: how the learning rate would decay")
    vocab: Literal["same", "base", "union"] = option(
        "same", help="tokens: the same in all; those of the base, or the first; or those of all"
    )
    keep: tuple[str, ...] | None = option(
        None, help="tensors that are not merged but the base's, or the first's: names on disk, such as '*.running_mean'"
    )
    last: int | None = option(None, help="mean, ema, wsm: only the last so many checkpoints")


class Of(NamedTuple):
    """One tensor of each source."""

    xs: Sequence[Expr]
    weights: Sequence[float]
    over: Expr | None  # the base's
    key: str  # names it

    @property
    def base(self) -> Expr:
        assert self.over is not None
        return self.over


class Way(NamedTuple):
    """How tensors become one."""

    combine: Callable[[Of, Config], Expr]
    reads: tuple[str, ...]  # of the options
    paper: str  # and a link to it
    sums_to_one: bool = False  # its weights
    positive: bool = False  # it weighs a mean of directions, or a vote: no weight below 0, and one above
    series: Callable[[int, Config], Sequence[float]] | None = None  # weights of so many checkpoints, oldest first

    @property
    def over_base(self) -> bool:
        return "base" in self.reads


def _arxiv(paper: str, number: str) -> str:
    return f"{paper} (arXiv {number}) https://arxiv.org/abs/{number}"


def _series(weights: Callable[[int, Config], Sequence[float]], paper: str, *reads: str) -> Way:
    return Way(lambda of, c: linear(of.xs, of.weights), ("last", *reads), paper, series=weights)


WAYS = {
    "linear": Way(
        lambda of, c: linear(of.xs, of.weights),
        ("weights", "normalize", "any_sum", "by_role"),
        _arxiv("Wortsman et al. 2022, Model soups", "2203.05482"),
        sums_to_one=True,
    ),
    "slerp": Way(
        lambda of, c: slerp(of.xs, *of.weights),
        ("t", "by_role"),
        "Shoemake 1985, Animating rotation with quaternion curves",
    ),
    "karcher": Way(
        lambda of, c: karcher(of.xs, of.weights),
        ("weights", "normalize", "by_role"),
        "Karcher 1977, Riemannian center of mass and mollifier smoothing",
        sums_to_one=True,
        positive=True,
    ),
    "task": Way(
        lambda of, c: task_arithmetic(of.xs, of.weights, of.base, c.lambda_),
        ("base", "weights", "normalize", "lambda_", "by_role"),
        _arxiv("Ilharco et al. 2023, Editing Models with Task Arithmetic", "2212.04089"),
    ),
    "ties": Way(
        lambda of, c: ties(of.xs, of.weights, of.base, c.density, c.lambda_),
        ("base", "weights", "lambda_", "density", "by_role"),
        _arxiv("Yadav et al. 2023, TIES-Merging", "2306.01708"),
        positive=True,
    ),
    "dare": Way(
        lambda of, c: dare(of.xs, of.weights, of.base, c.density, c.lambda_, c.seed, of.key),
        ("base", "weights", "normalize", "lambda_", "density", "seed", "by_role"),
        _arxiv("Yu et al. 2023, Language Models are Super Mario (DARE)", "2311.03099"),
    ),
    "breadcrumbs": Way(
        lambda of, c: breadcrumbs(of.xs, of.weights, of.base, c.density, c.gamma, c.lambda_),
        ("base", "weights", "normalize", "lambda_", "density", "gamma", "by_role"),
        _arxiv("Davari and Belilovsky 2023, Model Breadcrumbs", "2312.06795"),
    ),
    "stock": Way(
        lambda of, c: model_stock(of.xs, of.base),
        ("base",),
        _arxiv("Jang et al. 2024, Model Stock", "2403.19522"),
    ),
    "mean": _series(lambda count, c: mean(count), _arxiv("Kaddour 2022, LAWA", "2209.14981")),
    "ema": _series(lambda count, c: ema(count, c.decay), "", "decay"),
    "wsm": _series(lambda count, c: wsm(count, c.shape), _arxiv("Tian et al. 2025, WSM", "2507.17634"), "shape"),
}


def without_effect(config: Config, read: Sequence[str]) -> Iterator[RekindleError]:
    """Options that this way does not read: they would be ignored. `read`: those that any way reads."""
    for f in fields(config):
        if f.name not in read and f.name not in WAYS[config.how].reads and getattr(config, f.name) != f.default:
            flag = f"--{f.name.strip('_').replace('_', '-')}"
            readers = ", ".join(how for how, way in WAYS.items() if f.name in way.reads)
            yield RekindleError(f"{flag} would have no effect with --how {config.how}.", hint=f"it is for {readers}")


def out_of_range(config: Config) -> Iterator[RekindleError]:
    if not 0 < config.density <= 1:
        yield RekindleError(f"density is {config.density}, not a share above 0.", hint="--density 0.5")
    if not 0 <= config.gamma < 1 or config.how == "breadcrumbs" and config.gamma + config.density > 1:
        what = f"gamma is {config.gamma}: with density {config.density} that is no share of the entries."
        yield RekindleError(what, hint="--gamma 0.01, and at most 1 together")
    if not 0 <= config.decay < 1:
        yield RekindleError(f"decay is {config.decay}, not a share below 1.", hint="--decay 0.9")
    if config.last is not None and config.last < 2:
        yield RekindleError(f"The last {config.last} of a series make no average.", hint="--last 10")
    if not math.isfinite(config.lambda_):
        yield RekindleError(f"lambda is {config.lambda_}, not a number.", hint="--lambda 1")
