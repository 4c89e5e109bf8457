"""Checkpoints brought to one vocabulary: the rows of embeddings and head are found by token, not by number.

same    all have the same tokens under the same numbers, and as many rows
base    the first one's tokens and rows; a row of another source is that of the same token there, and the first one's
        where it lacks the token
union   the first one's tokens, then those added tokens that only others have, in order of source, then number. Where
        a source lacks a token its row is the mean over those that have it, by their weights, rounded

Rows beyond the tokens of the first one are padding, and stay its own. Only tensors whose rows a table counts by the
vocabulary are touched: embeddings, heads, a head's bias.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from rekindle.anatomy import Role
from rekindle.anatomy.settings import meaning
from rekindle.edit.arithmetic import Fill
from rekindle.edit.checkpoint import Checkpoint
from rekindle.edit.choose import Chosen
from rekindle.edit.combine import linear
from rekindle.edit.expressions import Expr
from rekindle.edit.joining import joined
from rekindle.errors import RekindleError, counted, some
from rekindle.store.vocabulary import FAST, Vocabulary

RUNS = 256  # of rows that follow each other: so many are copied one by one, more are gathered
MULTIPLE = 128  # the largest that a number of rows is kept a multiple of
HINT = "--vocab base, the first one's tokens; --vocab union, those of all"
Shares = Callable[[Role], Mapping[str, float]]  # of a tensor the weight of each model by name; a base may have none


def of_one_vocabulary(models: Mapping[str, Checkpoint], first: str, how: str, shares: Shares) -> dict[str, Checkpoint]:
    """The same models, all with the tokens and rows that `how` says; `first`: whose files are those that travel.

    Raises RekindleError with what differs, or why rows cannot be matched.
    """
    made = _matched({first: models[first], **models}, how, shares)
    return {name: made[name] for name in models}


def _matched(models: Mapping[str, Checkpoint], how: str, shares: Shares) -> dict[str, Checkpoint]:
    (_, first), *others = models.items()
    if any(first.family.name != model.family.name for _, model in others):
        return dict(models)  # which are refused as a whole
    found = {name: Vocabulary(model.folder.path, model.folder.named) for name, model in models.items()}
    if how == "same":
        for name, model in others:
            _check_same(first, model, *(found[key] for key in (next(iter(models)), name)))
        return dict(models)
    if lacking := [vocabulary.why_none for vocabulary in found.values() if vocabulary.file is None]:
        raise RekindleError(f"--vocab {how} finds rows by token, and {lacking[0]}.")
    if not _roles(first):
        what = f"--vocab {how}: which rows of a {first.family.name} are those of tokens is not known."
        raise RekindleError(what)
    rows = _rows(models, found, how)
    own = {name: _with_rows(name, models, rows, shares) for name in models}
    return own | {next(iter(models)): _told(next(iter(own.values())), rows)}


@dataclass(frozen=True)
class Rows:
    """Where the rows of the child are in each model; -1: it has none."""

    size: int
    at: Mapping[str, NDArray]
    files: Mapping[str, str]
    of_first: bool  # what a model lacks it takes from the first, where that has it
    notes: tuple[str, ...] = ()


def _rows(models: Mapping[str, Checkpoint], found: Mapping[str, Vocabulary], how: str) -> Rows:
    name = next(iter(models))
    ids, size = found[name].ids, models[name].settings.vocab_size
    new, files, notes = [], {}, []
    if how == "union":
        if (last := max(ids.values())) >= size:
            what = f"The tokenizer has a token of number {last}, and the embeddings have {size} rows."
            raise RekindleError(what, where=found[name].named, hint="--vocab base")
        new = _new_tokens(found)
        ids = ids | {entry["content"]: entry["id"] for entry in new}
        files = found[name].with_tokens(new) if new else {}
        rows = max(size, 1 + max(ids.values()))
        multiple = next(n for n in (MULTIPLE >> i for i in range(8)) if size % n == 0)
        rows, before = -(-rows // multiple) * multiple, size
        added = _some([entry["content"] for entry in new])
        notes = [f"{counted(len(new), 'token')} of other sources added: {added}"] if new else []
        again = f", a multiple of {multiple} again" if multiple > 1 else ""
        notes += [f"{before} rows of embeddings become {rows}{again}"] if rows > before else []
        size = rows
    at = {key: np.full(size, -1) for key in models}
    own = models[name].settings.vocab_size
    at[name][:own] = np.arange(own)
    at[name][[entry["id"] for entry in new if entry["id"] < own]] = -1  # padding until now
    for key, vocabulary in found.items():
        theirs, there = vocabulary.ids, models[key].settings.vocab_size
        if key == name:
            continue
        for token, i in ids.items():
            if i < size and theirs.get(token, there) < there:
                at[key][i] = theirs[token]
        lacks = [token for token, i in ids.items() if i < size and at[key][i] < 0]
        where = f"{models[key].folder.named} lacks {counted(len(lacks), 'token')}: {_some(lacks)}"
        notes += [where] if lacks else []
    return Rows(size, at, files, how == "base", tuple(notes))


def _new_tokens(found: Mapping[str, Vocabulary]) -> list[dict]:
    """The added tokens that only other sources have, with the numbers that they get; refused where more is needed."""
    first, *others = found.values()
    if first.file is None or first.file.name != FAST:
        raise RekindleError(f"Tokens are added to a {FAST}, and {first.named} has none.", hint="--vocab base")
    known, new = set(first.ids), []
    for vocabulary in others:
        lacking = sorted((i, token) for token, i in vocabulary.ids.items() if token not in known)
        if pieces := [token for _, token in lacking if token not in vocabulary.added]:
            what = f"{counted(len(pieces), 'token')} of {vocabulary.named} are pieces of its own vocabulary, such as"
            why = "only added tokens can be added to another tokenizer: with pieces it would cut old text otherwise"
            raise RekindleError(f"{what} {_some(pieces)}.", where=first.named, why=why, hint="--vocab base")
        new += [vocabulary.added[token] for _, token in lacking]
        known |= {token for _, token in lacking}
    start = max(first.ids.values()) + 1
    return [entry | {"id": start + i} for i, entry in enumerate(new)]


def _with_rows(name: str, models: Mapping[str, Checkpoint], rows: Rows, shares: Shares) -> Checkpoint:
    model = models[name]
    tensors = dict(model.tensors)
    for role in _roles(model):
        xs = {key: other.tensors[role] for key, other in models.items() if role in other.tensors}
        alike = len(xs) == len(models) and len({(x.dtype, x.shape[1:]) for x in xs.values()}) == 1
        if alike:  # else refused as a whole
            tensors[role] = _tensor(name, xs, rows, shares(role))
    towers = {key: replace(own, vocab_size=rows.size) for key, own in model.settings.towers.items()}
    settings = replace(model.settings, vocab_size=rows.size, towers=towers)
    if settings == model.settings:
        return model.derive(tensors=tensors)
    config = model.family.config(settings, model.config, model.family)
    return model.derive(tensors=tensors, settings=model.family.settings(config), config=config)


def _told(first: Checkpoint, rows: Rows) -> Checkpoint:
    return replace(first, files=dict(rows.files)).noting(*rows.notes)


def _tensor(name: str, xs: Mapping[str, Expr], rows: Rows, shares: Mapping[str, float]) -> Expr:
    """A model's tensor with the child's rows: its own, and for those that it lacks what the others have."""
    own, first = rows.at[name], next(iter(xs))
    lacking = np.flatnonzero(own < 0)
    parts, order, start = [], np.empty(rows.size, np.int64), 0
    groups = [(np.flatnonzero(own >= 0), (name,)), *_groups(lacking, xs, rows, shares, first)]
    for at, holders in groups:
        if not len(at):
            continue
        taken = [_taken(xs[key], rows.at[key][at]) for key in holders]
        x = xs[name]
        parts.append(_mean(taken, [shares.get(key, 0.0) for key in holders]) if taken else _zeros(x, len(at)))
        order[at] = np.arange(start, start + len(at))
        start += len(at)
    return _taken(joined(parts), order)


def _groups(
    lacking: NDArray, xs: Mapping[str, Expr], rows: Rows, shares: Mapping[str, float], first: str
) -> list[tuple[NDArray, tuple[str, ...]]]:
    """The rows that a model lacks, by who has them: the first alone where it counts before all others."""
    names = [key for key in xs if key in shares]
    has = np.array([rows.at[key][lacking] >= 0 for key in names], bool).reshape(len(names), len(lacking))
    alone = rows.at[first][lacking] >= 0
    if not rows.of_first and first in shares:
        alone &= ~has.any(axis=0)
    groups: list[tuple[NDArray, tuple[str, ...]]] = [(lacking[alone], (first,))]
    left, has = lacking[~alone], has[:, ~alone]
    kinds, which = np.unique(has, axis=1, return_inverse=True)
    for i, kind in enumerate(kinds.T):
        holders = tuple(key for key, there in zip(names, kind, strict=True) if there)
        groups.append((left[which.reshape(-1) == i], holders))
    return groups


def _taken(x: Expr, index: NDArray) -> Expr:
    """Rows of a tensor, in this order: runs of them are copies."""
    ends = [*(np.flatnonzero(np.diff(index) != 1) + 1).tolist(), len(index)]
    if len(ends) > RUNS:
        return Chosen(x, index)
    return joined([x.rows(int(index[a]), int(index[b - 1]) + 1) for a, b in zip([0, *ends], ends, strict=False)])


def _mean(xs: Sequence[Expr], weights: Sequence[float]) -> Expr:
    total = sum(weights)
    shares = [a / total for a in weights] if total > 0 else [1 / len(xs)] * len(xs)
    return xs[0] if len(xs) == 1 else linear(xs, shares)


def _zeros(x: Expr, rows: int) -> Expr:
    return Fill(x.dtype, (rows, *x.shape[1:]), 0.0)


def _roles(model: Checkpoint) -> list[Role]:
    """Tensors whose rows are those of tokens."""
    return [role for role, (_, _, row) in model.rows.items() if row.shape.split()[0] == "V"]


def _check_same(first: Checkpoint, other: Checkpoint, one: Vocabulary, two: Vocabulary) -> None:
    where = f"{one.named} and {two.named}"
    sizes = first.settings.vocab_size, other.settings.vocab_size
    readable = one.file is not None and two.file is not None and one.folder != two.folder
    if readable and one.digest != two.digest and one.ids != two.ids:
        raise RekindleError(f"These tokenizers differ: {_unlike(one, two)}.", where=where, hint=HINT)
    if sizes[0] == sizes[1]:
        return
    if not readable:
        said = ", the other ".join(str(meaning("vocab_size", size)) for size in sizes)
        why = f"{one.why_none if one.file is None else two.why_none}: rows cannot be matched by token"
        raise RekindleError(f"These models differ: one {said}.", where=where, why=why)
    tokens = 1 + max(one.ids.values())
    what = f"The tokens are the same, {tokens}, and the rows of embeddings are {sizes[0]} and {sizes[1]}."
    raise RekindleError(what, where=where, why="what is beyond the tokens is padding", hint="--vocab base")


def unlike(first: Checkpoint, other: Checkpoint) -> str:
    """How the tokens of two checkpoints differ; nothing where they do not, or where those of one are not known."""
    one, two = (Vocabulary(model.folder.path, model.folder.named) for model in (first, other))
    known = one.file is not None and two.file is not None and one.folder != two.folder
    return _unlike(one, two) if known and one.digest != two.digest else ""


def _unlike(one: Vocabulary, two: Vocabulary) -> str:
    """How two tables of tokens differ, with examples."""
    a, b = one.ids, two.ids
    parts = [f"{counted(len(x), 'token')} only in {v.named} ({_some(x)})" for v, x in (
        (one, sorted(a.keys() - b.keys(), key=a.__getitem__)), (two, sorted(b.keys() - a.keys(), key=b.__getitem__))
    ) if x]  # fmt: skip
    moved = [f"{token!r} {a[token]} and {b[token]}" for token in a if b.get(token, a[token]) != a[token]]
    parts += [f"{counted(len(moved), 'token')} with other numbers ({some(moved)})"] if moved else []
    return "; ".join(parts)


def _some(tokens: Sequence[str]) -> str:
    return some([repr(token) for token in tokens])
