"""A model with a LoRA adapter in it: base + scale * B A where the adapter has matrices, else the base's own tensors.

The adapter's names are those of modules in memory. They are looked for among the names of the base's tensors on disk
and in memory; one that holds several roles has each of them changed by its own rows of B, and a stack of experts each
expert by its own matrices. What the adapter did not touch stays a copy, and what it holds beyond is an error.
"""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from pathlib import PurePath

import numpy as np

from rekindle.anatomy import Adapter, Nameless, Packed, Role, opaque_name, packs, stacks
from rekindle.edit.arithmetic import Cast, Fresh, Scale, Sum
from rekindle.edit.checkpoint import Checkpoint
from rekindle.edit.choose import Chosen
from rekindle.edit.expressions import Expr, Leaf
from rekindle.edit.joining import joined
from rekindle.edit.lora import Lora, Pair, lora_of
from rekindle.edit.lowrank import LowRank
from rekindle.edit.opening import other_names, same_bytes, taken_apart
from rekindle.edit.promise import lossy
from rekindle.errors import RekindleError, counted, some
from rekindle.store.folder import Folder

PROMISE = "with the adapter in its weights the model computes what both did together, not what the base does"
ENDS = ("embed", "head")  # one matrix where they are tied


def adapted(parents: Mapping[str, Checkpoint], base: str | None) -> dict[str, Checkpoint]:
    """The same models by name, each adapter among them as the base with it; the base is the one of that name.

    Raises RekindleError where there is none, or an adapter holds what does not fit it.
    """
    loras = {name: lora_of(model) for name, model in parents.items() if isinstance(model.family, Adapter)}
    if not loras:
        return dict(parents)
    if base not in parents or base in loras:
        first = parents[base if base in loras else next(iter(loras))].family
        assert isinstance(first, Adapter)
        raise first.refusing("merge")
    below = parents[base]
    if below.settings.tie_word_embeddings and any(_parts_ends(below, lora) for lora in loras.values()):
        below = _untied(below)
    return {
        name: below if name == base else _with(below, parents[name], loras[name]) if name in loras else model
        for name, model in parents.items()
    }


def _with(base: Checkpoint, adapter: Checkpoint, lora: Lora) -> Checkpoint:
    tensors, places = dict(base.tensors), Places(base)
    lora = _without_head(base, lora)
    if isinstance(base.family, Nameless) and lora.config.get("fan_in_fan_out"):  # a table knows by itself
        lora = lora.turned()
    unmatched: list[str] = []
    for name, x in lora.whole.items():
        place = places.named(name)
        if place is None:
            unmatched += [] if _is_twin(name, lora, base) else lora.given[name]
            continue
        _check_shape(place, x, lora.given[name][0], base)
        tensors |= _stood_for(place, x, tensors)
    for module, pair in lora.pairs.items():
        place = places.fitting(pair)
        bias = places.named(f"{pair.module}.bias") if pair.bias is not None else None
        if place is None or (pair.bias is not None and bias is None):
            unmatched += lora.given[module]
            continue
        _check_rank(place, pair, lora, adapter)
        scale = lora.scale(_called(place, pair, lora))
        tensors |= _added(place, pair, scale, tensors)
        if bias is not None and pair.bias is not None:
            moved = taken_apart(bias, Scale(pair.bias, scale))
            tensors |= {role: Sum(tensors[role], x) for role, x in moved}
    if unmatched:
        raise _no_place(unmatched, adapter, base, places, lora)
    own = {key: source for checkpoint in (base, adapter) for key, source in checkpoint.sources.items()}
    told = f"{adapter.folder.named}: matrices for {counted(len(lora.pairs), 'module')}"
    told += f", and {counted(len(lora.whole), 'tensor')} whole" if lora.whole else ""
    notes = [told, *_of_another(adapter, base.origin.folder)]
    return base.derive(tensors=tensors, made_of=own).noting(*notes).promising(lossy(PROMISE))


def _of_another(adapter: Checkpoint, base: Folder) -> Iterator[str]:
    """What an adapter is put on where it names another base: another folder, and not one of the same name elsewhere."""
    said = adapter.config.get("base_model_name_or_path")
    if not isinstance(said, str) or not said or os.path.exists(said) and os.path.samefile(said, base.path):
        return
    names = [PurePath(name.partition("@")[0]).name for name in (said, base.named)]
    if len(set(names)) > 1 and names[0] != base.path.resolve().name:
        yield f"{adapter.folder.named} says that it was trained on {said}, and is put on {base.named}"


