"""A checkpoint over a folder's bytes: every role of the family's table found, in whatever layout the file has."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Set
from dataclasses import replace
from pathlib import Path

from rekindle.anatomy import (
    OPAQUE,
    Family,
    Nameless,
    Packed,
    Role,
    Settings,
    UnknownFamily,
    family_of,
    nameless,
    packs,
    stacks,
)
from rekindle.edit.as_loaded import as_loaded, half_wrapped, refuse_adapters, refuse_codes, unwrapped
from rekindle.edit.checkpoint import Checkpoint
from rekindle.edit.expressions import Expr, Leaf
from rekindle.edit.joining import joined
from rekindle.errors import RekindleError, some, together
from rekindle.store.dtypes import FROM_TORCH, nbytes
from rekindle.store.files import Files
from rekindle.store.folder import Folder, open_folder
from rekindle.store.header import Stored
from rekindle.store.legacy import Held
from rekindle.store.passengers import left_behind
from rekindle.store.weights import Tensors

WHOLE = {"BOOL", "U8", "I8", "U16", "I16", "U32", "I32", "U64", "I64"}  # dtypes of codes, ids and masks
GONE = Stored("", "", (), 0, 0)  # stands for a tensor of a shard that is lost
COMPARED = 1 << 22  # bytes of two tensors compared at once
NUMBER = re.compile(r"(?<=\.)\d+(?=\.)")  # of a layer, or an expert, in a tensor's name


def checkpoint_at(path: str | Path) -> Checkpoint:
    """The checkpoint in a local folder."""
    return open_checkpoint(open_folder(path))


def open_checkpoint(folder: Folder) -> Checkpoint:
    """A checkpoint over a folder's bytes; raises RekindleError with every tensor missing, extra or misshaped.

    Its `folder` has the config as transformers takes it with these weights, see `as_loaded`. Of a folder opened without
    some shards, whatever is missing stands in it as a tensor of the first of them.
    """
    known = as_loaded(folder)
    family = _family(known)
    if isinstance(family, Nameless):
        return _by_names_alone(folder, family)
    folder = _with_class(_as_read(known, family), family)
    settings = family.settings(folder.config)
    child = Checkpoint(family, settings, dict(folder.config), {}, folder, list(folder.notes))
    problems: list[RekindleError] = []
    packed = packs(child.rows.items(), settings)
    if folder.bare:
        child.folder = folder = replace(folder, tensors=_as_configured(child, packed))
    names, known = dict(folder.tensors) | dict.fromkeys(folder.lost, GONE), {name for name, _, _ in child.rows.values()}
    if not names.keys() <= known:
        refuse_adapters(names, folder)
        stacked = stacks(family, settings)
        known = known.union((stack.name for stack in stacked), family.names_of("head", settings))
        names = _by_known_names(child, names, known, problems)
        packed += stacked if any(stack.name in names for stack in stacked) else []
    gone = {name for name in names if names[name] is GONE}
    names = {name: stored for name, stored in names.items() if name not in gone}
    child = _tied_as_stored(child, names, gone)
    _fill(child, names, packed, problems, gone)
    _account_for(child, gone - {pack.name for pack in packed}, problems)
    for name in names:
        if _unread(name, family, child.settings, folder.config) or _is_copy(name, child):
            child.unused.append(name)
        elif (role := family.opaque_role(name)) is not None:
            child.tensors[role] = Leaf(name, names[name])
        else:
            problems.append(RekindleError(f"{family.model_type} has no tensor {name}.", where=folder.path))
    if problems:
        raise _cause(child, problems, names) or together(problems)
    if child.config | family.generating(child.settings) != child.config:
        child.notes += family.remarks(child.settings)
    if left := [] if child.folder.bare else left_behind(child.folder.path, child.folder.config):
        child.notes.append(f"not taken along, since nothing that is names it: {some(left, most=8)}")
    return child


def _family(folder: Folder) -> Family:
    """The table of its config, or none: then its tensors are known by their names alone."""
    try:
        return family_of(folder.config)
    except UnknownFamily as error:
        if folder.bare or folder.without:
            raise
        return nameless(folder.config, error)


def _by_names_alone(folder: Folder, family: Nameless) -> Checkpoint:
    """A folder of a class that no table knows: its config as it is, code of its own included, tensors by name."""
    refuse_adapters(folder.tensors, folder)
    note = f"{family.name}: no table knows this class; its tensors are known by their names alone"
    child = Checkpoint(family, family.settings(folder.config), dict(folder.config), {}, folder, [*folder.notes, note])
    for name, stored in folder.tensors.items():
        child.tensors[Role(OPAQUE + name)] = Leaf(name, stored)
    return child


def _as_read(folder: Folder, family: Family) -> Folder:
    """The folder with a config that transformers' class of this family takes, where only the spelling is in its way."""
    config, notes = family.mended(folder.config), folder.notes
    pad, rows = config.get("pad_token_id"), family.value(config, "vocab_size")
    if type(pad) is int and type(rows) is int and not -rows <= pad < rows:
        config["pad_token_id"] = None
        notes = (*notes, f"pad_token_id {pad} is beyond the {rows} rows of the embeddings: it is left out")
    for key in ("bos_token_id", "eos_token_id"):
        ids = config.get(key)
        beyond = [
            i
            for i in (ids if isinstance(ids, list) else [ids])
            if type(i) is int and type(rows) is int and not 0 <= i < rows
        ]
        if beyond:
            notes = (
                *notes,
                f"{key} {beyond[0]} is no row of the {rows} of the embeddings: text that holds it is refused",
            )
    return replace(folder, config=config, notes=notes)


