"""Labelled images by what `--data` says: a file, a folder, or glyphs."""

from __future__ import annotations

from pathlib import Path

from rekindle.errors import RekindleError, counted
from rekindle.train.glyphs import GLYPHS, glyphs
from rekindle.train.images import KINDS, Images, of_folder, of_npz


def open_images(data: str) -> Images:
    """Raises RekindleError where there are none, or none to hold out."""
    if data == GLYPHS:
        return glyphs()
    path = Path(data).expanduser()
    if not path.exists():
        raise RekindleError(f"There are no images {data}.", where="option data", hint=f"--data {KINDS}")
    found = of_folder(path) if path.is_dir() else of_npz(path)
    for side, numbers in found.sides.items():
        if not len(numbers):
            what = f"Of {counted(len(found.labels), 'image')} none is for {side}."
            raise RekindleError(what, where=path, hint=f"{KINDS}; parts called train and validation say which is which")
    return found
