"""A folder of peft's: adapter_config.json, and the tensors that are put on a model which lies elsewhere."""

from __future__ import annotations

from pathlib import Path

from rekindle.errors import RekindleError
from rekindle.store.folder import ADAPTER, Folder, fingerprint
from rekindle.store.header import read_header
from rekindle.store.index import read_json
from rekindle.store.legacy import read_pickle
from rekindle.store.stamps import stamps_in
from rekindle.store.weights import Tensors, choice

WEIGHTS = "adapter_model.safetensors", "adapter_model.bin"  # in the order in which peft looks


def is_adapter(path: Path) -> bool:
    """Whether a folder holds an adapter and no model beside it."""
    try:
        return (path / ADAPTER).is_file() and choice((file.name for file in path.iterdir()), {}) is None
    except OSError:
        return False


def open_adapter(path: Path) -> Folder:
    """Read an adapter's config and headers; raises RekindleError where one is missing or broken."""
    seen = stamps_in(path)
    try:
        config = read_json(path / ADAPTER, missing="")
        file = next((path / name for name in WEIGHTS if (path / name).is_file()), None)
    except OSError as error:
        raise RekindleError(f"The folder cannot be read: {error.strerror}.", where=path) from None
    if file is None:
        raise RekindleError(f"{path} is an adapter without weights.", where=f"{' or '.join(WEIGHTS)} in {path}")
    tensors: Tensors = {**(read_pickle(file) if file.suffix == ".bin" else read_header(file)[0])}
    return Folder(path, config, tensors, fingerprint(config, tensors), native=False, seen=seen)