def _with_class(folder: Folder, family: Family) -> Folder:
    """A config that names no class, of a family with several, gets the one whose tensors are there."""
    if len(family.classes) == 1 or folder.config.get("architectures") or folder.bare:
        return folder
    there = {name.removeprefix(family.prefix) for name in folder.tensors}
    for output, own in family.classes.items():
        settings = replace(family.settings(folder.config | {"architectures": [own]}), output=output)
        rows = [row for row in family.top if not (row.part == "head" and settings.tie_word_embeddings)]
        names = {name for row in rows for name in family.names_of(row.part, settings)}
        if {name.removeprefix(family.prefix) for name in names} <= there:
            note = f"the config names no class: by its tensors this is {own}"
            return replace(folder, config=folder.config | {"architectures": [own]}, notes=(*folder.notes, note))
    return folder


def _tied_as_stored(child: Checkpoint, names: Tensors, gone: Set[str]) -> Checkpoint:
    """A tied model may store its one matrix as the head; and one that stores two different ones is not tied.

    As transformers has it (5.23, `tie_weights`), whatever the config says; of some families the weights alone say it.
    """
    family, settings = child.family, child.settings
    if family.reads_images:
        return child
    embed = child.rows[family.embed][0]
    head = next((name for name in family.names_of("head", settings) if name in names), None)
    for copy, of in (family.copies or {}).items():
        if of == embed and embed not in names and copy in names:
            names[embed] = names.pop(copy)
    if family.tied == "config" and (not settings.tie_word_embeddings or head is None):
        return child
    if family.tied != "config" and {embed, *family.names_of("head", settings)} & gone:
        return child  # as the config has it: which of the two there were cannot be seen
    if head is not None and embed not in names:
        names[embed] = names.pop(head)
        head = None
    if head is not None and names[head].shape != names[embed].shape:
        raise _misshapen(head, names[head].shape, names[embed].shape)
    tied = head is None or same_bytes(names[head], names[embed])
    if tied == settings.tie_word_embeddings:
        return child
    differs = f"{head} is stored and differs from {embed}: they are two matrices"
    what = f"there is no head of its own: it is {embed}" if tied else differs
    note = f"{what}, as in transformers, whatever tie_word_embeddings in config.json says"
    config = child.folder.config | {"tie_word_embeddings": tied}
    if family.towers:
        towers = {name: replace(tower, tie_word_embeddings=tied) for name, tower in settings.towers.items()}
        config = family.config(replace(settings, tie_word_embeddings=tied, towers=towers), config, family)
    folder = replace(child.folder, config=config)
    return Checkpoint(family, family.settings(config), dict(config), {}, folder, [*child.notes, note])


