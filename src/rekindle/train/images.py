"""Labelled images: an npz, or a folder with a folder for each class; and which are held out.

n images   C channels   H, W pixels
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from rekindle.errors import RekindleError, first_line, some

Side = Literal["train", "validation"]
HELD_OUT = 0.05  # where the data does not say itself what is
PARTS = {
    "train": "train", "training": "train", "val": "validation", "valid": "validation", "validation": "validation",
    "dev": "validation", "test": "test",
}  # fmt: skip
KINDS = "an npz of images and labels, a folder with a folder of images for each class, a dataset, or glyphs"
Read = Callable[[np.ndarray], Sequence[np.ndarray]]


@dataclass(frozen=True)
class Images:
    """`read` gives images [H, W, C], uint8 or floats from 0 to 1, by their numbers; `labels` [n] are whole numbers."""

    where: str
    labels: np.ndarray
    sides: Mapping[Side, np.ndarray]  # the numbers of the images of each
    read: Read
    digest: str
    classes: tuple[str, ...] = ()  # names of the labels, where the data has some

    def named_by(self, label2id: Mapping[str, Any]) -> Images:
        """With a model's own numbers for the classes, where it knows them all by their names."""
        own = [label2id.get(name) for name in self.classes]
        if not own or not all(type(number) is int for number in own):
            return self
        return replace(self, labels=np.array(own)[self.labels])

    @staticmethod
    def spread(numbers: np.ndarray, wanted: int) -> np.ndarray:
        """At most so many of these numbers, evenly."""
        count = min(len(numbers), wanted)
        return numbers[np.arange(count, dtype=np.int64) * len(numbers) // count]


# -- an npz ----------------------------------------------------------------------------------------------------------


def of_npz(path: Path) -> Images:
    arrays = arrays_of(path)
    pixels = {name: array for name, array in arrays.items() if array.ndim in (3, 4)}
    numbers = {
        name: array.reshape(-1) for name, array in arrays.items() if array.shape == (array.size, 1)[: array.ndim]
    }
    parts = [(_part(name), array, _labels_of(name, array, numbers)) for name, array in pixels.items()]
    known = without_tests([side for side, _, _ in parts])
    sound = [part for part, is_known in zip(parts, known, strict=True) if is_known and part[2] is not None]
    sizes = {array.shape[1:] for _, array, _ in sound}
    if not sound or len({side for side, _, _ in sound}) != len(sound) or len(sizes) > 1 or not sound[0][1].size:
        told = some([f"{name} {list(array.shape)} {array.dtype}" for name, array in arrays.items()])
        what = f"These arrays are no images [n, height, width, channels] with a label each: {told}."
        raise RekindleError(what, where=path, hint="images and labels, or train_images, train_labels, test_images, ...")
    images = _in_range(np.concatenate([channels_last(array) for _, array, _ in sound]), path)
    labels = np.concatenate([labels for _, _, labels in sound if labels is not None]).astype(np.int64)
    if labels.min() < 0:
        raise RekindleError(f"A label is {labels.min()}.", where=path, why="labels count from 0")
    hashes = [hashlib.blake2b(image.tobytes(), digest_size=16).digest() for image in images]
    said = np.concatenate([np.full(len(array), side, dtype="U10") for side, array, _ in sound])
    return Images(str(path), labels, divided(said, hashes), lambda rows: list(images[rows]), digest_of(hashes, labels))


def arrays_of(path: Path) -> dict[str, np.ndarray]:
    """All arrays of an npz or npy; raises RekindleError where it is none."""
    try:
        with path.open("rb") as file:
            held = np.load(file, allow_pickle=False)
            return {"": held} if isinstance(held, np.ndarray) else {name: held[name] for name in held.files}
    except Exception as error:  # of zips and of arrays, whatever they raise
        raise RekindleError(f"This file cannot be read: {first_line(error)}.", where=path, hint="an npz") from None


def _part(name: str) -> str:
    return next((PARTS[word] for word in re.split(r"[^a-z]+", name.lower()) if word in PARTS), "")


def _labels_of(name: str, images: np.ndarray, numbers: Mapping[str, np.ndarray]) -> np.ndarray | None:
    """The only array of as many whole numbers, of the same part."""
    alike = (array for other, array in numbers.items() if _part(other) == _part(name))
    fit = [array for array in alike if len(array) == len(images) and array.dtype.kind in "iu"]
    return fit[0] if len(fit) == 1 else None


def channels_last(array: np.ndarray) -> np.ndarray:
    """Images [n, H, W, C] of such, of images with the channels first, or of some that have no axis for them."""
    array = array[..., None] if array.ndim == 3 else array
    if array.shape[-1] not in (1, 3, 4) and array.shape[1] in (1, 3, 4):
        array = np.moveaxis(array, 1, -1)
    return np.ascontiguousarray(array)


def _in_range(images: np.ndarray, path: Path) -> np.ndarray:
    """Bytes as they are, all else as floats from 0 to 1."""
    if images.dtype == np.uint8:
        return images
    if images.dtype.kind == "u":
        return images / np.float32(np.iinfo(images.dtype).max)
    low, high = float(images.min()), float(images.max())
    if images.dtype.kind != "f" or not (low >= -1 and high <= 1):
        what = f"These images have values from {low:g} to {high:g}."
        raise RekindleError(what, where=path, hint="bytes, or floats from 0 to 1, or from -1 to 1")
    return (images if low >= 0 else (images + 1) / 2).astype(np.float32)


# -- a folder --------------------------------------------------------------------------------------------------------


def of_folder(path: Path) -> Images:
    kinds = pillow().registered_extensions()
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in kinds)
    below = [file.relative_to(path).parts for file in files]
    if any(len(parts) < 2 for parts in below) or not files:
        what = "An image lies beside the folders of classes." if files else "There are no images in this folder."
        raise RekindleError(what, where=path, hint=KINDS)
    said = [PARTS.get(parts[0].lower(), "") if len(parts) > 2 else "" for parts in below]
    known = [number for number, is_known in enumerate(without_tests(said)) if is_known]
    files, said = [files[number] for number in known], [said[number] for number in known]
    names = [below[number][1] if part else below[number][0] for number, part in zip(known, said, strict=True)]
    classes = tuple(sorted(set(names)))
    labels = np.array([classes.index(name) for name in names])
    hashes = [hashlib.blake2b(file.read_bytes(), digest_size=16).digest() for file in files]

    def read(rows: np.ndarray) -> list[np.ndarray]:
        return [pixels_of(files[row], str(files[row])) for row in rows]

    return Images(str(path), labels, divided(np.array(said), hashes), read, digest_of(hashes, labels), classes)


