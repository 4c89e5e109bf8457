"""Merge: several checkpoints of one shape become one, tensor by tensor, in one pass.

How is a file of its own in `merging`: linear, slerp, karcher; over a base they share, task (vectors), ties, dare,
breadcrumbs, stock; over a run's saved checkpoints, oldest first, mean, ema, wsm. The sources must be models of one
family with the same settings, or of a class that no table knows with the same tensors. Config, tokenizer and all
other files are the base's, where there is one, else the first source's. A LoRA adapter is its base with it in the
weights, see `edit.adapted`; where tokenizers differ `vocab` says what to do, see `edit.vocabulary`.

Preserves the function exactly where the weights are 1 and 0: then a source's bytes are copied. Equal sources come back
bit for bit in linear with a sum of 1, mean, ema, wsm, slerp, karcher, and ties at density 1. All else is lossy.

Weights: one for each source; 0:1 goes from 0 at the first layer to 1 at the last, 0:1:0 there and back, in equal steps;
what stands before the layers has the first value, what stands after them the last. `by_role` overrules them for roles
whose names begin so (attn, ffn.down, embed).

Whole numbers (counters, masks, ids) are no averages: they are those of the checkpoint whose config is taken.

Adam's moments: those of linear averages, as an approximation (see `edit.combine.Linear`); else they start empty.

Source: see each way's file; arXiv 2203.05482 (soups), 2212.04089 (task vectors), 2306.01708 (TIES), 2311.03099 (DARE),
2312.06795 (breadcrumbs), 2403.19522 (model stock), 2507.17634 (WSM).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, fields
from importlib import import_module
from typing import Literal

from rekindle.anatomy import Adapter, Role, opaque_name
from rekindle.config import option
from rekindle.edit import Checkpoint, Expr, Promise, exact, lossy, united
from rekindle.edit.adapted import adapted
from rekindle.edit.arithmetic import is_computable
from rekindle.edit.combine import ONE
from rekindle.edit.vocabulary import of_one_vocabulary
from rekindle.errors import RekindleError, counted, nearest, together
from rekindle.methods.merging import series
from rekindle.methods.merging.alike import check_alike, notes
from rekindle.methods.merging.weights import Course, course

MERGING = "rekindle.methods.merging."
WAYS = {  # how -> (what combines one tensor of each, options it reads)
    "linear": ("linear:linear", ("weights", "normalize", "any_sum", "by_role")),
    "slerp": ("slerp:slerp", ("t", "by_role")),
    "karcher": ("karcher:karcher", ("weights", "normalize", "by_role")),
    "task": ("task_arithmetic:task_arithmetic", ("base", "weights", "normalize", "lambda_", "by_role")),
    "ties": ("ties:ties", ("base", "weights", "lambda_", "density", "by_role")),
    "dare": ("dare:dare", ("base", "weights", "normalize", "lambda_", "density", "seed", "by_role")),
    "breadcrumbs": (
        "breadcrumbs:breadcrumbs",
        ("base", "weights", "normalize", "lambda_", "density", "gamma", "by_role"),
    ),
    "stock": ("model_stock:model_stock", ("base",)),
    "mean": ("linear:linear", ("last",)),
    "ema": ("linear:linear", ("last", "decay")),
    "wsm": ("linear:linear", ("last", "shape")),
}
SERIES = ("mean", "ema", "wsm")
POSITIVE = ("karcher", "ties")  # weigh a mean of directions, or a vote: no weight below 0, and one above
AVERAGES = ("linear", "karcher")  # weights sum to 1
AVERAGED = ("linear", "task", *SERIES)  # moments can be averaged with the weights
OVER_BASE = tuple(how for how, (_, reads) in WAYS.items() if "base" in reads)


@dataclass(frozen=True, kw_only=True)
class Config:
    how: Literal["linear", "slerp", "karcher", "task", "ties", "dare", "breadcrumbs", "stock", "mean", "ema", "wsm"] = (
        option("linear", help="how tensors become one")
    )
    weights: tuple[str, ...] | None = option(
        None, help="one for each source, such as 0.3,0.7; 0:1 goes from first layer to last (default: equal)"
    )
    by_role: dict[str, tuple[str, ...]] | None = option(
        None, help="weights of roles, such as {ffn: [1, 0], attn.q: [0.5, 0.5]}; of slerp t, [0.3]"
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
    last: int | None = option(None, help="mean, ema, wsm: only the last so many checkpoints")


def merge(parents: Mapping[str, Checkpoint], config: Config) -> Checkpoint:
    """`parents` by name, in their order; the base is the one that `config.base` names, and below all adapters."""
    adapters = any(isinstance(model.family, Adapter) for model in parents.values())
    base = _base(parents := adapted(parents, config.base), config)
    models = {name: model for name, model in parents.items() if model is not base}
    _check(config, len(models), base, adapters)
    models = dict(list(models.items())[-(config.last or 0) :])
    used = {name: model for name, model in parents.items() if model is base or name in models}
    first = base or next(iter(models.values()))
    weights_of, combine = _weights(config, len(models), first), _way(config.how)

    def shares(role: Role) -> dict[str, float]:
        """The weight of each model in a tensor; of slerp both."""
        at = [course.at(role, first.settings) for course in weights_of(role)]
        return dict(zip(models, [1 - at[0], *at] if config.how == "slerp" else at, strict=True))

    used = of_one_vocabulary(used, next(name for name in used if used[name] is first), config.vocab, shares)
    check_alike(used)
    base, merged = _base(used, config), [used[name] for name in models]
    first = base or merged[0]
    child = united(list(used.values()), first)
    for role, x in first.tensors.items():
        if not is_computable(x):
            child.tensors[role] = x
            continue
        weights = _summed([course.at(role, first.settings) for course in weights_of(role)], config, role)
        own = base.tensors[role] if base else None
        xs = [model.tensors[role] for model in merged]
        same = _are_one(xs if own is None else [*xs, own]) and _keeps_equals(config.how, weights)
        child.tensors[role] = xs[0] if same else combine(xs, weights, own, config, str(role))
    return child.noting(*notes(used, first)).promising(_promise(child, used.values(), config.how))


def _base(parents: Mapping[str, Checkpoint], config: Config) -> Checkpoint | None:
    if config.base is not None and config.base not in parents:
        raise RekindleError(f"No source is called {config.base}, the base.", hint=", ".join(parents))
    return parents[config.base] if config.base is not None else None


def _are_one(xs: Sequence[Expr]) -> bool:
    """Whether these are the very same: what no adapter over one base has touched."""
    return all(x is xs[0] for x in xs)


def _keeps_equals(how: str, weights: Sequence[float]) -> bool:
    """Whether tensors that are all equal come back."""
    return how in (*OVER_BASE, "slerp") or abs(sum(weights) - 1) <= ONE


def _way(how: str) -> Callable[[Sequence[Expr], Sequence[float], Expr | None, Config, str], Expr]:
    module, _, function = WAYS[how][0].partition(":")
    return getattr(import_module(MERGING + module), function)


def _promise(child: Checkpoint, models: Iterable[Checkpoint], how: str) -> Promise:
    for model in models:
        if all(x is model.tensors[role] for role, x in child.tensors.items()):
            return exact("the child is one of the sources") if model.promise.exact else model.promise
    carried = "; moments that are carried are approximate" if how in AVERAGED else ""
    return lossy(f"a merge computes the function of none of its sources{carried}")


# -- weights ---------------------------------------------------------------------------------------------------


def _weights(config: Config, count: int, first: Checkpoint) -> Callable[[Role], Sequence[Course]]:
    """The weights of a role's tensor, one for each model (of slerp t alone), as they run over the layers."""
    if config.how in SERIES:
        found = {
            "mean": series.mean(count),
            "ema": series.ema(count, config.decay),
            "wsm": series.wsm(count, config.shape),
        }
        return lambda role: [Course((a,)) for a in found[config.how]]
    if config.how == "slerp":
        given, count = (config.t,), 1
    else:
        equal = str(1 / count) if config.how in AVERAGES else "1"
        given = config.weights or (equal,) * count
    usual = _courses(given, count, "weights" if count > 1 else "t")
    own = {part: _courses(texts, count, f"by_role {part}") for part, texts in (config.by_role or {}).items()}
    _check_courses(config, [*usual, *(one for courses in own.values() for one in courses)], own, first)

    def of(role: Role) -> Sequence[Course]:
        longest = max((part for part in own if f"{role.part}.".startswith(f"{part}.")), key=len, default=None)
        return usual if longest is None else own[longest]

    return of


