"""The pass before the write: find what the plan's expressions wait for, and keep it beside the result.

OUT/measurements/found.safetensors holds each array as NAME/KEY, so that another write can reuse it, and in its
metadata a digest of each source and text that it was found in. (A folder of its own: some engines read every
safetensors file beside the config as weights.)
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from rekindle.apply.threads import keep_freed, one_for_each_worker
from rekindle.edit.measure import Activations, Measurement, measurements
from rekindle.errors import RekindleError
from rekindle.store.files import Files
from rekindle.store.folder import Folder
from rekindle.store.header import build_header, read_header
from rekindle.store.sample import sampled, sampled_files

FOLDER = "measurements"
FILE = "found.safetensors"
SOURCE = "source "  # before a source's key

Calibrate = Callable[[str, str], Activations]  # source, text -> what it computes on it
Progress = Callable[[int], object]  # called with bytes read
Found = dict[str, Mapping[str, NDArray]]  # name -> key -> array


def settle(
    wanted: Iterable[Measurement],
    *,
    workers: int,
    known: Mapping[str, Mapping[str, NDArray]],
    calibrate: Calibrate,
    progress: Progress,
) -> Found:
    """Find these measurements, unless `known` has them. Returns {name: {key: array}}."""
    alike: dict[str, list[Measurement]] = {}
    for measurement in wanted:
        alike.setdefault(measurement.name, []).append(measurement)
    found: Found = {}
    texts: dict[tuple[str, str], Activations] = {}
    keep_freed()
    with Files() as files, ThreadPoolExecutor(workers) as pool:

        def look(measurement: Measurement) -> Mapping[str, NDArray]:
            text = texts.get((measurement.source, measurement.data))
            arrays = known.get(measurement.name) or measurement.find(files, text)
            progress(measurement.nbytes)
            return arrays

        for ready in _waves(alike):
            for name in ready:
                source, text = alike[name][0].source, alike[name][0].data
                if text and (source, text) not in texts and name not in known:
                    texts[source, text] = calibrate(source, text)
            with one_for_each_worker():
                looked = list(pool.map(lambda name: look(alike[name][0]), ready))
            for name, arrays in zip(ready, looked, strict=True):
                found[name] = arrays
                for measurement in alike[name]:
                    measurement.settle(arrays)
    return found


def _waves(alike: Mapping[str, Sequence[Measurement]]) -> Iterable[list[str]]:
    """Names in groups: those of a group wait for earlier groups alone."""
    waits = {name: {m.name for m in measurements(same[0].of)} for name, same in alike.items()}
    done: set[str] = set()
    while len(done) < len(waits):
        ready = [name for name in waits if name not in done and waits[name] <= done]
        yield ready
        done |= set(ready)


def fingerprint(found: Found) -> str:
    """Names the values: parts are joined on the same ones only."""
    state = hashlib.sha256()
    for name, keys in sorted(found.items()):
        for key, a in sorted(keys.items()):
            state.update(f"{name}/{key}".encode() + np.ascontiguousarray(a).tobytes())
    return state.hexdigest()[:16]


def found_in(folders: Mapping[str, Folder], measured: Iterable[Measurement]) -> dict[str, str]:
    """Names what is in each source, by `SOURCE` and its key, and in each text that is files here, by its name.

    See `store.sample` for how sure that is.
    """
    states = {SOURCE + key: f"{folder.fingerprint}/{sampled(folder.tensors)}" for key, folder in folders.items()}
    for source, data in sorted({(m.source, m.data) for m in measured if m.data}):
        path, folder = Path(data.partition("\0")[0].rpartition(":")[0]).expanduser(), folders[source]
        if path.exists():
            files = [file for file in path.rglob("*") if file.is_file()] if path.is_dir() else [path]
            text, tokenizer = _below(path, files), _below(folder.path, folder.passengers())
            states[f"{data}\0{source}"] = f"{sampled_files(text)}/{sampled_files(tokenizer)}"
    return states


def _below(folder: Path, files: Iterable[Path]) -> dict[str, Path]:
    return {str(file.relative_to(folder)): file for file in files}


def write_found(folder: Path, found: Found, of: Mapping[str, str]) -> None:
    """Nothing is written where nothing was measured. `of`: what it was found in."""
    arrays = {f"{name}/{key}": np.asarray(a, order="C") for name in sorted(found) for key, a in found[name].items()}
    if not arrays:
        return
    head, _ = build_header({name: (_DTYPES[a.dtype.name], a.shape) for name, a in arrays.items()}, dict(of))
    (folder / FOLDER).mkdir(exist_ok=True)
    with (folder / FOLDER / FILE).open("wb") as out:
        out.write(head)
        for a in arrays.values():
            out.write(a.tobytes())


def was_found_in(folder: Path) -> dict[str, str]:
    """What that which an earlier write found was found in; {} where that was not kept."""
    return read_header(_kept(folder))[1]


def read_found(folder: Path) -> Found:
    """What an earlier write found; raises RekindleError where there is nothing."""
    found: dict[str, dict[str, NDArray]] = {}
    with Files() as files:
        for full, stored in read_header(_kept(folder))[0].items():
            name, _, key = full.rpartition("/")
            data = files.read(stored.path, stored.offset, stored.nbytes)
            found.setdefault(name, {})[key] = np.frombuffer(data, _NUMPY[stored.dtype]).reshape(stored.shape)
    return {**found}


def _kept(folder: Path) -> Path:
    path = folder / FOLDER / FILE
    if not path.is_file():
        raise RekindleError("No measurements were kept there.", where=path, hint="a folder that rekindle wrote")
    return path


_DTYPES = {"float32": "F32", "float64": "F64", "int64": "I64"}
_NUMPY = {code: np.dtype(name) for name, code in _DTYPES.items()}