def pillow() -> Any:
    """Its module `Image`; raises RekindleError where it is not installed."""
    try:
        from PIL import Image
    except ImportError:
        raise RekindleError("Files of images need Pillow.", hint="pip install 'rekindle[images]'") from None
    return Image


def pixels_of(file: Path | BinaryIO, where: str) -> np.ndarray:
    """[H, W, C], bytes: grey or red, green and blue. `where` it is, for what is said of one that cannot be read."""
    try:
        with pillow().open(file) as image:
            pixels = np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB"))
    except Exception as error:  # of decoders, whatever they raise
        raise RekindleError(f"This image cannot be read: {first_line(error)}.", where=where) from None
    return pixels[..., None] if pixels.ndim == 2 else pixels


# -- sides -----------------------------------------------------------------------------------------------------------


def without_tests(said: Sequence[str]) -> list[bool]:
    """Which parts are looked at: what is called a test is left alone where something else is held out."""
    return [part != "test" or "validation" not in said for part in said]


def divided(said: np.ndarray, hashes: Sequence[bytes]) -> dict[Side, np.ndarray]:
    """What each part says; where none does, by their bytes, so that copies of an image are on one side."""
    held = np.isin(said, ("validation", "test"))
    if held.any():
        return {"train": np.flatnonzero(~held), "validation": np.flatnonzero(held)}
    places = np.array([int.from_bytes(each[:8], "big") / 2**64 for each in hashes])
    held_out = places <= max(HELD_OUT, places.min())  # one at least
    return {"train": np.flatnonzero(~held_out), "validation": np.flatnonzero(held_out)}


def digest_of(hashes: Sequence[bytes], labels: np.ndarray) -> str:
    return hashlib.sha256(b"".join(hashes) + labels.tobytes()).hexdigest()[:16]