def _courses(texts: Sequence[str], count: int, option: str) -> Sequence[Course]:
    if len(texts) != count:
        what = f"{option} has {counted(len(texts), 'weight')} for {counted(count, 'source')}."
        raise RekindleError(what, hint="one for each source, in their order; the base has none")
    return [course(text, option) for text in texts]


def _check_courses(config: Config, given: Sequence[Course], parts: Iterable[str], first: Checkpoint) -> None:
    """Raise RekindleError for what these weights cannot mean in a model such as `first`."""
    known = dict.fromkeys(role.part for role in first.tensors if opaque_name(role) is None)
    for part in parts:
        if not any(f"{name}.".startswith(f"{part}.") for name in known):
            hint = nearest(part, known) or ", ".join(dict.fromkeys(name.split(".")[0] for name in known)) or None
            raise RekindleError(f"by_role has {part!r}, and no tensor's role begins so.", hint=hint)
    if any(len(one.values) > 1 for one in given) and not first.settings.num_layers:
        what = f"Weights cannot run over the layers of a {first.family.model_type}: which those are is not known."
        raise RekindleError(what, hint="one number for each source")
    if config.how == "slerp" and not all(0 <= t <= 1 for one in given for t in one.values):
        raise RekindleError("slerp goes from 0, the first, to 1, the second, and t is beyond.", hint="--t 0.5")


