"""Repair: a checkpoint that has lost some of its tensors is whole again, out of what is left of it or out of another.

neighbours  each lost layer is the average of two others (CheckFree). k lost layers in a row are made of the k before
            them and the k after them, the first of the first ones and so on, as a stage of a pipeline is of the stages
            beside it; where one side has no k layers of their kind that are left, of the other side alone; where
            neither has, each of the nearest layers of its kind before and behind.
copy        of the layers before them, where there are as many, else of those behind.
SRC2        the lost tensors as another checkpoint of the same shape has them: an earlier step of the run, its base.

What is lost is a shard that is missing or broken, with all tensors that its index places there, or layers that nobody
wants any more. A layer that has lost some of its tensors keeps the others. What belongs to no layer (embeddings, the
last norm, the head) has no neighbours: that takes SRC2.

Preserves the function nowhere: what a lost tensor held is gone, and training has to make it good. All else is copied.

Departures: on disk nobody knows the norms of gradients that CheckFree weighs neighbours by, so both weigh the same, as
they do in the authors' code wherever both were clipped. `train --recover checkfree` applies this very expression with
the norms of its last step. Ends are copied from the inside, as CheckFree+ copies them.

Adam's moments: those of what was lost start empty, as in the paper's code; all others are kept.

Source: "All is Not Lost: LLM Recovery without Checkpoints", arXiv 2506.15461, section 4 and algorithm 1.

n layers   k of them lost in a row
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import NamedTuple

from rekindle.anatomy import Role
from rekindle.config import option
from rekindle.edit import Checkpoint, Expr, lossy, united
from rekindle.edit.arithmetic import Fresh
from rekindle.edit.combine import linear
from rekindle.errors import RekindleError, counted, nearest, some, together
from rekindle.methods.merging.alike import check_alike

WAYS = ("neighbours", "copy")
SHARD = "shard:"
DEEPEST = 10_000  # layers


@dataclass(frozen=True, kw_only=True)
class Config:
    lost: str = option(help="layers:3,8-11 (of two towers encoder.layers:3), shard:FILE, or several, with commas")
    from_: str = option("neighbours", help="neighbours: the average of layers before and behind; copy; or SRC2")


class Lost(NamedTuple):
    """What an option names: files of weights, and (tower, layer) where that has one."""

    files: tuple[str, ...]
    layers: tuple[tuple[str, int], ...]


def repair(parent: Checkpoint, config: Config) -> Checkpoint:
    lost = _roles(parent, config.lost)
    parent = parent.derive(config=parent.family.config(parent.settings, parent.config, parent.family))  # as all read it
    if not lost:
        raise RekindleError(f"Nothing of the model is lost by --lost {config.lost}.", hint="layers:8-11 or shard:FILE")
    if config.from_ not in WAYS:
        return _of_another(parent, _other(parent, config.from_), lost)
    _check_in_layers(lost)
    child, problems = parent.derive(tensors=dict(parent.tensors)), []
    gone = set(lost)
    left = {role: x for role, x in parent.tensors.items() if role not in gone}
    for run in _runs(lost):
        found = _sources(parent, left, run, config.from_)
        for layer, sources in found.items():
            for role in run.lost[layer]:
                xs = [left[role._replace(layer=source)] for source in sources]
                child.tensors[role] = stand_in(xs, [1 / len(xs)] * len(xs)) if xs else child.tensors[role]
        if alone := [str(layer) for layer, sources in found.items() if not sources]:
            what = f"No layer that is left has what layer {some(alone)}{_of(run)} has lost."
            problems.append(RekindleError(what, hint="--from SRC2, another checkpoint of this shape"))
        child.noting(*_notes(parent, run, found))
    if problems:
        raise together(problems)
    return child.promising(lossy(f"{counted(len(lost), 'tensor')} of it made of those of other layers"))


def stand_in(xs: Sequence[Expr], shares: Sequence[float]) -> Expr:
    """What a lost tensor is made of: sum_i shares_i xs_i (equation of section 4), as a tensor that is new."""
    return Fresh(linear(xs, shares))


def _other(parent: Checkpoint, name: str) -> Checkpoint:
    if name in parent.beside:
        return parent.beside[name]
    what = f"from is {name!r}, and no model beside this one is called so."
    raise RekindleError(what, hint=f"{' or '.join(WAYS)}; in a recipe, of: [this one, the other], from: the other")


def _of_another(parent: Checkpoint, other: Checkpoint, lost: Sequence[Role]) -> Checkpoint:
    there = {role: x for role in lost if (x := other.tensors.get(role)) is not None}
    check_alike({"one": parent.derive(tensors=dict(parent.tensors) | there), "other": other})
    child = united([parent, other], like=parent)
    child.tensors = dict(parent.tensors) | {role: Fresh(x) for role, x in there.items()}
    return child.promising(lossy(f"{counted(len(lost), 'tensor')} of it those of {other.origin.folder.named}"))


# -- what is lost ------------------------------------------------------------------------------------------------


def named(text: str) -> Lost:
    """What `--lost` says; raises RekindleError where it says nothing that can be lost."""
    files: list[str] = []
    layers: list[tuple[str, int]] = []
    tower: str | None = None
    for word in text.split(","):
        if word.startswith(SHARD):
            files.append(word.removeprefix(SHARD))
            tower = None
            continue
        before, colon, numbers = word.rpartition(":")
        if colon:
            tower = before.removesuffix("layers").removesuffix(".") if before.endswith("layers") else None
        first, dash, last = numbers.partition("-")
        if tower is None or not first.isdecimal() or (dash and not (last.isdecimal() and int(first) <= int(last))):
            raise RekindleError(f"--lost {text!r} names nothing that can be lost.", hint="layers:8-11 or shard:FILE")
        if int(last or first) > DEEPEST:
            raise RekindleError(f"--lost {text!r} names layers that no model has.", hint="layers:8-11")
        layers += [(tower, layer) for layer in range(int(first), int(last or first) + 1)]
    return Lost(tuple(files), tuple(layers))


def _roles(parent: Checkpoint, text: str) -> list[Role]:
    """The tensors that are lost, in the table's order."""
    lost = named(text)
    _check_files(parent, lost)
    _check_layers(parent, lost)
    files, layers = set(lost.files), set(lost.layers)
    return [
        role
        for role, x in parent.tensors.items()
        if (role.tower, role.layer) in layers
        or (files and any(Path(leaf.stored.path).name in files for leaf in x.leaves()))
    ]


