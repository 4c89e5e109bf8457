"""A run's saved states as the steps of an archive, packed while training goes on.

Each is a checkpoint as `train` leaves one: weights and moments under their names on disk, config, tokenizer. Training
waits for the copy in memory alone; the state before is kept too, because the next is coded against it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from rekindle.anatomy import runtime_names
from rekindle.codec.archive import Archive
from rekindle.codec.container import create
from rekindle.codec.pack import add_step
from rekindle.codec.source import Held, Source, held_source
from rekindle.errors import RekindleError
from rekindle.store.dtypes import TORCH
from rekindle.store.folder import Folder
from rekindle.store.publish import explained
from rekindle.train.model import stored_dtype
from rekindle.train.optimizer import DESCRIPTION, FOLDER, MOMENTS, WEIGHTS, description, split

_NAMES = {getattr(torch, name): stored for stored, name in TORCH.items()}


class Archiver:
    """Raises RekindleError where the archive is there already, unless the run is resumed or overwrites it."""

    def __init__(self, path: Path, source: Folder, *, resume: bool, overwrite: bool):
        self.path, self.source = path, source
        if path.exists() and not resume:
            Archive(path).close()  # nothing else is ever overwritten
            if not overwrite:
                raise RekindleError(f"{path} exists.", hint="another --archive, --resume, or --overwrite to replace it")
            path.unlink()
        if not path.exists():
            with explained(path):
                create(path)
        self._names = runtime_names(source.config)
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="archive")
        self._last: Future[Source] | None = None

    def save(
        self, model: torch.nn.Module, optimizer: torch.optim.Optimizer, step: int, schedule: Mapping[str, Any]
    ) -> None:
        """Copy the state, once the one before is packed, and pack it behind the run's back."""
        before = self._last.result() if self._last else None
        with Archive(self.path) as archive:
            if step in archive.names:  # a run that was resumed from the state before has come here again
                return
        weights = {name: _copied(p) for name, p in model.named_parameters()}
        moments = {
            moment: {n: _copied(optimizer.state[p][moment]) for n, p in model.named_parameters()} for moment in MOMENTS
        }
        steps = {
            disk: int(optimizer.state[p]["step"])
            for name, p in model.named_parameters()
            for disk, _ in split(self._names, name, p)
        }
        described = description(optimizer, steps, schedule)
        self._last = self._pool.submit(self._pack, weights, moments, described, step, before)

    def __enter__(self) -> Archiver:
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Wait for what is being packed; raises what went wrong with it, where the run itself ended well."""
        self._pool.shutdown()
        if self._last and kind is None:
            self._last.result()

    def _pack(
        self,
        weights: dict[str, torch.Tensor],
        moments: dict[str, dict[str, torch.Tensor]],
        described: dict[str, Any],
        step: int,
        before: Source | None,
    ) -> Source:
        names, dtype = self._names, stored_dtype(self.source)
        on_disk = {disk: _held(part.to(dtype)) for n, x in weights.items() for disk, part in split(names, n, x)}
        kept = {
            f"{disk}.{moment}": _held(part)
            for moment in MOMENTS
            for n, x in moments[moment].items()
            for disk, part in split(names, n, x)
        }
        files: dict[str, bytes | Mapping[str, Held]] = {
            str(path.relative_to(self.source.path)): path.read_bytes()
            for path in (self.source.path / "config.json", *self.source.passengers())
        }
        files["model.safetensors"] = on_disk
        files[f"{FOLDER}/{WEIGHTS}"] = kept
        files[f"{FOLDER}/{DESCRIPTION}"] = (json.dumps(described, indent=1) + "\n").encode()
        source = held_source(files)
        add_step(self.path, source, step, before=before)
        return source


def _copied(x: torch.Tensor) -> torch.Tensor:
    return x.detach().to("cpu", copy=True)


def _held(x: torch.Tensor) -> Held:
    x = x.contiguous()
    return _NAMES[x.dtype], tuple(x.shape), x.view(-1).view(torch.uint8).numpy().data
