"""`--data glyphs`: letters and digits of the fonts that matplotlib carries, each font's a class of its own, distorted.

Nothing is stored: an image is a function of its number alone, which says its class, and how it is turned, sheared,
scaled, moved, and how much noise it has. There are enough for no training to read one twice.

F fonts   L letters and digits   n images   W width and height of a glyph as it is drawn, S of an image
"""

from __future__ import annotations

import hashlib
import string
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rekindle.train.images import Images, Side
from rekindle.train.order import drawn

GLYPHS = "glyphs"
LETTERS = string.ascii_uppercase + string.ascii_lowercase + string.digits
DRAWN, SIZE = 48, 16  # pixels
OF_EACH, HELD_OUT = 1536, 16  # images of a class, and those of them that are held out
TURN, SHEAR, SCALE, SHIFT, NOISE = 0.16, 0.12, 0.1, 0.12, 0.05  # at most; noise: its standard deviation
NO_LETTERS = ("LastResortHE-Regular", "cmex10", "cmsy10")  # their codes stand for boxes, and for symbols


def glyphs() -> Images:
    """16 x 16, one channel, from 0 to 1."""
    bitmaps, classes, fonts = _bitmaps()
    number = len(classes)
    every = np.arange(OF_EACH * number)
    last = every >= (OF_EACH - HELD_OUT) * number
    digest = hashlib.sha256(f"{fonts} {OF_EACH} {HELD_OUT}".encode() + bitmaps.tobytes()).hexdigest()[:16]
    sides: dict[Side, np.ndarray] = {"train": every[~last], "validation": every[last]}

    def read(rows: np.ndarray) -> list[np.ndarray]:
        return list(distorted(bitmaps[rows % number], rows))

    return Images(GLYPHS, every % number, sides, read, digest, classes)


def distorted(bitmaps_nWW: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Images [n, S, S, 1], each as its number has it."""
    words = drawn(0, rows, 6 + SIZE * SIZE)
    u = torch.from_numpy((words[:, :6] >> np.uint64(11)).astype(np.float64) * (2.0**-52) - 1)  # from -1 to 1
    turn, shear, wide, high = TURN * u[:, 0], SHEAR * u[:, 1], 1 + SCALE * u[:, 2], 1 + SCALE * u[:, 3]
    rows_of = [
        torch.stack([wide * turn.cos(), shear - wide * turn.sin(), SHIFT * u[:, 4]], 1),
        torch.stack([high * turn.sin(), high * turn.cos(), SHIFT * u[:, 5]], 1),
    ]
    where = torch.nn.functional.affine_grid(
        torch.stack(rows_of, 1).float(), [len(rows), 1, 2 * SIZE, 2 * SIZE], align_corners=False
    )
    x = torch.from_numpy(bitmaps_nWW)[:, None].float() / 255
    x = torch.nn.functional.grid_sample(x, where, align_corners=False)
    x = torch.nn.functional.avg_pool2d(x, 2)[:, 0].numpy()
    bits = words[:, 6:].reshape(-1, SIZE, SIZE)
    total = sum(((bits >> np.uint64(16 * i)) & np.uint64(0xFFFF)).astype(np.float32) for i in range(4))
    normal = (total / 65535 - 2) * np.float32(3**0.5)  # nearly: the sum of four numbers that are evenly spread
    return (x + NOISE * normal).clip(0, 1)[..., None].astype(np.float32)


@cache
def _bitmaps() -> tuple[np.ndarray, tuple[str, ...], str]:
    """Every class's glyph [F L, W, W], the classes' names, and the fonts'."""
    from matplotlib import get_data_path
    from matplotlib.ft2font import FT2Font

    found, classes, fonts = [], [], []
    for path in sorted(Path(get_data_path(), "fonts", "ttf").glob("*.ttf")):
        font = FT2Font(str(path))
        if path.stem in NO_LETTERS or not {ord(letter) for letter in LETTERS} <= font.get_charmap().keys():
            continue
        fonts.append(path.stem)
        found += [_bitmap(font, letter) for letter in LETTERS]
        classes += [f"{path.stem} {letter}" for letter in LETTERS]
    return np.stack(found), tuple(classes), " ".join(fonts)


def _bitmap(font: Any, letter: str) -> np.ndarray:
    """In the middle of a square, with a margin around it."""
    font.set_size(DRAWN * 0.75, 72)
    font.set_text(letter)
    font.draw_glyphs_to_bitmap(antialiased=True)
    glyph = np.asarray(font.get_image())[:DRAWN, :DRAWN]
    out, (height, width) = np.zeros((DRAWN, DRAWN), np.uint8), glyph.shape
    top, left = (DRAWN - height) // 2, (DRAWN - width) // 2
    out[top : top + height, left : left + width] = glyph
    return out
