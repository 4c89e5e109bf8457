"""A pipeline folder of diffusers and real images, as the objective `fd` or `kid`.

SRC is what `save_pretrained` of a pipeline wrote: model_index.json, a scheduler, and the component that is combined.
It samples as its scheduler does, from plain noise: a model of classes is told classes at random, and latents are
decoded by the pipeline's own vae.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from rekindle.errors import RekindleError, counted, first_line, some
from rekindle.search.config import CombineConfig
from rekindle.search.copies import Copies
from rekindle.search.objective import Objective
from rekindle.search.quality import Features, Metric, Quality, real
from rekindle.search.sampling import mixed, quiet_diffusers, sample
from rekindle.train.images import arrays_of, channels_last

FEWEST = 16  # real images on each side
STEPS = 10  # of a sampler that needs several
TOGETHER = 256  # images that are made at once


@dataclass(frozen=True)
class Pipeline:
    """Samples of a component with other tensors, as images [n, C, H, W] from -1 to 1."""

    pipe: Any
    copies: Copies  # of the component
    steps: int
    shape: tuple[int, ...]  # of a sample
    classes: int  # that the component is told one of; 0: none
    device: torch.device

    def __call__(self, tensors: Mapping[str, torch.Tensor], n: int, seed: int) -> torch.Tensor:
        own = {name: tensor.to(self.device) for name, tensor in tensors.items()}
        model = self.copies.own

        def denoise(x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            told = {"class_labels": labels} if labels is not None else {}
            times = t.to(self.device).expand(len(x))  # transformers take no other
            return torch.func.functional_call(model, own, (x, times), told).sample[:, : self.shape[0]]

        made = []
        for at in range(0, n, TOGETHER):  # with a gradient too: a draw is one set of samples
            count, part = min(TOGETHER, n - at), mixed(seed, at)
            labels = self._labels(count, part)
            x = sample(denoise, self.pipe.scheduler, (count, *self.shape), self.steps, part, self.device)
            made.append(self._decoded(x).cpu())
        return torch.cat(made)

    def _labels(self, count: int, seed: int) -> torch.Tensor | None:
        if not self.classes:
            return None
        g = torch.Generator().manual_seed(mixed(seed, "labels"))
        return torch.randint(0, self.classes, (count,), generator=g).to(self.device)

    def _decoded(self, x: torch.Tensor) -> torch.Tensor:
        vae = getattr(self.pipe, "vae", None)
        return x if vae is None else vae.decode(x / vae.config.scaling_factor).sample


def quality_of(pipeline: Path, config: CombineConfig, feature_function: Callable[..., Any] | None) -> Objective:
    """The distance of a pipeline's samples from real images; raises RekindleError for what does not fit together."""
    if config.data == "stdlib":
        raise RekindleError(f"{config.objective} needs real images.", hint="--data images.npz, or a folder of them")
    pipe = opened(pipeline)
    model = getattr(pipe, config.component or "unet")
    shape = (model.config.in_channels, *_square(model.config.sample_size))
    data = read_images(Path(config.data).expanduser())
    features = _features(feature_function, data[:2])
    order = torch.randperm(len(data), generator=torch.Generator().manual_seed(0))
    searched, held_out = data[order[: len(data) // 2]], data[order[len(data) // 2 :]]
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    one_step = type(pipe.scheduler).__name__ == "CMStochasticIterativeScheduler"
    sampler = Pipeline(
        pipe.to(device),
        Copies(model.to(device).eval().requires_grad_(False)),
        config.sampling_steps or (1 if one_step else STEPS),
        shape,
        classes=getattr(model.config, "num_class_embeds", None)
        or getattr(model.config, "num_embeds_ada_norm", None)
        or 0,
        device=device,
    )
    with torch.no_grad():
        made = sampler(dict(model.state_dict()), 1, 0)
    if made.shape[1:] != data.shape[1:]:
        what = f"The model makes images of {list(made.shape[1:])}, and the data are {list(data.shape[1:])}."
        raise RekindleError(what, where=config.data, why="channels, height, width", hint="the images it was trained on")
    metric: Metric = "kid" if config.objective == "kid" else "fd"
    quality = Quality(
        sampler,
        features,
        real(searched, features),
        real(held_out, features),
        searched,
        config.samples,
        metric,
        0.0 if feature_function is None or metric == "kid" else config.pixel_weight,
    )
    return Objective(quality, True, config.objective, floor=quality.floor())


def opened(folder: Path) -> Any:
    """diffusers' pipeline of a folder; raises RekindleError where diffusers is not there or cannot read it."""
    try:
        diffusers = quiet_diffusers()
    except ImportError:
        what = "Pipelines of images need diffusers, which is not installed."
        raise RekindleError(what, hint="pip install 'rekindle[images]'") from None
    try:
        pipe = diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except Exception as error:  # of configs, files and shapes
        raise RekindleError(f"diffusers cannot load this pipeline: {first_line(error)}.", where=folder) from None
    pipe.set_progress_bar_config(disable=True)
    return pipe


def _features(function: Callable[..., Any] | None, some: torch.Tensor) -> Features:
    """Pixels, or a function; raises RekindleError where that gives no features of `some` images."""
    if function is None:
        return lambda x: x.flatten(1)
    try:
        with torch.no_grad():
            found = function(some)
    except Exception as error:
        what = f"The features' function raised {type(error).__name__}: {first_line(error)}."
        raise RekindleError(what, why=f"it was given images {list(some.shape)}") from error
    if not isinstance(found, torch.Tensor) or len(found) != len(some):
        raise RekindleError("The features' function gave no tensor [n, d].", why=f"for images {list(some.shape)}")
    return function


def _square(size: Any) -> tuple[int, int]:
    return (size, size) if isinstance(size, int) else tuple(size)


# -- real images -----------------------------------------------------------------------------------------------------


def read_images(path: Path) -> torch.Tensor:
    """Images [n, C, H, W] from -1 to 1, out of an npz or a folder; raises RekindleError where there are too few."""
    if not path.exists():
        raise RekindleError(f"There is no {path}.", hint="--data images.npz, or a folder of images")
    data = _of_folder(path) if path.is_dir() else _of_npz(path)
    if len(data) < 2 * FEWEST:
        what = f"There are {counted(len(data), 'image')}: half of them is searched with, the other half is held out."
        raise RekindleError(what, where=path, hint=f"{2 * FEWEST} at least")
    return data


def _of_npz(path: Path) -> torch.Tensor:
    arrays = arrays_of(path)
    fit = [array for array in arrays.values() if array.ndim in (3, 4) and array.dtype.kind in "uf"]
    if not fit:
        told = some([f"{name} {list(array.shape)} {array.dtype}" for name, array in arrays.items()])
        raise RekindleError(f"No array in it holds images: {told}.", where=path, hint="[n, height, width, channels]")
    return _scaled(max(fit, key=len))


def _of_folder(path: Path) -> torch.Tensor:
    from PIL import Image

    kinds = Image.registered_extensions()
    files = sorted(file for file in path.rglob("*") if file.suffix.lower() in kinds)
    if not files:
        raise RekindleError(f"There are no images in {path}.", hint="png, jpg and their like")
    arrays = []
    for file in files:
        try:
            with Image.open(file) as image:
                arrays.append(np.asarray(image if image.mode in ("L", "RGB") else image.convert("RGB")))
        except OSError as error:
            raise RekindleError(f"This image cannot be read: {first_line(error)}.", where=file) from None
    if len({array.shape for array in arrays}) > 1:
        odd = next(i for i, array in enumerate(arrays) if array.shape != arrays[0].shape)
        what = f"Images differ in size: {list(arrays[0].shape)} and {list(arrays[odd].shape)}."
        raise RekindleError(what, where=files[odd], hint="all as large as the model makes them")
    return _scaled(np.stack(arrays))


def _scaled(array: np.ndarray) -> torch.Tensor:
    """As [n, C, H, W]: whole numbers from 0 to 255, floats from 0 to 1 or from -1 to 1."""
    x = torch.from_numpy(np.ascontiguousarray(np.moveaxis(channels_last(array), -1, 1), np.float32))
    if array.dtype.kind == "u":
        return x / (np.iinfo(array.dtype).max / 2) - 1
    if x.abs().max() > 1:
        raise RekindleError(f"These images have values up to {x.abs().max():g}.", hint="from 0 to 1, or from -1 to 1")
    return x if x.min() < 0 else 2 * x - 1
