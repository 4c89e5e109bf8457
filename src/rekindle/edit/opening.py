"""A checkpoint over a folder's bytes: every role of the family's table found, in whatever layout the file has."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from rekindle.anatomy import Family, Packed, Role, Settings, family_of, packs, stacks
from rekindle.edit.checkpoint import Checkpoint
from rekindle.edit.expressions import Expr, Leaf, joined
from rekindle.errors import RekindleError, together
from rekindle.store.dtypes import TORCH, nbytes
from rekindle.store.folder import Folder
from rekindle.store.header import Stored
from rekindle.store.legacy import Held

Tensors = dict[str, Stored | Held]


def open_checkpoint(folder: Folder) -> Checkpoint:
    """A checkpoint over a folder's bytes; raises RekindleError with every tensor missing, extra or misshaped."""
    family = family_of(folder.config)
    settings = family.settings(folder.config)
    notes = [folder.notice] if folder.notice else []
    child = Checkpoint(family, settings, dict(folder.config), {}, folder, notes)
    problems: list[RekindleError] = []
    packed = packs(child.rows.items(), settings)
    if folder.bare:
        child.folder = folder = replace(folder, tensors=_as_configured(child, packed))
    names, known = dict(folder.tensors), {name for name, _, _ in child.rows.values()}
    if not names.keys() <= known:
        stacked = stacks(family, settings)
        names = _by_known_names(names, family, known.union(stack.name for stack in stacked), problems)
        packed += stacked if any(stack.name in names for stack in stacked) else []
    _fill(child, names, packed, problems)
    for name in names:
        if _unread(name, family, settings, folder.config):
            child.unused.append(name)
        else:
            problems.append(RekindleError(f"{family.model_type} has no tensor {name}.", where=folder.path))
    if problems:
        raise together(problems)
    return child


def _as_configured(child: Checkpoint, packed: list[Packed]) -> Tensors:
    """The tensors that a config alone speaks of: no bytes, but names, shapes and one dtype for all."""
    configured = child.config.get("torch_dtype") or child.config.get("dtype")
    dtype = {torch: name for name, torch in TORCH.items()}.get(configured or "float32")
    if dtype is None:
        raise RekindleError(f"The config's dtype {configured!r} is not known.", where="config.json: torch_dtype")
    in_packs = {role for pack in packed for role in pack.roles}
    shapes = {pack.name: pack.shape for pack in packed}
    shapes |= {name: shape for role, (name, shape, _) in child.rows.items() if role not in in_packs}
    path = str(child.folder.path)
    return {name: Stored(path, dtype, shape, 0, nbytes(dtype, shape)) for name, shape in shapes.items()}


def _fill(child: Checkpoint, names: Tensors, packed: list[Packed], problems: list[RekindleError]) -> None:
    """Give every role its expression, taking what it is made of out of `names`."""
    for pack in packed:
        stored = names.pop(pack.name, None)
        if stored is None or stored.shape != pack.shape:
            problems.append(_misshapen(pack.name, stored.shape if stored else None, pack.shape))
        else:
            child.tensors |= taken_apart(pack, Leaf(pack.name, stored))
    in_packs = {role for pack in packed for role in pack.roles}
    for role, (name, shape, _) in child.rows.items():
        if role in in_packs:
            continue
        stored = names.pop(name, None)
        if stored is None:
            problems.append(RekindleError(f"The {role} is missing.", where=f"{name} in {child.folder.path}"))
        elif stored.shape != shape:
            problems.append(_misshapen(name, stored.shape, shape))
        else:
            child.tensors[role] = Leaf(name, stored)


def taken_apart(pack: Packed, x: Expr) -> Iterator[tuple[Role, Expr]]:
    """The roles in a packed tensor; planning puts them together again."""
    x = x.transposed() if pack.transposed else x
    runs: dict[Role, list[Expr]] = {role: [] for role in pack.roles}
    at = 0
    for role, lo, hi in pack.pieces():
        runs[role].append(x.rows(at, at + hi - lo))
        at += hi - lo
    for role, parts in runs.items():
        yield role, joined(parts, pack.roles[role])


def _by_known_names(tensors: Tensors, family: Family, known: set[str], problems: list[RekindleError]) -> Tensors:
    """The same under the table's names: a file may lack the base model's prefix, or use the names of memory."""
    aliases: dict[str, str] = {}
    for name in known:
        for disk, memory in (family.runtime or {}).items():
            aliases[name.replace(disk, memory)] = name
        aliases[name.removeprefix(family.prefix)] = name
        aliases[family.prefix + name] = name
    names: dict[str, str] = {}
    for name in tensors:
        own = name
        for old, new in (family.older or {}).items():
            own = own.replace(old, new)
        own = own if own in known else aliases.get(own, own)
        if own in names:
            problems.append(RekindleError(f"{name} and {names[own]} are the same tensor."))
        names[own] = name
    return {own: tensors[name] for own, name in names.items()}


def _unread(name: str, family: Family, settings: Settings, config: dict) -> bool:
    """Whether the library would read past this tensor."""
    if name.endswith(family.ignorable):
        return True
    if settings.tie_word_embeddings and name in {row.name for row in family.top if row.part == "head"}:
        return True
    extra = family.extra_layers and family.value(config, family.extra_layers) or 0
    beyond = range(settings.num_layers, settings.num_layers + extra)
    return name.startswith(tuple(f"{family.prefix}layers.{layer}." for layer in beyond))


def _misshapen(name: str, found: tuple[int, ...] | None, expected: tuple[int, ...]) -> RekindleError:
    if found is None:
        return RekindleError(f"{name} is missing.")
    return RekindleError(f"{name} is {list(found)}, but the config says {list(expected)}.", where=name)
