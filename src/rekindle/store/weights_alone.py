"""Weights without a config: a file of them, or a folder that holds nothing that says what they are.

As a program leaves them that knows its own model. Their tensors are known by their names alone.
"""

from __future__ import annotations

from pathlib import Path

from rekindle.errors import RekindleError
from rekindle.store.adapter import is_adapter, open_adapter
from rekindle.store.folder import ADAPTER, Folder, fingerprint, open_folder
from rekindle.store.header import read_header
from rekindle.store.legacy import read_pickle
from rekindle.store.stamps import stamps, stamps_in
from rekindle.store.weights import Tensors, choice, is_of_a_model, read_weights

SUFFIXES = (".safetensors", ".pt", ".pth", ".bin", ".ckpt")
TELLING = ("config.json", ADAPTER, "model_index.json")  # files that say what lies beside them


def is_alone(path: Path) -> bool:
    """Whether weights lie there, and nothing that says what they are."""
    if path.is_file():
        return path.suffix in SUFFIXES
    try:
        names = {file.name for file in path.iterdir()}
    except OSError:
        return False
    return names.isdisjoint(TELLING) and (choice(names, {}) is not None or _only(path) is not None)


def open_alone(path: Path) -> Folder:
    """Read their headers; raises RekindleError for a file that is broken, or holds more than tensors."""
    seen = stamps([path]) if path.is_file() else stamps_in(path)
    try:
        file = path if path.is_file() else _only(path)
        found = _tensors(file) if file else getattr(read_weights(path, {}), "tensors", {})
    except OSError as error:
        raise RekindleError(f"This cannot be read: {error.strerror}.", where=path) from None
    return Folder(path, {}, found, fingerprint({}, found), native=False, seen=seen)


def open_source(path: Path) -> Folder:
    """What several are made one of: a checkpoint, an adapter, or weights alone."""
    if is_adapter(path):
        return open_adapter(path)
    return open_alone(path) if is_alone(path) else open_folder(path, bare=True)


def _tensors(file: Path) -> Tensors:
    return {**(read_header(file)[0] if file.suffix == ".safetensors" else read_pickle(file))}


def _only(folder: Path) -> Path | None:
    """The one file of a model's weights in a folder, where transformers would not look for it."""
    files = [file for file in folder.iterdir() if file.suffix in SUFFIXES and is_of_a_model(file.name)]
    return files[0] if len(files) == 1 and choice([files[0].name], {}) is None else None
