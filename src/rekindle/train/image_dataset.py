"""Labelled images of a dataset, as the `datasets` library holds them: a column of images, and one of labels.

A split called test is left alone where another is held out.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping
from io import BytesIO
from typing import Any

import numpy as np

from rekindle.errors import RekindleError, some
from rekindle.train.images import PARTS, Images, digest_of, divided, pillow, pixels_of, without_tests


def of_dataset(name: str, rows: Any) -> Images:
    """Of a dataset, or of several splits by name. Raises RekindleError where no one column of each kind is there."""
    pillow()
    splits = dict(rows) if isinstance(rows, Mapping) else {"": rows}
    if not any(len(split) for split in splits.values()):
        raise RekindleError("This dataset has no rows.", where=name)
    sides = {split: PARTS.get(split.lower(), "") for split in splits}
    known = [split for split, kept in zip(splits, without_tests(list(sides.values())), strict=True) if kept]
    image, label = _columns(name, splits[known[0]].features)
    held = [_encoded(splits[split], image) for split in known]
    hashes = [
        hashlib.blake2b(_bytes(cell, name), digest_size=16).digest() for split in held for cell in _cells(split, image)
    ]
    labels, classes = _labels(name, [splits[split] for split in known], label)
    said = np.concatenate([np.full(len(splits[split]), sides[split], dtype="U10") for split in known])
    starts = np.cumsum([0, *(len(split) for split in held)])

    def read(numbers: np.ndarray) -> list[np.ndarray]:
        found = []
        for number in numbers.tolist():
            split = int(np.searchsorted(starts, number, side="right")) - 1
            cell = held[split][number - int(starts[split])][image]
            found.append(
                pixels_of(BytesIO(_bytes(cell, name)), f"{name}, {known[split]} row {number - starts[split] + 1}")
            )
        return found

    return Images(name, labels, divided(said, hashes), read, digest_of(hashes, labels), classes)


def _columns(name: str, features: Mapping[str, Any]) -> tuple[str, str]:
    """The one of images, and the one of labels."""
    import datasets

    images = [key for key, kind in features.items() if isinstance(kind, datasets.Image)]
    labels = [key for key, kind in features.items() if isinstance(kind, datasets.ClassLabel)]
    labels = labels or [key for key, kind in features.items() if getattr(kind, "dtype", "").startswith(("int", "uint"))]
    labels = ["label"] if "label" in labels else labels
    if len(images) == len(labels) == 1:
        return images[0], labels[0]
    told = some([f"{key} {getattr(kind, 'dtype', type(kind).__name__)}" for key, kind in features.items()])
    what = f"These columns are no images with a label each: {told}."
    raise RekindleError(what, where=name, hint="one column of images, one of labels (or called label)")


def _encoded(rows: Any, column: str) -> Any:
    """With the bytes of each image's file instead of the image."""
    import datasets

    return rows.cast_column(column, datasets.Image(decode=False))


def _cells(rows: Any, column: str) -> Iterable[Mapping[str, Any]]:
    return (row[column] for row in rows.select_columns([column]))


def _bytes(cell: Mapping[str, Any] | None, name: str) -> bytes:
    if cell is None:
        raise RekindleError("An image of this dataset is null.", where=name)
    if cell["bytes"] is not None:
        return cell["bytes"]
    try:
        with open(cell["path"], "rb") as file:
            return file.read()
    except OSError as error:
        raise RekindleError(f"The image cannot be read: {error.strerror}.", where=cell["path"]) from None


def _labels(name: str, splits: list[Any], column: str) -> tuple[np.ndarray, tuple[str, ...]]:
    """[n] whole numbers, and the names of the classes, where it has some."""
    held = [split.with_format("numpy", columns=[column])[column][:] for split in splits]
    labels = np.concatenate([np.asarray(own) for own in held])
    if labels.dtype.kind not in "iu" or labels.min() < 0:
        least = "null" if labels.dtype.kind not in "iu" else labels.min()
        raise RekindleError(f"A label is {least}.", where=name, why="labels count from 0")
    return labels.astype(np.int64), tuple(getattr(splits[0].features[column], "names", None) or ())
