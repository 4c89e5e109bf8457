"""`pytorch_model*.bin`: pickles, read only through torch's weights-only loader and mapped, not loaded."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from rekindle.errors import RekindleError, first_line
from rekindle.store.dtypes import FROM_TORCH
from rekindle.store.reading import TORCH, broken, likeness, opened, refuse_pointer, unreadable


class Rows(Protocol):
    """What is sliced as an array is, once it has been told that it is one of rows."""

    def reshape(self, rows: int, width: int, /) -> Rows: ...

    def __getitem__(self, rows: slice, /) -> NDArray: ...


class Held(NamedTuple):
    """A tensor out of a pickle: values as a numpy array over the mapped file, raw bits for dtypes numpy lacks.

    Or out of an archive, where rows are decoded when they are asked for.
    """

    path: str
    dtype: str
    shape: tuple[int, ...]
    array: NDArray | Rows
    nbytes: int
    mark: str = ""  # names its bytes, where that can be said without reading them


def read_pickle(path: Path) -> dict[str, Held]:
    """All tensors of a .bin file; a pickle that needs more than tensors is refused."""
    return {name: _held(path, name, tensor) for name, tensor in _load(path).items()}


def _load(path: Path) -> dict[str, Any]:
    import pickle

    import torch

    try:
        with opened(path) as file:
            head = file.read(64)
    except OSError as error:
        raise unreadable(path, error) from None
    refuse_pointer(path, head)
    if (seems := likeness(head)) and not head.startswith(TORCH):
        hint = "model.safetensors is what transformers calls it" if "safetensors" in seems else None
        raise broken(path, f"it is {seems}, not a file of torch's", hint)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True, mmap=True)
    except pickle.UnpicklingError:
        raise RekindleError(
            "This pickle holds more than tensors, and could run code when loaded: refused.",
            where=path,
            hint="ask its maker for safetensors",
        ) from None
    except Exception as error:  # a torn pickle may run the unpickler into anything
        if "mmap can only be used" in str(error):
            error = ValueError("it is torn, or of the format that torch wrote before 1.6")
        raise RekindleError(f"This pickle cannot be read: {first_line(error)}.", where=path) from None
    if not isinstance(loaded, dict):
        raise RekindleError("This pickle is not a table of tensors.", where=path)
    _refuse_around(path, loaded)
    return loaded


def _refuse_around(path: Path, loaded: dict[str, Any]) -> None:
    """A training's checkpoint has the weights in it, beside other things; transformers would not find them."""
    import torch

    for key, inner in loaded.items():
        if isinstance(inner, dict) and inner and all(isinstance(value, torch.Tensor) for value in inner.values()):
            raise RekindleError(
                f"{key} is not a tensor but a table of {len(inner)}: this is a training's state around the weights.",
                where=path,
                hint=f"in Python: torch.save(torch.load({path.name!r})[{key!r}], {path.name!r})",
            )


def _held(path: Path, name: str, tensor: Any) -> Held:
    import torch

    if not isinstance(tensor, torch.Tensor):
        raise RekindleError(f"{name} is not a tensor.", where=path)
    if not isinstance(name, str) or tensor.layout != torch.strided or tensor.is_meta:
        raise RekindleError(f"{name!r} is a tensor without a name, sparse, or without values.", where=path)
    dtype = FROM_TORCH.get(str(tensor.dtype).removeprefix("torch."))
    if dtype is None:
        raise RekindleError(f"{name} has the dtype {tensor.dtype}, which safetensors lacks.", where=path)
    tensor = tensor.detach().contiguous()
    if dtype == "BF16":
        array = tensor.view(torch.uint16).numpy()
    elif dtype.startswith("F8"):
        array = tensor.view(torch.uint8).numpy()
    else:
        array = tensor.numpy()
    return Held(str(path), dtype, tuple(tensor.shape), np.asarray(array), array.nbytes)
