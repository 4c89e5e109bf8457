"""A run's saved states as the steps of an archive, packed while training goes on.

Each is a checkpoint as `train` leaves one: weights and moments under their names on disk, config, tokenizer. Training
waits for the copy in memory alone; the state before is kept too, because the next is coded against it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import ExitStack
from itertools import chain
from pathlib import Path
from types import TracebackType
from typing import Any

import torch

from rekindle.anatomy import runtime_names
from rekindle.apply.moments import DESCRIPTION, FOLDER, WEIGHTS, described, info_text
from rekindle.codec.archive import Archive, Step
from rekindle.codec.container import create
from rekindle.codec.pack import add_step, lock_of
from rekindle.codec.source import Held, Source, check_names, held_source
from rekindle.errors import RekindleError
from rekindle.store.dtypes import TORCH
from rekindle.store.folder import Folder
from rekindle.store.lock import alone
from rekindle.store.system import explained
from rekindle.train.held import Whole, split
from rekindle.train.model import stored_dtypes
from rekindle.train.optimizer import EPS
from rekindle.train.state import Saved

_NAMES = {getattr(torch, name): stored for stored, name in TORCH.items()}


class Archiver:
    """Raises RekindleError where the archive holds other steps than this run's own, unless it overwrites them, and
    where another run writes into it. One without steps is begun in: a run was cut off before its first state.
    """

    def __init__(self, path: Path, source: Folder, saved: Saved | None, *, overwrite: bool):
        self.path, self.source, self.saved, self.overwrite = path, source, saved, overwrite
        self._names, self._dtypes = runtime_names(source.config), stored_dtypes(source)
        self._last: Future[Source] | None = None

    def steps(self) -> dict[int, str]:
        """The digest of each step in the archive, once all that was saved is there."""
        if self._last:
            self._last.result()
        with Archive(self.path) as archive:
            return dict(zip(archive.names, (entry.digest for entry in archive.directory.steps), strict=True))

    def save(self, whole: Whole, step: int, schedule: Mapping[str, Any]) -> None:
        """Copy the state, once the one before is packed, and pack it behind the run's back."""
        strange = [name for name in whole.parameters if name not in self._names and name not in self._dtypes]
        if strange:
            what = f"What {strange[0]} is called on disk is not known, so that this model goes into no archive."
            raise RekindleError(what, where=self.source.path, hint="without --archive, then rekindle pack")
        before = self._last.result() if self._last else None
        buffers = {name: x for name, x in whole.buffers.items() if name in self._dtypes}
        copy = Whole(_copied(whole.parameters), _copied(buffers), _copied(whole.moments), whole.betas)
        self._last = self._pool.submit(self._pack, copy, step, schedule, before)

    def __enter__(self) -> Archiver:
        with ExitStack() as stack:
            stack.enter_context(alone(lock_of(self.path, long=True), f"writing {self.path.name}"))
            self._begin()
            self._pool = stack.enter_context(ThreadPoolExecutor(1, thread_name_prefix="archive"))
            self._stack = stack.pop_all()
        return self

    def __exit__(self, kind: type | None, value: BaseException | None, trace: TracebackType | None) -> None:
        """Wait for what is being packed; raises what went wrong with it, where the run itself ended well."""
        with self._stack:
            if self._last and kind is None:
                self._last.result()

    def _begin(self) -> None:
        """Make the archive where there is none, and hold the steps of one that is there to what the state knows."""
        check_names(self.source.path, self.source.passengers())
        there = self.steps() if self.path.exists() else None  # nothing but an archive is ever overwritten
        known = self.saved.archived if self.saved else {}
        if self.saved is None and there and not self.overwrite:
            raise RekindleError(f"{self.path} exists.", hint="another --archive, or --overwrite to replace it")
        if self.saved and there and known is not None:
            others = [step for step in there if step != self.saved.step and known.get(step) != there[step]]
            if others:
                raise self._not_ours(others[0])
        if there is None or self.saved is None:
            with explained(self.path):
                whole = self.path.resolve()
                new = whole.with_name(f".{whole.name}.new")
                new.unlink(missing_ok=True)
                create(new)
                with alone(lock_of(self.path), f"changing {self.path.name}"):
                    new.replace(whole)

    def _not_ours(self, step: int) -> RekindleError:
        return RekindleError(
            f"{self.path} holds a step {step} that is not of this run.",
            where=self.saved and self.saved.path,
            hint="the archive that the run wrote into, or another --archive",
        )

    def _pack(self, whole: Whole, step: int, schedule: Mapping[str, Any], before: Source | None) -> Source:
        names, dtypes = self._names, self._dtypes
        parts = chain.from_iterable(split(names, name, x) for name, x in whole.weights.items())
        on_disk = {disk: _held(part.to(dtypes[disk])) for disk, part in parts}
        kept = {name: _held(part) for name, part in whole.moments_on_disk(names)}
        info = described(whole.betas, EPS, whole.steps_on_disk(names), schedule)
        files: dict[str, bytes | Mapping[str, Held]] = {
            str(path.relative_to(self.source.path)): path.read_bytes() for path in self.source.passengers()
        }
        files["config.json"] = (json.dumps(self.source.config, indent=2) + "\n").encode()
        files["model.safetensors"] = on_disk
        files[f"{FOLDER}/{WEIGHTS}"] = kept
        files[f"{FOLDER}/{DESCRIPTION}"] = info_text(info).encode()
        source = held_source(files)
        with Archive(self.path) as archive:
            if step in archive.names:  # a run that goes on from a state that had come here already
                if not _same(archive[step], source):
                    raise self._not_ours(step)
                return source
        add_step(self.path, source, step, before=before)
        return source


def _same(there: Step, ours: Source) -> bool:
    """Whether a step holds these very weights and moments; what is written of them may be newer."""
    for number, tensor in enumerate(ours.tensors):
        if tensor.key.endswith(":"):
            continue
        found = there.by_key.get(tensor.key)
        if found is None or there.index.tensors[found] != tensor:
            return False
        if there.words(found, 0, tensor.n).tobytes() != bytes(ours.read(number, 0, tensor.nbytes)):
            return False
    return True


def _copied(tensors: Mapping[str, Any]) -> dict[str, Any]:
    """In memory of its own, at any depth."""
    return {name: _copied(x) if isinstance(x, Mapping) else x.to("cpu", copy=True) for name, x in tensors.items()}


def _held(x: torch.Tensor) -> Held:
    x = x.contiguous()
    return _NAMES[x.dtype], tuple(x.shape), x.view(-1).view(torch.uint8).numpy().data
