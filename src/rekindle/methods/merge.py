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
whose names begin so (attn, ffn.down, embed), and for tensors of a class that no table knows (down_blocks.0).

Whole numbers (counters, masks, ids) are no averages: they are those of the checkpoint whose config is taken, and so is
what `keep` names, such as BatchNorm's statistics.

Adam's moments: those of linear averages, as an approximation (see `edit.combine.Linear`); else they start empty.

Source: see each way's file; arXiv 2203.05482 (soups), 2212.04089 (task vectors), 2306.01708 (TIES), 2311.03099 (DARE),
2312.06795 (breadcrumbs), 2403.19522 (model stock), 2507.17634 (WSM).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Any

from rekindle.anatomy import Adapter, Role, opaque_name
from rekindle.edit import Checkpoint, Expr, Promise, exact, lossy, united
from rekindle.edit.adapted import adapted
from rekindle.edit.arithmetic import is_computable
from rekindle.edit.combine import ONE
from rekindle.edit.vocabulary import of_one_vocabulary
from rekindle.errors import RekindleError, counted, nearest, together
from rekindle.methods.merging.alike import check_alike, notes
from rekindle.methods.merging.ways import WAYS, Config, Of, out_of_range, without_effect
from rekindle.methods.merging.weights import Course, course


def merge(parents: Mapping[str, Checkpoint], config: Config) -> Checkpoint:
    """`parents` by name, in their order; the base is the one that `config.base` names, and below all adapters."""
    adapters = any(isinstance(model.family, Adapter) for model in parents.values())
    parents, base = adapted(parents, config.base), config.base
    if base is not None and base not in parents:
        raise RekindleError(f"No source is called {base}, the base.", hint=", ".join(parents))
    names = [name for name in parents if name != base]
    _check(config, len(names), adapters)
    names = names[-(config.last or 0) :]
    first = base or names[0]
    settings, weights_of = parents[first].settings, _weights(config, len(names), parents[first])

    def shares(role: Role) -> dict[str, float]:
        """The weight of each model in a tensor; of slerp both."""
        at = [course.at(role, settings) for course in weights_of(role)]
        return dict(zip(names, [1 - at[0], *at] if config.how == "slerp" else at, strict=True))

    used = {name: model for name, model in parents.items() if name in (*names, base)}
    used = of_one_vocabulary(used, first, config.vocab, shares)
    check_alike(used)
    child, way, kept = united(list(used.values()), used[first]), WAYS[config.how], _kept(config, used[first])
    for role, x in used[first].tensors.items():
        if not is_computable(x) or role in kept:
            child.tensors[role] = x
            continue
        weights = _summed([course.at(role, settings) for course in weights_of(role)], config, role)
        xs, over = [used[name].tensors[role] for name in names], used[base].tensors[role] if base else None
        same = _are_one(xs if over is None else [*xs, over]) and _keeps_equals(config.how, weights)
        child.tensors[role] = xs[0] if same else way.combine(Of(xs, weights, over, str(role)), config)
    return child.noting(*notes(used, used[first])).promising(_promise(child, used.values()))


def _kept(config: Config, first: Checkpoint) -> set[Role]:
    """The roles of what is not merged; raises RekindleError for a pattern that no name on disk fits."""
    names = {role: opaque_name(role) or first.rows[role][0] for role in first.tensors} if config.keep else {}
    for pattern in config.keep or ():
        if not any(fnmatchcase(name, pattern) for name in names.values()):
            hint = nearest(pattern, names.values()) or "a name on disk, or a pattern such as '*.running_mean'"
            raise RekindleError(f"keep has {pattern!r}, and no tensor is called so.", hint=hint)
    return {role for role, name in names.items() if any(fnmatchcase(name, one) for one in config.keep or ())}


def _are_one(xs: Sequence[Expr]) -> bool:
    """Whether these are the very same: what no adapter over one base has touched."""
    return all(x is xs[0] for x in xs)


def _keeps_equals(how: str, weights: Sequence[float]) -> bool:
    """Whether tensors that are all equal come back."""
    return WAYS[how].over_base or how == "slerp" or abs(sum(weights) - 1) <= ONE


