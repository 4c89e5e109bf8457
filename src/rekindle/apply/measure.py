"""The pass before the write: find what the plan's expressions wait for, and keep it beside the result.

OUT/measurements/found.safetensors holds each array as NAME/KEY, so that another write can reuse it. (A folder of
its own: some engines read every safetensors file beside the config as weights.)
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
from rekindle.store.header import build_header, read_header

FOLDER = "measurements"
FILE = "found.safetensors"

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


def write_found(folder: Path, found: Found) -> None:
    """Nothing is written where nothing was measured."""
    arrays = {f"{name}/{key}": np.asarray(a, order="C") for name in sorted(found) for key, a in found[name].items()}
    if not arrays:
        return
    head, _ = build_header({name: (_DTYPES[a.dtype.name], a.shape) for name, a in arrays.items()}, {})
    (folder / FOLDER).mkdir(exist_ok=True)
    with (folder / FOLDER / FILE).open("wb") as out:
        out.write(head)
        for a in arrays.values():
            out.write(a.tobytes())


def read_found(folder: Path) -> Found:
    """What an earlier write found; raises RekindleError where there is nothing."""
    path = folder / FOLDER / FILE
    if not path.is_file():
        raise RekindleError("No measurements were kept there.", where=path, hint="a folder that rekindle wrote")
    found: dict[str, dict[str, NDArray]] = {}
    with Files() as files:
        for full, stored in read_header(path)[0].items():
            name, _, key = full.rpartition("/")
            data = files.read(stored.path, stored.offset, stored.nbytes)
            found.setdefault(name, {})[key] = np.frombuffer(data, _NUMPY[stored.dtype]).reshape(stored.shape)
    return {**found}


_DTYPES = {"float32": "F32", "float64": "F64", "int64": "I64"}
_NUMPY = {code: np.dtype(name) for name, code in _DTYPES.items()}
