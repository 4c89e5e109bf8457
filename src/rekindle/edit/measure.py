"""What a method must know of the values: measured in a pass of its own, before anything is written.

A method names a measurement and goes on: `Statistics(x)["std"]` is a number that is not there yet, and expressions
hold it like any other number. A dry run prices the pass; `apply.measure` makes it; OUT keeps what was found.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from functools import cache
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from rekindle.edit.expressions import Expr, Reader, fields_of, inside

STEP = 1 << 19  # values looked at together: 2 MB as float32
BRANCHES = {"attn": "attn.o", "ffn": "ffn.down"}  # of a layer: the part that puts out each


class Activations(Protocol):
    """What a model computes on text, layer by layer; see apply.calibrate."""

    def attention_inputs(self, layer: int) -> NDArray[np.float64]:
        """Second moment E[x x'] of the inputs of a layer's attention, each with a 1 appended: [D + 1, D + 1]."""
        ...

    def branch_size(self, layer: int, branch: str) -> float:
        """Mean over tokens of the root of the mean square of what a layer's "attn" or "ffn" puts out."""
        ...


class Measurement:
    """Named arrays that a pass over the input finds. Equal names in a plan mean the same measurement."""

    __slots__ = ("_found", "data", "name", "of", "source")

    def __init__(self, name: str, of: Sequence[Expr], data: str = ""):
        self.name = name  # "statistics/model.layers.3.mlp.up_proj.weight"
        self.of = tuple(of)  # what it reads
        self.data = data  # the text whose activations it needs as well; "": none
        self.source = ""  # whose activations: the key of a source
        self._found: Mapping[str, NDArray] | None = None

    def find(self, reader: Reader, activations: Activations | None) -> dict[str, NDArray]:
        """Look. `activations` is None where `data` is empty."""
        raise AssertionError(f"{type(self).__name__} does not know how to look")

    def __getitem__(self, key: str) -> Found:
        return Found(self, key)

    def told(self) -> tuple[str, dict[str, float]]:
        """What the user should know of what was found, as a row of a table: its name, and a number by column."""
        raise AssertionError(f"{type(self).__name__} has nothing to tell")

    @property
    def nbytes(self) -> int:
        """Bytes read to find it."""
        return sum(x.nbytes for x in self.of)

    @property
    def found(self) -> Mapping[str, NDArray] | None:
        return self._found

    def settle(self, found: Mapping[str, NDArray]) -> None:
        self._found = found


class Found:
    """One array of a measurement, times a number; not there before the pass."""

    __slots__ = ("by", "key", "measurement")

    def __init__(self, measurement: Measurement, key: str, by: float = 1.0):
        self.measurement, self.key, self.by = measurement, key, by

    def __mul__(self, by: float) -> Found:
        return Found(self.measurement, self.key, self.by * by)

    def said(self) -> str:
        return f"{self.measurement.name}/{self.key}*{float(self.by)!r}"

    @property
    def array(self) -> NDArray:
        assert self.measurement.found is not None, f"{self.measurement.name} was not measured"
        value = self.measurement.found[self.key]
        return value if self.by == 1.0 else value * self.by


Number = float | Found  # one number
Array = NDArray | Found


def number(x: Number) -> float:
    return float(x.array) if isinstance(x, Found) else x


def array(x: Array) -> NDArray:
    return x.array if isinstance(x, Found) else x


class Statistics(Measurement):
    """Mean and standard deviation of all finite values of a tensor."""

    __slots__ = ()

    def __init__(self, x: Expr):
        super().__init__(f"statistics/{x.label()}", (x,))

    def find(self, reader: Reader, activations: Activations | None) -> dict[str, NDArray]:
        (x,) = self.of
        step = max(1, STEP // 8 // max(1, x.row_size))  # as float64 they fit the cache
        total = squares = count = 0.0
        for lo in range(0, x.num_rows, step):
            block = x.values(lo, min(lo + step, x.num_rows), reader).astype(np.float64)
            with np.errstate(invalid="ignore"):  # infinity less infinity
                part = float(block.sum())
            if not math.isfinite(part):
                block = block[np.isfinite(block)]
                part = float(block.sum())
            total += part
            count += block.size
            squares += float(np.square(block, out=block).sum())
        mean = total / max(count, 1)
        std = max(0.0, squares / max(count, 1) - mean * mean) ** 0.5
        # float32: machines that add in another order agree on these digits
        return {"mean": np.asarray(mean, np.float32), "std": np.asarray(std, np.float32)}


@cache
def _may_hold(kind: type) -> bool:
    """Whether measurements may be in a field of this type."""
    return issubclass(kind, (Found, tuple, list, dict))


def _found(value: Any) -> Iterator[Found]:
    """What is measured in a field's value: it, or some of what is inside."""
    if isinstance(value, Found):
        yield value
    for item in inside(value):
        if _may_hold(type(item)):
            yield from _found(item)


def measurements(exprs: Iterable[Expr], also: Iterable[Measurement] = ()) -> list[Measurement]:
    """All measurements these expressions wait for, and others; what one's own tensors wait for comes before it."""
    needed: dict[int, Measurement] = {}
    seen: set[int] = set()

    def walk(x: Expr) -> None:
        if id(x) in seen:
            return
        seen.add(id(x))
        for child in x.children():
            walk(child)
        for name in fields_of(type(x)):
            if _may_hold(type(value := getattr(x, name))):
                for found in _found(value):
                    add(found.measurement)

    def add(measurement: Measurement) -> None:
        if id(measurement) not in needed:
            for read in measurement.of:
                walk(read)
            needed[id(measurement)] = measurement

    for x in exprs:
        walk(x)
    for measurement in also:
        add(measurement)
    return list(needed.values())