def _promise(child: Checkpoint, models: Iterable[Checkpoint]) -> Promise:
    for model in models:
        if all(x is model.tensors[role] for role, x in child.tensors.items()):
            return exact("the child is one of the sources") if model.promise.exact else model.promise
    return lossy("a merge computes the function of none of its sources")


def cited(options: Mapping[str, Any]) -> str:
    """The paper of the way that was gone, out of options as a lineage has them."""
    said = options.get("how")
    how = said.get("value") if isinstance(said, dict) else None
    return WAYS[how].paper if isinstance(how, str) and how in WAYS else ""


# -- weights ---------------------------------------------------------------------------------------------------


def _weights(config: Config, count: int, first: Checkpoint) -> Callable[[Role], Sequence[Course]]:
    """The weights of a role's tensor, one for each model (of slerp t alone), as they run over the layers."""
    way, name = WAYS[config.how], "weights"
    if way.series is not None:
        found = [Course((a,)) for a in way.series(count, config)]
        return lambda role: found
    if config.how == "slerp":
        given, count, name = (config.t,), 1, "t"
    else:
        equal = str(1 / count) if way.sums_to_one else "1"
        given = config.weights or (equal,) * count
    usual = _courses(given, count, name)
    own = {part: _courses(texts, count, f"by_role {part}") for part, texts in (config.by_role or {}).items()}
    _check_courses(config, [*usual, *(one for courses in own.values() for one in courses)], own, first)

    def of(role: Role) -> Sequence[Course]:
        name = f"{_name(role)}."
        longest = max((part for part in own if name.startswith(f"{part}.")), key=len, default=None)
        return usual if longest is None else own[longest]

    return of


def _name(role: Role) -> str:
    return opaque_name(role) or role.part


def _courses(texts: Sequence[str], count: int, option: str) -> Sequence[Course]:
    if len(texts) != count:
        what = f"{option} has {counted(len(texts), 'weight')} for {counted(count, 'source')}."
        raise RekindleError(what, hint="one for each source, in their order; the base has none")
    return [course(text, option) for text in texts]


def _check_courses(config: Config, given: Sequence[Course], parts: Iterable[str], first: Checkpoint) -> None:
    """Raise RekindleError for what these weights cannot mean in a model such as `first`."""
    known = dict.fromkeys(map(_name, first.tensors))
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
    total, way = sum(weights), WAYS[config.how]
    if way.positive and max(weights) <= 0 <= min(weights):
        raise RekindleError(f"The weights of {role} are all 0: nothing is left of the models.", hint="other weights")
    if way.positive and min(weights) < 0:
        what = f"{config.how} takes weights from 0 on, and those of {role} are {', '.join(f'{a:g}' for a in weights)}."
        raise RekindleError(what, hint="--how linear or task, where a model is to be taken away")
    if config.normalize:
        if abs(total) <= ONE:
            raise RekindleError(f"The weights of {role} sum to 0: they cannot be divided by it.", hint="other weights")
        return [a / total for a in weights]
    if way.sums_to_one and abs(total) <= ONE:
        raise RekindleError(f"The weights of {role} sum to 0: nothing is left of the models.", hint="other weights")
    if way.sums_to_one and not config.any_sum and abs(total - 1) > ONE:
        ways = ["--normalize to divide by it", *["--any-sum"] * ("any_sum" in way.reads)]
        what = f"The weights of {role} sum to {total:g}, not to 1: that is no average."
        raise RekindleError(what, hint=", or ".join(ways))
    return weights


# -- refusals --------------------------------------------------------------------------------------------------


def _check(config: Config, count: int, adapters: bool) -> None:
    over_base = WAYS[config.how].over_base
    problems = [
        *without_effect(config, ("how", "vocab", "keep", *(["base"] if adapters else []))),
        *out_of_range(config),
    ]
    if over_base and config.base is None:
        why = "it adds to a base what its sources have learnt since"
        problems.append(
            RekindleError(f"--how {config.how} needs the model they were trained from.", why=why, hint="--base SRC")
        )
    alone = adapters and config.how == "linear"  # the base with one adapter in it
    least = 1 if alone or (over_base and config.how != "stock") else 2
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
