"""With a bound on the error: every value rounded to as few bits of mantissa as keep it within a share of itself.

Each value on its own, whatever was packed before it, so that errors do not add up. One that would leave the bound
stays as it is: subnormals, the very largest, infinities, NaN.
"""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np

from rekindle.codec.bits import Words
from rekindle.codec.block import words
from rekindle.codec.shrunk import LEAST, Shrunk
from rekindle.codec.source import Source
from rekindle.errors import RekindleError
from rekindle.store.dtypes import COMPUTED, to_float

MANTISSA = {"F64": 52, "F32": 23, "F16": 10, "BF16": 7}  # bits
PREFIX = "rel:"
LARGEST = 0.25


def mode_of(error: str) -> str:
    """ "rel:1e-3" -> "rel:0.001", as archives keep it. Raises RekindleError for what is no bound."""
    try:
        bound = float(error.removeprefix(PREFIX)) if error.startswith(PREFIX) else math.nan
    except ValueError:
        bound = math.nan
    if not 0 < bound <= LARGEST:
        what = f"{error!r} is no bound: rel:X keeps each value within X of itself, X at most {LARGEST}."
        raise RekindleError(what, hint="--error rel:1e-3")
    return f"{PREFIX}{bound!r}"


def round_source(source: Source, mode: str) -> Shrunk:
    """Tensors of floats, but for small ones, rounded when they are read. `mode` is "rel:X"."""
    bound = float(mode.removeprefix(PREFIX))
    shrunk = Shrunk(source)

    def read(tensor: int, start: int, nbytes: int) -> bytes:
        data, kind = source.read(tensor, start, nbytes), source.tensors[tensor]
        if kind.dtype not in MANTISSA or kind.n < LEAST:
            return data
        given = words(data, 8 * kind.word)
        made = rounded(given, kind.dtype, bound)
        if made is not given:
            shrunk.errors.note(tensor, start, _floats(given, kind.dtype), _floats(made, kind.dtype))
        return made.tobytes()

    return replace(shrunk, source=replace(source, read=read))


def rounded(values: Words, dtype: str, bound: float) -> Words:
    """The nearest values with as many bits of mantissa as `bound` needs, ties to even."""
    drop = MANTISSA[dtype] - max(0, math.ceil(-math.log2(bound)) - 1)
    if drop <= 0:
        return values
    one = values.dtype.type(1)
    half = (one << drop - 1) - one + (values >> drop & one)
    made = (values + half) >> drop << drop
    with np.errstate(invalid="ignore", over="ignore"):
        given = _floats(values, dtype).astype(np.float64)
        within = np.abs(_floats(made, dtype) - given) <= bound * np.abs(given)
        within &= np.abs(given) >= np.finfo(np.float64).tiny  # below, the bound itself is rounded
    return np.where(within, made, values)


def _floats(values: Words, dtype: str) -> np.ndarray:
    with np.errstate(invalid="ignore"):  # a NaN that signals
        return to_float(values.view(COMPUTED[dtype]), dtype)
