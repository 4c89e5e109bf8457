"""Which tensors of a checkpoint are Adam's moments, and of which weights."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Any

from rekindle.anatomy.adam import Adam, Key, Shape, adams_in, deal, parameters_of
from rekindle.codec.layout import FIRST, pairs
from rekindle.codec.source import Source, Torch
from rekindle.store.torch_file import View, named


@dataclass(frozen=True)
class Moments:
    """By position; `weight` is None where it is not known for sure which it is."""

    weight: int | None
    first: int
    second: int


def moments_of(source: Source) -> list[Moments]:
    """All first and second moments of one shape. A weight is told by its name, or by the order of a torch optimizer."""
    at = {tensor.key: i for i, tensor in enumerate(source.tensors)}
    dealt = {first: weight for torch in source.torch for first, weight in _dealt(source, torch, at)}
    found, taken = [], set()
    for first, second in pairs(source.tensors).items():
        weight = dealt.get(first, at.get(source.tensors[first].key.removesuffix(FIRST)))
        if weight in taken or (weight is not None and source.tensors[weight].shape != source.tensors[first].shape):
            weight = None
        taken |= {weight} - {None}
        found.append(Moments(weight, first, second))
    return found


def _dealt(source: Source, torch: Torch, at: Mapping[str, int]) -> Iterator[tuple[int, int]]:
    """First moment and weight of the optimizer in a file of torch's: all of it, or one entry beside the model."""
    tree = torch.content.tree
    entries = list(tree.values()) if isinstance(tree, dict) else []
    for adam in adams_in(tree):
        for weights in _weights(source, torch, entries, adam, at):
            for number, weight in weights.items():
                first = torch.tensor(adam.moment(number, 0))
                if first is not None:
                    yield first, weight


def _weights(
    source: Source, torch: Torch, entries: list[Any], adam: Adam, at: Mapping[str, int]
) -> Iterator[dict[Key, int]]:
    """Number -> weight, from the first that can tell: the rest of its file, pytorch_model.bin beside it, the class."""
    folder = PurePosixPath(torch.path).parent
    beside = [other for other in source.torch if other.path == str(folder / "pytorch_model.bin")]
    for tables in ([(torch, entry) for entry in entries], [(other, other.content.tree) for other in beside]):
        found = []
        for file, table in tables:
            known = _parameters(table)
            if known and (names := deal(adam, {name: view.shape for name, view in known.items()})):
                found.append({i: w for i, name in names.items() if (w := file.tensor(known[name])) is not None})
        if found:
            yield from found if len(found) == 1 else ()  # an average beside the model: which of them is not told
            return
    shapes = _by_class(source, folder)
    if shapes and (names := deal(adam, shapes)):
        yield {i: w for i, name in names.items() if (w := at.get(name)) is not None}


def _parameters(table: Any) -> dict[str, View]:
    """A state_dict without what is tied: parameters in the model's order, and its buffers."""
    if not isinstance(table, dict) or not table or not all(isinstance(x, View) for x in table.values()):
        return {}
    once: dict[tuple[Any, ...], str] = {}
    for name, view in named(table):
        once.setdefault((view.storage, view.start, view.shape), name)
    return {name: table[name] for name in once.values() if name in table}


def _by_class(source: Source, folder: PurePosixPath) -> dict[str, Shape] | None:
    path = str(folder / "config.json")
    for file in source.files:
        if file.path == path:
            try:
                config = json.loads(source.read(file.first, 0, source.tensors[file.first].nbytes))
            except ValueError:
                return None
            return parameters_of(config) if isinstance(config, dict) else None
    return None