def same_bytes(one: Stored | Held, other: Stored | Held) -> bool:
    """Whether two tensors hold the same bytes; reads them, up to the first difference."""
    if one.dtype != other.dtype:
        return False
    a, b = Leaf("", one), Leaf("", other)
    rows = max(1, COMPARED // max(1, a.nbytes // max(1, a.num_rows)))
    with Files() as files:
        return all(
            a.raw(lo, min(lo + rows, a.num_rows), files).tobytes()
            == b.raw(lo, min(lo + rows, a.num_rows), files).tobytes()
            for lo in range(0, a.num_rows, rows)
        )


def _cause(child: Checkpoint, problems: list[RekindleError], unknown: Tensors) -> RekindleError | None:
    """What lies behind tensors that are missing or unknown, where that is clear: no head, another class, codes."""
    refuse_codes(unknown, child.folder)
    missing = {name for role, (name, _, _) in child.rows.items() if role not in child.tensors}
    if before := half_wrapped(unknown, missing):
        what = f"{len(missing)} of {len(child.folder.tensors)} names begin with {before!r}, and the others do not."
        why = f"without it they are those that the model lacks: {min(missing)} for one"
        raise RekindleError(what, where=child.folder.path, why=why, hint="this model's tensors alone, by its own names")
    family, named = child.family, (child.config.get("architectures") or [None])[0]
    known = list(family.classes.values())
    headless = f"The {Role('head')} is missing."
    if [problem.what for problem in problems] == [headless]:
        class_ = f" ({named})" if named and named not in known else ""
        head = " or ".join(family.names_of("head", child.settings))
        return RekindleError(
            f"This is a base model{class_}, without a language-model head: there is no {head}, and its config does "
            "not tie one to the embeddings.",
            where=child.folder.path,
            hint='the model with its head; or "tie_word_embeddings": true in config.json, if the embeddings are it',
        )
    if named is None or named in known:
        return None
    return RekindleError(
        f"This is a {named}; of {family.model_type}, {' and '.join(known)} {'is' if len(known) == 1 else 'are'} known.",
        where=f"config.json: architectures, in {child.folder.path}",
        why=problems[0].what,
        hint=f"the {family.model_type} that it was made from",
    )


def _as_configured(child: Checkpoint, packed: list[Packed]) -> Tensors:
    """The tensors that a config alone speaks of: no bytes, but names, shapes and one dtype for all."""
    configured = child.config.get("torch_dtype") or child.config.get("dtype")
    dtype = FROM_TORCH[configured or "float32"]
    in_packs = {role for pack in packed for role in pack.roles}
    shapes = {pack.name: pack.shape for pack in packed}
    shapes |= {name: shape for role, (name, shape, _) in child.rows.items() if role not in in_packs}
    path = str(child.folder.path)
    return {name: Stored(path, dtype, shape, 0, nbytes(dtype, shape)) for name, shape in shapes.items()}


def _fill(
    child: Checkpoint, names: Tensors, packed: list[Packed], problems: list[RekindleError], gone: Set[str]
) -> None:
    """Give every role its expression, taking what it is made of out of `names`."""
    lost = _lost(child.folder, gone) if child.folder.without else lambda name, shape: None
    for pack in packed:
        stored = names.pop(pack.name, None) or lost(pack.name, pack.shape)
        if stored is None or stored.shape != pack.shape:
            problems.append(_misshapen(pack.name, stored.shape if stored else None, pack.shape))
        else:
            child.tensors |= taken_apart(pack, Leaf(pack.name, stored))
    in_packs = {role for pack in packed for role in pack.roles}
    for role, (name, shape, _) in child.rows.items():
        if role in in_packs:
            continue
        stored = names.pop(name, None) or lost(name, shape)
        if stored is None:
            problems.append(RekindleError(f"The {role} is missing.", where=f"{name} in {child.folder.path}"))
        elif stored.shape != shape:
            problems.append(_misshapen(name, stored.shape, shape))
        elif stored.dtype in WHOLE:
            problems.append(RekindleError(f"{name} is {stored.dtype}: whole numbers, not weights.", where=stored.path))
        else:
            child.tensors[role] = Leaf(name, stored)


def _lost(folder: Folder, gone: Set[str]) -> Callable[[str, tuple[int, ...]], Stored | None]:
    """What stands for a tensor of a shard that is gone: its dtype is that of its like in another layer, or of most.

    Where no index says what was in it, that is whatever is missing.
    """
    found = Counter(stored.dtype for stored in folder.tensors.values() if stored.dtype not in WHOLE)
    usual, like = found.most_common(1)[0][0], {NUMBER.sub("#", n): x.dtype for n, x in folder.tensors.items()}
    path = str(folder.path / min(folder.without))

    def of(name: str, shape: tuple[int, ...]) -> Stored | None:
        if folder.lost and name not in gone:
            return None
        dtype = like.get(NUMBER.sub("#", name), usual)
        return Stored(path, dtype, shape, 0, nbytes(dtype, shape))

    return of


def _account_for(child: Checkpoint, gone: Set[str], problems: list[RekindleError]) -> None:
    """Note, or add to the problems, what is lost and has no row of the table."""
    family, settings = child.family, child.settings
    for name in sorted(gone - {name for name, _, _ in child.rows.values()}):
        if name in family.names_of("head", settings) and settings.tie_word_embeddings:
            child.notes.append(f"{name} was stored and is lost: it is the embeddings, as config.json says")
        elif not (_unread(name, family, settings, child.folder.config) or name in (family.copies or {})):
            why = "no table names it: its shape is not known"
            problems.append(RekindleError(f"{name} is lost.", where=child.folder.path, why=why))


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


def _by_known_names(child: Checkpoint, tensors: Tensors, known: set[str], problems: list[RekindleError]) -> Tensors:
    """The same under the table's names.

    A file may lack the base model's prefix, or use the names of memory; a wrapper may have put its own before all.
    """
    family, aliases = child.family, other_names(child.family, child.settings, known)
    if found := unwrapped(tensors, aliases):
        without, part = found
        changed = sum(name != own for name, own in without.items())
        whose = "every tensor's name carries" if changed == len(tensors) else f"the names of {changed} tensors carry"
        if len(set(without.values())) < len(without):
            twice = next(name for name, n in Counter(without.values()).items() if n > 1)
            raise RekindleError(
                f"{twice} is there twice, with {part!r} in its name and without.", where=child.folder.path
            )
        tensors = {without[name]: tensor for name, tensor in tensors.items()}
        child.notes.append(f"{whose} {part!r}, of a wrapper: they are read without it")
        child.folder = replace(child.folder, native=False)
    names: dict[str, str] = {}
    for name in tensors:
        own = name
        for old, new in (family.older or {}).items():
            own = own.replace(old, new)
        own = aliases.get(own, own)
        if own in names:
            problems.append(RekindleError(f"{name} and {names[own]} are the same tensor."))
        names[own] = name
    return {own: tensors[name] for own, name in names.items()}


def other_names(family: Family, settings: Settings, known: Iterable[str]) -> dict[str, str]:
    """Every name that a tensor may have, in a file or in memory -> its name among those `known`."""
    known, names = list(known), {}
    for name in known:
        for disk, memory in (family.runtime or {}).items():
            names[name.replace(disk, memory)] = name
        names[name.removeprefix(family.prefix)] = name
        if settings.output == "none":
            names[family.prefix + name] = name
    return names | {name: name for name in known}


def _unread(name: str, family: Family, settings: Settings, config: dict) -> bool:
    """Whether the library would read past this tensor."""
    if name.endswith(family.ignorable):
        return True
    if settings.tie_word_embeddings and name in {row.name for row in family.top if row.part == "head"}:
        return True
    extra = family.extra_layers and family.value(config, family.extra_layers) or 0
    beyond = range(settings.num_layers, settings.num_layers + extra)
    return name.startswith(tuple(f"{family.prefix}layers.{layer}." for layer in beyond))


def _is_copy(name: str, child: Checkpoint) -> bool:
    """Whether this is another tensor again, as it is for the library; raises RekindleError where it differs."""
    of = (child.family.copies or {}).get(name)
    if of is None or of not in child.folder.tensors:
        return of is not None and of in child.folder.lost
    if same_bytes(child.folder.tensors[name], child.folder.tensors[of]):
        return True
    what = f"{name} differs from {of}: a {child.family.model_type} with two matrices there is not known."
    raise RekindleError(what, where=child.folder.path, why="transformers would keep the two apart")


def _misshapen(name: str, found: tuple[int, ...] | None, expected: tuple[int, ...]) -> RekindleError:
    if found is None:
        return RekindleError(f"{name} is missing.")
    return RekindleError(f"{name} is {list(found)}, but the config says {list(expected)}.", where=name)
