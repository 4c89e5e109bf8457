"""A Hugging Face folder: config.json, weights as transformers would read them, and the files that travel along."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Collection
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from rekindle.errors import RekindleError, nearest, some
from rekindle.store import passengers
from rekindle.store.index import read_json
from rekindle.store.publish import retired_path
from rekindle.store.stamps import Stamps, check_unchanged, stamps_in
from rekindle.store.weights import INDEX, PICKLE, SINGLE, SUFFIXES, Tensors, choice, in_pieces, read_weights

PARTS = "parts"  # in a folder whose parts are not joined yet
ADAPTER = "adapter_config.json"


@dataclass(frozen=True)
class Folder:
    """A checkpoint folder, opened: headers read, no tensor touched."""

    path: Path
    config: dict[str, Any]  # as in config.json; of an opened checkpoint, as transformers takes it with these weights
    tensors: Tensors
    fingerprint: str  # of config and headers: names the checkpoint's layout, not the values in it
    notes: tuple[str, ...] = ()  # what the user should know
    bare: bool = False  # only a config: enough to plan, and nothing to read
    native: bool = True  # transformers reads the same out of the folder itself
    seen: Stamps = field(default_factory=dict, repr=False, compare=False)  # of its files, before they were opened
    given: str = field(default="", compare=False)  # what named it, where that is not its path
    without: frozenset[str] = frozenset()  # shards that were not read, being lost
    lost: frozenset[str] = frozenset()  # their tensors, as far as an index lists them

    @property
    def named(self) -> str:
        """What to call it to whoever named it."""
        return self.given or str(self.path)

    @property
    def shards(self) -> list[Path]:
        return [] if self.bare else sorted({Path(t.path) for t in self.tensors.values()})

    def weight_files(self) -> set[str]:
        """The names of the files that are read of it beside its config: weights, and the index that lists them."""
        names = [path.name for path in self.path.iterdir()]
        index = choice(names, read_json(self.path / "config.json", missing=""))
        return {path.name for path in self.shards} | ({index} if index else set())

    def need_weights(self) -> None:
        """Raise RekindleError where there is only a config."""
        if self.bare:
            what = f"{self.path} is only a config.json: there are no weights to read."
            raise RekindleError(what, hint="--dry-run says what it would cost; or the folder with the weights")

    def check_unchanged(self) -> None:
        """Raise RekindleError where config or weights are no longer those that were opened."""
        check_unchanged(self.seen, [self.path / "config.json", *self.shards])

    def passengers(self) -> list[Path]:
        """Files that travel unchanged into what is made from this folder."""
        if self.bare or self.path.is_file():  # a config alone, whatever lies beside it, or weights alone
            return []
        try:
            return passengers.passengers(self.path, self.config)
        except OSError as error:
            raise RekindleError(f"The folder cannot be read: {error.strerror}.", where=self.path) from None

    def carry(self, out: Path) -> None:
        """Copy these files into `out`."""
        if self.path.is_file():
            return
        passengers.carry(self.path, self.config, out)


def open_folder(path: str | Path, *, bare: bool = False, without: Collection[str] = ()) -> Folder:
    """Read a folder's config and headers. Raises RekindleError where it is no checkpoint, or a broken one.

    `bare`: a config alone will do, in a folder or as a JSON file of any name. `without`: shards that are not read,
    being lost.
    """
    path = Path(path)
    seen = stamps_in(path)
    try:
        if bare and path.suffix == ".json" and path.is_file():
            return _only_config(path, path)
        if not path.is_dir():
            what = "is a file, not a checkpoint folder" if path.exists() else "does not exist"
            raise RekindleError(f"{path} {what}.", hint=_similar_folder(path))
        if (path / PARTS).is_dir() and not (path / "config.json").exists():
            raise RekindleError(f"{path} is unfinished: its parts are not joined.", hint=f"rekindle join {path}")
        refuse_adapter(path)
        if not (path / "config.json").exists():
            raise in_pieces(path) or _no_checkpoint(path)
        config = read_json(path / "config.json", missing="")
        weights = read_weights(path, config, without)
    except OSError as error:
        raise RekindleError(f"The folder cannot be read: {error.strerror}.", where=path) from None
    if weights is None and bare:
        return _only_config(path, path / "config.json")
    if weights is None:
        raise RekindleError(f"{path} has no weights.", where=f"{SINGLE}, {INDEX} or {PICKLE} in {path}")
    check_any(weights.tensors, path)
    mark = fingerprint(config, weights.tensors)
    how = {"native": weights.native, "seen": seen, "without": frozenset(without), "lost": weights.lost}
    return Folder(path, config, weights.tensors, mark, weights.notes, **how)


def check_any(tensors: Tensors, path: Path) -> None:
    """Raise RekindleError where files of weights hold no tensor."""
    if not tensors:
        raise RekindleError(f"{path} holds no tensors.", hint="save or download it again")


def refuse_adapter(path: Path) -> None:
    """An adapter is part of the model that transformers loads, beside weights and alone: it must be merged first."""
    if not (path / ADAPTER).is_file():
        return
    described = read_json(path / ADAPTER, missing="")
    kind, base = described.get("peft_type") or "PEFT", described.get("base_model_name_or_path")
    if choice((file.name for file in path.iterdir()), {}) is None:
        what = f"{path} is an adapter ({kind}) for {base or 'a model it does not name'}, not a checkpoint."
        raise RekindleError(what, where=path / ADAPTER, hint=f"rekindle merge {path} MERGED --base {base or 'SRC'}")
    raise RekindleError(
        f"Beside the weights lies an adapter ({kind}).",
        where=path / ADAPTER,
        why="transformers loads the model with it, wherever peft is installed; without it this is another model",
        hint="peft's merge_and_unload(), then save_pretrained(MERGED), and MERGED here; "
        f"or move {ADAPTER} away to leave the adapter out",
    )


def _no_checkpoint(path: Path) -> RekindleError:
    """There is no config; named are weights of another program's."""
    held = sorted(file.name for file in path.iterdir() if file.name.endswith(SUFFIXES))
    only = f", only {some(held)}" if held else ""
    return RekindleError(f"{path} is not a checkpoint: it has no config.json{only}.", where=path / "config.json")


def _only_config(path: Path, file: Path) -> Folder:
    config = read_json(file, missing="")
    note = "this is only a config.json: a plan can be priced, and nothing can be written"
    return Folder(path, config, {}, fingerprint(config, {}), (note,), bare=True)


def fingerprint(config: dict[str, Any], tensors: Tensors) -> str:
    """Names a config and the layout of the tensors beside it."""
    layout = "".join(f"{name} {t.dtype} {t.shape};" for name, t in tensors.items())
    return hashlib.sha256(f"{json.dumps(config, sort_keys=True)}{layout}".encode()).hexdigest()[:16]


def _similar_folder(path: Path) -> str | None:
    if (retired := retired_path(path)).is_dir():
        return f"mv {retired} {path}; its replacement was cut short"
    parent = path.parent
    siblings = [p.name for p in parent.iterdir() if p.is_dir()] if parent.is_dir() else []
    close = nearest(path.name, siblings)
    return str(parent / close) if close else None
