"""Weights without a config: a file of them, or a folder that holds nothing that says what they are.

As a program leaves them that knows its own model. Their tensors are known by their names alone.
"""

from __future__ import annotations

import re
from collections.abc import Iterable
from pathlib import Path

from rekindle.errors import RekindleError, some
from rekindle.store.adapter import is_adapter, open_adapter
from rekindle.store.folder import ADAPTER, Folder, check_any, fingerprint, open_folder
from rekindle.store.header import read_header
from rekindle.store.legacy import read_pickle
from rekindle.store.stamps import stamps, stamps_in
from rekindle.store.weights import SHARD, Tensors, Weights, choice, is_of_a_model, read_weights

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
TELLING = ("config.json", ADAPTER, "model_index.json")  # files that say what lies beside them


def is_alone(path: Path) -> bool:
    """Whether weights lie there, and nothing that says what they are."""
    if path.is_file():
        return path.suffix in SUFFIXES
    try:
        names = [file.name for file in path.iterdir() if not file.is_dir()]
    except OSError:
        return False
    return not set(names) & set(TELLING) and (choice(names, {}) is not None or bool(_of_a_model(names)))


def open_alone(path: Path) -> Folder:
    """Read their headers; raises RekindleError for a file that is broken, holds more than tensors or none, and where
    several files may be the model.
    """
    seen = stamps([path]) if path.is_file() else stamps_in(path)
    try:
        found = Weights(_tensors(path), (), native=False) if path.is_file() else _of_folder(path)
    except OSError as error:
        raise RekindleError(f"This cannot be read: {error.strerror}.", where=path) from None
    check_any(found.tensors, path)
    return Folder(path, {}, found.tensors, fingerprint({}, found.tensors), found.notes, native=False, seen=seen)


def open_source(path: Path) -> Folder:
    """What several are made one of: a checkpoint, an adapter, or weights alone."""
    if is_adapter(path):
        return open_adapter(path)
    return open_alone(path) if is_alone(path) else open_folder(path, bare=True)


def _tensors(file: Path) -> Tensors:
    return {**(read_header(file)[0] if file.suffix == ".safetensors" else read_pickle(file))}


def _of_folder(folder: Path) -> Weights:
    """Those that transformers would read, a set of shards, or the one file that holds a model."""
    names = sorted(file.name for file in folder.iterdir() if not file.is_dir())
    files = _of_a_model(names)
    if choice(names, {}) is None and not any(map(SHARD.fullmatch, files)):
        if len(files) > 1:
            what = f"Which of {some(files)} is the model, no config.json says."
            pieces = any(re.search(r"-\d+-of-\d+\.", name) for name in files)
            raise RekindleError(what, where=folder, hint=None if pieces else f"{files[0]} itself, if it is that")
        return Weights(_tensors(folder / files[0]), (), native=False)
    found = read_weights(folder, {})
    assert found is not None, folder
    return found


def _of_a_model(names: Iterable[str]) -> list[str]:
    return [name for name in names if name.endswith(SUFFIXES) and is_of_a_model(name)]
