"""Which tensors of a checkpoint are made of which tensors of its sources, in few words: for the card.

Tensors of a tower that are made alike, layer by layer, stand together: "decoder, layers 0 to 5: attn.q, attn.k, ..." of
"encoder, layers 0 to 5". A tensor that is made of none is drawn, or set to one value.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence

from rekindle.anatomy import Role
from rekindle.edit.arithmetic import Normal
from rekindle.edit.checkpoint import Checkpoint
from rekindle.edit.expressions import Expr

DRAWN, SET = "drawn anew", "one value each"


def provenance(made: Checkpoint) -> dict[str, str]:
    """What of it -> what that is made of."""
    known = {key: _roles(source) for key, source in made.sources.items()}
    layers: dict[tuple[str, str], dict[int, tuple[str, str, int | None]]] = defaultdict(dict)
    for role, x in made.tensors.items():
        layers[role.tower, role.part][role.layer] = _origin(x, role, known)
    alike: dict[tuple, list[str]] = defaultdict(list)
    for (tower, part), by_layer in layers.items():
        for which, said in _by_origin(by_layer):
            alike[tower, which, said].append(part)
    return {_what(tower, which, parts): said for (tower, which, said), parts in alike.items()}


def _roles(source: Checkpoint) -> dict[str, list[Role]]:
    """The roles of each stored tensor; several of one that is packed."""
    found: dict[str, list[Role]] = defaultdict(list)
    for role, (name, _, _) in source.rows.items():
        found[name].append(role)
    return found


def _origin(x: Expr, role: Role, known: Mapping[str, Mapping[str, list[Role]]]) -> tuple[str, str, int | None]:
    """(source, which parts of it where they have another name, their layer); of none what is done instead."""
    leaves = list(x.leaves())
    if not leaves:
        return (DRAWN if _is_drawn(x) else SET, "", None)
    found = [_nearest(known[leaf.source].get(leaf.name, []), role, leaf.name) for leaf in leaves]
    first, *others = dict.fromkeys(one.part for one in found)
    group, _, last = first.partition(".")
    if others:
        other = ", ".join((first, *others))
    elif first == role.part:
        other = ""
    else:  # as `attn`, where all of its parts have a like
        other = group if last and last == role.part.partition(".")[2] else first
    return leaves[0].source or "source", other, found[0].layer


def _nearest(roles: Sequence[Role], like: Role, name: str) -> Role:
    same = [one for one in roles if one.part == like.part]
    end = [one for one in roles if one.part.partition(".")[2] == like.part.partition(".")[2]]
    return next(iter([*same, *end, *roles]), Role(name))


def _is_drawn(x: Expr) -> bool:
    return isinstance(x, Normal) or any(_is_drawn(child) for child in x.children())


def _by_origin(by_layer: Mapping[int, tuple[str, str, int | None]]) -> Iterator[tuple[tuple[int, ...], str]]:
    """Layers whose tensor comes from one source in one way, and how that is said."""
    groups: dict[tuple[str, str], list[tuple[int, int | None]]] = defaultdict(list)
    for layer, (source, other, of) in by_layer.items():
        groups[source, other].append((layer, of))
    for (source, other), pairs in groups.items():
        which = tuple(layer for layer, _ in pairs)
        of = [layer for _, layer in pairs if layer is not None and layer >= 0]
        yield which, ", ".join(part for part in (source, _layers(of), other and f"its {other}") if part)


def _what(tower: str, which: tuple[int, ...], parts: Sequence[str]) -> str:
    where = ", ".join(part for part in (tower, _layers([layer for layer in which if layer >= 0])) if part)
    return f"{where}: {', '.join(parts)}" if where else ", ".join(parts)


def _layers(numbers: Sequence[int]) -> str:
    if not numbers:
        return ""
    if len(numbers) == 1:
        return f"layer {numbers[0]}"
    if list(numbers) == list(range(numbers[0], numbers[-1] + 1)):
        return f"layers {numbers[0]} to {numbers[-1]}"
    return f"layers {', '.join(map(str, numbers))}"