def _check_files(parent: Checkpoint, lost: Lost) -> None:
    folder = parent.origin.folder
    there = {path.name for path in folder.shards} | folder.without
    if unknown := [file for file in lost.files if file not in there]:
        hint = nearest(unknown[0], there) or some(sorted(there))
        raise RekindleError(f"{folder.named} has no shard {unknown[0]}.", hint=hint)


def _check_in_layers(lost: Sequence[Role]) -> None:
    if without := [str(role) for role in lost if role.layer < 0]:
        what = f"{some(without)} {'is' if len(without) == 1 else 'are'} lost, and no layer has the like."
        raise RekindleError(what, hint="--from SRC2, another checkpoint of this shape")


def _check_layers(parent: Checkpoint, lost: Lost) -> None:
    s = parent.settings
    depths = {tower: own.num_layers for tower, own in s.towers.items()} if s.towers else {"": s.num_layers}
    for tower, layer in lost.layers:
        if tower not in depths:
            what = f"This {parent.family.name} has {' and '.join(depths) if s.towers else 'no'} towers: which is meant?"
            hint = f"{next(iter(depths))}.layers:{layer}" if s.towers else f"layers:{layer}"
            raise RekindleError(what, hint=f"--lost {hint}")
        if layer >= depths[tower]:
            what = f"There is no layer {layer}: there are {depths[tower]}, from 0 on."
            raise RekindleError(what, hint=f"--lost layers:{depths[tower] - 1}, the last")


# -- what it is made of ------------------------------------------------------------------------------------------


class Run(NamedTuple):
    """Layers of a tower that follow one another, and what each has lost."""

    tower: str
    lost: dict[int, list[Role]]


def _runs(lost: Sequence[Role]) -> Iterator[Run]:
    found: dict[tuple[str, int], list[Role]] = {}
    for role in lost:
        found.setdefault((role.tower, role.layer), []).append(role)
    numbered = enumerate(sorted(found))
    for (tower, _), group in groupby(numbered, lambda one: (one[1][0], one[1][1] - one[0])):
        layers = [layer for _, (_, layer) in group]
        yield Run(tower, {layer: found[tower, layer] for layer in layers})


def _sources(parent: Checkpoint, left: Mapping[Role, Expr], run: Run, way: str) -> dict[int, list[int]]:
    """The layers that each lost layer is made of: none where there is no other of its kind."""

    def serves(layer: int, other: int) -> bool:
        found = [(left.get(role._replace(layer=other)), parent.tensors[role].shape) for role in run.lost[layer]]
        return other >= 0 and all(x is not None and x.shape == shape for x, shape in found)

    first, last, k = min(run.lost), max(run.lost), len(run.lost)
    most = 2 if way == "neighbours" else 1
    if shifts := [shift for shift in (-k, k) if all(serves(layer, layer + shift) for layer in run.lost)]:
        return {layer: [layer + shift for shift in shifts[:most]] for layer in run.lost}
    sides = range(first - 1, -1, -1), range(last + 1, max(role.layer for role in parent.tensors) + 1)
    near = {layer: [next((one for one in side if serves(layer, one)), -1) for side in sides] for layer in run.lost}
    return {layer: [one for one in found if one >= 0][:most] for layer, found in near.items()}


def _of(run: Run) -> str:
    return f" of the {run.tower}" if run.tower else ""


def _notes(parent: Checkpoint, run: Run, found: Mapping[int, Sequence[int]]) -> Iterator[str]:
    made = [f"{layer} of {' and '.join(map(str, sources))}" for layer, sources in found.items()]
    yield f"layers{_of(run)} that are made of others: {some(made, most=8)}"
    whole = parent.by_layer if not run.tower else parent.tower(run.tower).by_layer
    if partly := [layer for layer in found if len(run.lost[layer]) < len(whole[layer])]:
        yield f"what else is in layer {some(list(map(str, partly)))}{_of(run)} is kept"
    windows = (parent.settings.towers[run.tower] if run.tower else parent.settings).windows
    if unlike := [layer for layer, sources in found.items() if any(windows[layer] != windows[at] for at in sources)]:
        yield f"layer {some(list(map(str, unlike)))}{_of(run)} keeps its attention window, which its sources lack"