# -- where ------------------------------------------------------------------------------------------------------


class Places:
    """The tensors of a checkpoint by every name that one may have, each with the roles in it."""

    def __init__(self, base: Checkpoint):
        family, settings = base.family, base.settings
        places = {name: Packed(name, shape, {role: shape}) for role, (name, shape, _) in base.rows.items()}
        places |= {pack.name: pack for pack in packs(base.rows.items(), settings)}
        places |= {stack.name: stack for stack in stacks(family, settings)}
        for role, x in base.tensors.items():
            if (name := opaque_name(role)) is not None:
                places[name] = Packed(name, x.shape, {role: x.shape})
        self._by_name = {alias: places[name] for alias, name in other_names(family, settings, places).items()}
        self._older = family.older or {}
        self._by_module: dict[str, dict[str, Packed]] = defaultdict(dict)
        for alias, place in self._by_name.items():
            self._by_module[alias.rpartition(".")[0]][place.name] = place

    def named(self, name: str) -> Packed | None:
        """The tensor of this name."""
        return self._by_name.get(self._today(name))

    def fitting(self, pair: Pair) -> Packed | None:
        """The tensor of a module that this pair changes: the one whose shape it has."""
        found = [place for place in self.of(pair) if _fits(place, pair)]
        return found[0] if len(found) == 1 else None

    def of(self, pair: Pair) -> list[Packed]:
        """All tensors of a pair's module."""
        return list(self._by_module.get(self._today(pair.module), {}).values())

    def _today(self, name: str) -> str:
        for old, new in self._older.items():
            name = name.replace(old, new)
        return name


def _fits(place: Packed, pair: Pair) -> bool:
    a, b = pair.both()
    shapes = list(place.roles.values())
    if any(len(shape) != 2 for shape in shapes):
        return False
    experts = place.shape[0] if len(place.shape) == 3 else 1
    rows, columns = sum(shape[0] for shape in shapes) // experts, shapes[0][1]
    return (b.shape[0], a.shape[1]) == (rows, columns) and a.shape[0] % experts == 0


def _called(place: Packed, pair: Pair, lora: Lora) -> str:
    """What peft calls it, and matches patterns with: the module, or the parameter where it was chosen as one."""
    parameter = f"{pair.module}.{place.name.rpartition('.')[2]}"
    chosen = any(f".{parameter}".endswith(f".{name}") for name in lora.config.get("target_parameters") or ())
    return parameter if chosen or len(place.shape) == 3 else pair.module


def _check_rank(place: Packed, pair: Pair, lora: Lora, adapter: Checkpoint) -> None:
    experts = place.shape[0] if len(place.shape) == 3 else 1
    found, said = pair.both()[0].shape[0] // experts, lora.rank(_called(place, pair, lora))
    if found != said:
        what = f"The matrices for {pair.module} have rank {found}, and the config says {said}."
        raise RekindleError(what, where=f"r and rank_pattern in {adapter.folder.path / 'adapter_config.json'}")


def _is_twin(name: str, lora: Lora, base: Checkpoint) -> bool:
    """Whether this is another tensor of the adapter again, as it is in memory."""
    one, other = lora.whole[name], lora.whole.get((base.family.copies or {}).get(name, ""))
    return isinstance(one, Leaf) and isinstance(other, Leaf) and same_bytes(one.stored, other.stored)


def _check_shape(place: Packed, x: Expr, name: str, base: Checkpoint) -> None:
    if x.shape == place.shape:
        return
    ends = {role.part for role in place.roles} & set(ENDS)
    why = "tokens were added to the base before it was trained: it has to be given their rows first" if ends else None
    what = f"{name} of the adapter is {list(x.shape)}, and {place.name} of the base {list(place.shape)}."
    raise RekindleError(what, where=base.origin.folder.named, why=why)


