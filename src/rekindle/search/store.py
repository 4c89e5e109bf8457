"""The checkpoints of a series as a matrix of their differences from the last one, and fast sums of its rows.

    theta(alpha) = s theta_K + sum_k alpha_k d_k      d_k = theta_k - theta_K,   s = sum_k alpha_k

So equal checkpoints give themselves back whatever the coefficients are that sum to 1, small differences keep their
digits in bfloat16, and the gradient of any function of theta is K inner products.

Coefficients are an array [K], or [G, K] where groups of tensors, which are parts of the vector, have their own. Where
the run kept averages as well, they have rows before those of the checkpoints, and an array [N + K] counts them.

K checkpoints   N averages   P values of a vector   M candidates   G groups
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from rekindle.apply.threads import cores, one_for_each_worker
from rekindle.errors import RekindleError, counted
from rekindle.search.series import Series, windows
from rekindle.store.files import Files
from rekindle.store.window import Floats, loops

Held = Literal["float32", "bfloat16"]
CODES = {"float32": "F32", "bfloat16": "BF16"}
ITEMSIZE = {"float32": 4, "bfloat16": 2}
WINDOW = 1 << 18  # values of each checkpoint that are read together
COLUMNS = 1 << 14  # values of each row that all candidates of a batch are made of, before the next are read


class Store:
    """`rows` [N + K - 1, P], float32 or the bits of bfloat16, and the last checkpoint's vector [P].

    `parts`: of the vector, that have coefficients of their own. The first `averages` of the rows are no checkpoints.
    """

    def __init__(
        self, rows: NDArray, last: Floats, held: Held = "float32", parts: Sequence[slice] = (), averages: int = 0
    ):
        self.rows, self.last, self.parts = rows, last, parts if len(parts) > 1 else [slice(0, last.size)]
        self.averages = averages
        self._code, self._rows = CODES[held], list(rows)

    @property
    def count(self) -> int:
        """K."""
        return len(self._rows) - self.averages + 1

    @property
    def size(self) -> int:
        """P."""
        return self.last.size

    @property
    def shape(self) -> tuple[int, ...]:
        """Of coefficients: [K], or [G, K]."""
        return (self.count,) if len(self.parts) == 1 else (len(self.parts), self.count)

    def row(self, k: int) -> NDArray:
        """The stored differences of checkpoint k; of the last one they are 0."""
        return self._rows[self.averages + k] if k < self.count - 1 else np.zeros_like(self._rows[0])

    def mix(self, alpha: Sequence[float] | NDArray, out: Floats) -> Floats:
        """theta(alpha) into `out` [P], summed in the order of the rows: the same bits on any number of threads."""
        for part, own in zip(self.parts, self._by_part(alpha), strict=True):
            np.multiply(self.last[part], _scale(own), out=out[part])
            used = np.flatnonzero(own[:-1])
            loops().mix(out[part], [self._rows[k][part] for k in used], self._code, own[used].tolist())
        return out

    def mix_many(self, alphas: Sequence[NDArray], out: NDArray) -> NDArray:
        """theta of M candidates into `out` [M, P]; the rows are read once."""
        by_part = np.stack([self._by_part(alpha) for alpha in alphas], axis=1)
        for part, own in zip(self.parts, by_part, strict=True):
            used = np.flatnonzero(own[:, :-1].any(axis=0))
            scale, weights = [_scale(alpha) for alpha in own], own[:, used].tolist()
            for lo in range(part.start, part.stop, COLUMNS):
                columns = slice(lo, min(lo + COLUMNS, part.stop))
                rows = [self._rows[k][columns] for k in used]
                for m, by in enumerate(weights):
                    block = np.multiply(self.last[columns], scale[m], out=out[m, columns])
                    loops().mix(block, rows, self._code, by)
        return out

    def _by_part(self, alpha: Sequence[float] | NDArray) -> NDArray[np.float64]:
        """[G, N + K]."""
        alpha = np.asarray(alpha, np.float64)
        found = np.zeros((len(self.parts), self.averages + self.count))
        found[:, found.shape[1] - alpha.shape[-1] :] = alpha
        return found

    def edit(self, theta: Floats, changes: Mapping[int, float]) -> Floats:
        """Add to coefficients of a vector that was mixed: as many rows are read as coefficients change.

        Each edit rounds once more: mix anew after some fifty.
        """
        assert all(0 <= k < self.count for k in changes), (changes, self.count)
        total = float(sum(changes.values()))
        if abs(total) > 1e-12:
            loops().mix(theta, [self.last], "F32", [total])
        used = [(self.row(k), change) for k, change in changes.items() if k < self.count - 1 and change]
        loops().mix(theta, [row for row, _ in used], self._code, [change for _, change in used])
        return theta

    def gradient(self, g: Floats) -> NDArray[np.float64]:
        """The gradient in alpha, of its shape, of a function of theta whose gradient in theta is g [P]."""
        found = []
        for part in self.parts:
            along = loops().dots([self.last[part]], "F32", g[part])
            rows = [row[part] for row in self._rows[self.averages :]]
            found.append(np.append(loops().dots(rows, self._code, g[part]), 0.0) + along)
        return np.reshape(found, self.shape)


def _scale(alpha: NDArray[np.float64]) -> np.float32:
    """s, 1 where that is what is meant."""
    total = float(alpha.sum())
    return np.float32(1 if abs(total - 1) < 1e-9 else total)


def where_to(nbytes: int, beside: Path | None) -> Path | None:
    """None: so many bytes fit half of the memory that is free; else the folder for a file, `beside` or the system's.

    Raises RekindleError where the disc has no room for them either.
    """
    import psutil

    if nbytes <= psutil.virtual_memory().available / 2:
        return None
    folder = beside or Path(tempfile.gettempdir())
    if (free := shutil.disk_usage(folder).free) < nbytes:
        what = f"The series takes {nbytes / 1e9:.1f} GB, and {folder} has {free / 1e9:.1f} GB."
        raise RekindleError(what, hint="--store bfloat16, fewer checkpoints, or an OUT on another disc")
    return folder


def fill(series: Series, held: Held = "float32", folder: Path | None = None) -> Store:
    """Read a series into a store: in memory, or as a file that is mapped, in `folder`, and gone with the process.

    Raises RekindleError for values that are NaN or infinite: which tensor of which checkpoint.
    """
    others = [*series.averages.items(), *zip(series.names[:-1], series.tensors, strict=False)]
    shape, dtype = (len(others), series.size), np.float32 if held == "float32" else np.uint16
    rows, last = _room(shape, dtype, folder), _room(shape[1:], np.float32, folder)

    def read(window: tuple[str, int, int, int]) -> None:
        name, lo, hi, at = window
        base = _values(series, series.names[-1], name, series.last[name].values(lo, hi, files))
        end = at + base.size
        last[at:end] = base
        for k, (of, tensors) in enumerate(others):
            change = _values(series, of, name, tensors[name].values(lo, hi, files)) - base
            rows[k, at:end] = loops().round(change, CODES[held]) if held == "bfloat16" else change

    with Files() as files, one_for_each_worker(), ThreadPoolExecutor(cores()) as pool:
        for _ in pool.map(read, windows(series.places, WINDOW)):
            pass
    store = Store(rows, last, held, [*series.parts.values()], len(series.averages))
    _check_distinct(store, series)
    return store


def _check_distinct(store: Store, series: Series) -> None:
    """Raise RekindleError where two checkpoints are the same: no objective could tell their coefficients apart."""
    along = store.gradient(np.random.default_rng(0).standard_normal(store.size, np.float32))
    along = along.reshape(-1, store.count).sum(axis=0)
    order = np.argsort(along, kind="stable")
    for one, other in zip(order, order[1:]):
        if along[one] == along[other] and np.array_equal(store.row(one), store.row(other)):
            names = [series.names[k] for k in sorted((int(one), int(other)))]
            what = f"{names[0]} and {names[1]} are the same: all tensors that are combined are equal."
            raise RekindleError(what, hint=f"the series without {names[0]}")


def _values(series: Series, of: str, name: str, values: NDArray) -> Floats:
    found = values.reshape(-1).astype(np.float32, copy=False)
    if bad := loops().not_finite(found, "F32"):
        where = series.checkpoints[of].folder.named if of in series.checkpoints else None
        what = f"{name} of {of} holds NaN or infinity: {counted(bad, 'value')}."
        raise RekindleError(what, where=where, hint="the series without it")
    return found


def _room(shape: tuple[int, ...], dtype: type, folder: Path | None) -> NDArray:
    if folder is None:
        return np.empty(shape, dtype)
    with tempfile.TemporaryFile(dir=folder) as file:  # no name: it goes with the last use of it
        return np.memmap(file, dtype, "w+", shape=shape)
