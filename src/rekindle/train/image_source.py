"""Labelled images by what `--data` says: a file, a folder, a dataset, or glyphs."""

from __future__ import annotations

from pathlib import Path

from rekindle.errors import RekindleError, counted
from rekindle.train.glyphs import GLYPHS, glyphs
from rekindle.train.image_dataset import of_dataset
from rekindle.train.images import KINDS, Images, of_folder, of_npz
from rekindle.train.text.source import named_rows, saved_rows


def open_images(data: str) -> Images:
    """Raises RekindleError where there are none, or none to hold out."""
    if data == GLYPHS:
        return glyphs()
    path = Path(data).expanduser()
    rows = saved_rows(path) if path.is_dir() else None
    if rows is not None:
        found = of_dataset(data, rows)
    elif path.exists():
        found = of_folder(path) if path.is_dir() else of_npz(path)
    elif path.suffix or path.is_absolute() or data.startswith((".", "~")) or not data.strip():
        raise RekindleError(f"There are no images {data}.", where="option data", hint=f"--data {KINDS}")
    else:
        found = of_dataset(data, named_rows(data, None, "an npz, a folder of classes, glyphs"))
    for side, numbers in found.sides.items():
        if not len(numbers):
            what = f"Of {counted(len(found.labels), 'image')} none is for {side}."
            raise RekindleError(what, where=data, hint=f"{KINDS}; parts called train and validation say which is which")
    return found