def _no_place(names: list[str], adapter: Checkpoint, base: Checkpoint, places: Places, lora: Lora) -> RekindleError:
    what = f"{counted(len(names), 'tensor')} of the adapter fit nothing in the base: {some(sorted(names))}."
    why = None
    for pair in lora.pairs.values():
        a, b = pair.both()
        there = [f"{place.name} is {list(place.shape)}" for place in places.of(pair)]
        if there and places.fitting(pair) is None:
            why = f"B A of {pair.module} would be {[b.shape[0], a.shape[1]]}, and {some(there)}"
            break
    where = f"{adapter.folder.named} on {base.origin.folder.named}"
    return RekindleError(what, where=where, why=why, hint="--base SRC, the model that it was trained on")


# -- what -------------------------------------------------------------------------------------------------------


def _stood_for(place: Packed, x: Expr, tensors: Mapping[Role, Expr]) -> Iterator[tuple[Role, Expr]]:
    """The roles of a tensor that the adapter holds whole: in the base's dtype, without the history of the base's."""
    for role, part in taken_apart(place, x):
        yield role, Fresh(part if part.dtype == tensors[role].dtype else Cast(part, tensors[role].dtype))


def _added(place: Packed, pair: Pair, scale: float, tensors: Mapping[Role, Expr]) -> Iterator[tuple[Role, Expr]]:
    a, b = pair.both()
    if len(place.shape) == 3:
        yield from _experts(place, a, b, scale, tensors)
        return
    runs: dict[Role, list[Expr]] = defaultdict(list)
    at = 0
    for role, lo, hi in place.pieces():
        runs[role].append(b.rows(at, at + hi - lo))
        at += hi - lo
    for role, parts in runs.items():
        yield role, LowRank(tensors[role], a, joined(parts), scale)


def _experts(
    place: Packed, a: Expr, b: Expr, scale: float, tensors: Mapping[Role, Expr]
) -> Iterator[tuple[Role, Expr]]:
    """Of a stack: expert e has the e-th run of rows of A, and every E-th column of B from its e-th on."""
    experts = place.shape[0]
    rank, ends = a.shape[0] // experts, dict.fromkeys(range(experts), 0)
    for role, lo, hi in place.pieces():
        e = role.expert
        own, at = b.rows(ends[e], ends[e] + hi - lo), np.arange(e, b.shape[1], experts)
        ends[e] += hi - lo
        yield role, LowRank(tensors[role], a.rows(e * rank, (e + 1) * rank), Chosen(own, at, axis=1), scale)


# -- one matrix for embeddings and head -------------------------------------------------------------------------


def _parts_ends(base: Checkpoint, lora: Lora) -> bool:
    """Whether an adapter changes embeddings or head, which the base has as one matrix, without the other."""
    if lora.config.get("ensure_weight_tying"):
        return False
    ends = _modules(base, (*_heads(base), base.rows[base.family.embed][0]))
    return any(module in ends for module in lora.modules())


def _without_head(base: Checkpoint, lora: Lora) -> Lora:
    """An adapter that keeps embeddings and head one has its matrices twice: those of the embeddings are enough."""
    if not (base.settings.tie_word_embeddings and lora.config.get("ensure_weight_tying")):
        return lora
    heads = _modules(base, _heads(base))
    pairs = {key: pair for key, pair in lora.pairs.items() if pair.module not in heads}
    return replace(lora, pairs=pairs, whole={n: x for n, x in lora.whole.items() if n.rpartition(".")[0] not in heads})


def _heads(base: Checkpoint) -> tuple[str, ...]:
    return base.family.names_of("head", base.settings)


def _modules(base: Checkpoint, names: Iterable[str]) -> set[str]:
    return {alias.rpartition(".")[0] for alias in other_names(base.family, base.settings, names)}


def _untied(base: Checkpoint) -> Checkpoint:
    """The base with a head of its own, equal to its embeddings, as it is with an adapter in one of the two."""
    heads = _modules(base, _heads(base))
    if beside := [name for name in base.family.copies or {} if name.rpartition(".")[0] in heads]:
        what = f"The adapter changes embeddings or head alone, and in a {base.family.model_type} they are one."
        raise RekindleError(what, where=base.origin.folder.named, why=f"{beside[0]} would be a tensor of its own then")
    child = base.as_family(base.family.model_type, tie_word_embeddings=False)
    child.tensors = dict(base.tensors)
    child.tensors |= {role: base.tensors[base.family.embed] for role in child.rows if role.part == "head"}
    return child.noting("the head is a matrix of its own: the adapter changes it, or the embeddings, alone")
