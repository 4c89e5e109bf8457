"""Images as a model reads them: by the processor that lies beside it, or else in its size, from -1 to 1.

n images   C channels   H, W pixels
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rekindle.apply.load import quietly
from rekindle.errors import RekindleError, counted, first_line

PROCESSOR = "preprocessor_config.json"
LUMINANCE = np.array([0.299, 0.587, 0.114])  # of red, green and blue: ITU-R BT.601, as Pillow has it


@dataclass(frozen=True)
class Processing:
    """Of a model in `folder` that reads images of `channels` and of `size`, height and width."""

    folder: Path
    channels: int
    size: tuple[int, int]

    def __call__(self, images: Sequence[np.ndarray]) -> torch.Tensor:
        """[n, C, H, W] of images [H, W, C], uint8 or floats from 0 to 1."""
        own = [self._with_channels(image) for image in images]
        if self._processor is not None:
            as_bytes = [image if image.dtype == np.uint8 else (255 * image).round().astype(np.uint8) for image in own]
            made = self._processor(images=as_bytes, return_tensors="pt", input_data_format="channels_last")
            return self._sized(made["pixel_values"])
        if len({image.shape for image in own}) == 1:
            return 2 * self._sized(_unit(np.stack(own))) - 1
        return 2 * torch.cat([self._sized(_unit(image[None])) for image in own]) - 1

    @cached_property
    def _processor(self) -> Any:
        path = self.folder / PROCESSOR
        if not path.is_file():
            return None
        from transformers import AutoImageProcessor

        try:
            with quietly():
                return AutoImageProcessor.from_pretrained(self.folder, trust_remote_code=False, backend="pil")
        except Exception as error:  # of configs of all kinds
            what = f"transformers cannot read this processor of images: {first_line(error)}."
            raise RekindleError(what, where=path, hint="without it, pixels from -1 to 1 in the model's size") from None

    def _with_channels(self, image: np.ndarray) -> np.ndarray:
        there, wanted = image.shape[2], self.channels
        if there == wanted:
            return image
        if there == 1:
            return np.repeat(image, wanted, axis=2)
        if there not in (3, 4) or wanted not in (1, 3):
            raise RekindleError(f"These images have {counted(there, 'channel')}, and the model reads {wanted}.")
        if wanted == 3:
            return image[..., :3]
        grey = image[..., :3] @ LUMINANCE
        return (grey.round() if image.dtype == np.uint8 else grey).astype(image.dtype)[..., None]

    def _sized(self, x: torch.Tensor) -> torch.Tensor:
        """In the model's size (bilinear, smoothed where it shrinks)."""
        if x.shape[2:] == self.size:
            return x
        return torch.nn.functional.interpolate(x, size=self.size, mode="bilinear", antialias=True, align_corners=False)


def _unit(images: np.ndarray) -> torch.Tensor:
    """[n, C, H, W] from 0 to 1."""
    x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(images, -1, 1), np.float32))
    return x / 255 if images.dtype == np.uint8 else x