def _summed(weights: Sequence[float], config: Config, role: Role) -> Sequence[float]:
    """The weights as they count, refused where their sum makes no average."""
    total = sum(weights)
    reads = WAYS[config.how][1]
    if config.how in POSITIVE and (min(weights) < 0 or max(weights) == 0):
        what = f"{config.how} takes weights from 0 on, and those of {role} are {', '.join(f'{a:g}' for a in weights)}."
        raise RekindleError(what, hint="--how linear or task, where a model is to be taken away")
    if config.normalize:
        if abs(total) <= ONE:
            raise RekindleError(f"The weights of {role} sum to 0: they cannot be divided by it.", hint="other weights")
        return [a / total for a in weights]
    if config.how in AVERAGES and abs(total) <= ONE:
        raise RekindleError(f"The weights of {role} sum to 0: nothing is left of the models.", hint="other weights")
    if config.how in AVERAGES and not config.any_sum and abs(total - 1) > ONE:
        ways = ["--normalize to divide by it", *["--any-sum"] * ("any_sum" in reads)]
        what = f"The weights of {role} sum to {total:g}, not to 1: that is no average."
        raise RekindleError(what, hint=", or ".join(ways))
    return weights


# -- refusals --------------------------------------------------------------------------------------------------


def _check(config: Config, count: int, base: Checkpoint | None, adapters: bool) -> None:
    problems = [*_without_effect(config, ("how", "vocab", *(["base"] if adapters else []))), *_out_of_range(config)]
    if config.how in OVER_BASE and base is None:
        why = "it adds to a base what its sources have learnt since"
        problems.append(
            RekindleError(f"--how {config.how} needs the model they were trained from.", why=why, hint="--base SRC")
        )
    alone = adapters and config.how == "linear"  # the base with one adapter in it
    least = 1 if alone or (config.how in OVER_BASE and config.how != "stock") else 2
    if config.how == "slerp" and count != 2:
        problems.append(RekindleError(f"SLERP is between two models, not {count}.", hint="--how karcher of any number"))
    elif count < (config.last or 0):
        what = f"The last {config.last} are asked for, and there are {counted(count, 'checkpoint')}."
        problems.append(RekindleError(what, hint=f"--last {count}, or all of them without"))
    elif count < least:
        what = f"{config.how} needs {counted(least, 'source')} or more, not {count}."
        problems.append(RekindleError(what, hint=f"rekindle merge SRC SRC OUT --how {config.how}"))
    if problems:
        raise together(problems)


def _without_effect(config: Config, read: Sequence[str]) -> Iterator[RekindleError]:
    """Options that this way does not read: they would be ignored. `read`: those that any way reads."""
    for f in fields(config):
        if f.name not in read and f.name not in WAYS[config.how][1] and getattr(config, f.name) != f.default:
            flag, readers = (
                f"--{f.name.strip('_').replace('_', '-')}",
                [how for how, (_, reads) in WAYS.items() if f.name in reads],
            )
            yield RekindleError(
                f"{flag} would have no effect with --how {config.how}.", hint=f"it is for {', '.join(readers)}"
            )


def _out_of_range(config: Config) -> Iterator[RekindleError]:
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
