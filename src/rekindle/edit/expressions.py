"""Tensor expressions: what a tensor of the child is, in terms of the parents' bytes. Lazy, typed, priced.

Here are stored tensors and cuts of them; `joining` puts tensors together, `arithmetic` and its kin calculate.

Every tensor is seen as a matrix of *rows*: all axes but the last, flattened, by the last (a vector is n rows of
one). Operations along the leading axes only pick and join rows, so the bytes they need are runs of file bytes
(`spans`) that the kernel can copy; all others yield `raw` blocks of rows, a bounded window at a time.

Each operation says how it carries Adam's moments. If a child's tensor is w' = f(w), its first moment estimates the
mean of its own gradient and its second the mean of the square, so copies keep both, a weight scaled by a has them
divided by a and a^2, and whatever mixes or draws anew starts empty, as a new tensor does.

Every field of an expression is part of what it is, see `signature`: there is nothing to declare. Fields are slots, and
hold plain values, arrays, expressions, what is measured, or tuples, lists and tables of these; all else is refused.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import cache
from typing import Any, NamedTuple, Protocol, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from rekindle.errors import RekindleError
from rekindle.store.dtypes import BITS, RAW, nbytes, to_float
from rekindle.store.header import Stored
from rekindle.store.legacy import Held


class Span(NamedTuple):
    """A run of bytes in a file."""

    path: str
    offset: int
    nbytes: int


class Reader(Protocol):
    """Where blocks come from: an open set of files."""

    def read(self, path: str, offset: int, nbytes: int) -> bytes: ...


@cache
def fields_of(cls: type) -> tuple[str, ...]:
    """The names of all fields of an expression, or of a measurement; raises TypeError where it may have others."""
    if cls.__dictoffset__:
        raise TypeError(f"{cls.__name__} has no __slots__: what is put into it would be no part of what it is")
    return tuple(name for base in cls.__mro__ for name in getattr(base, "__slots__", ()))


Moments = Callable[["Leaf", int], "Expr"]  # the moment (1 or 2) of a parent's tensor


class Expr:
    """A tensor that is not there yet."""

    __slots__ = ("dtype", "shape")
    dtype: str
    shape: tuple[int, ...]
    live = 1  # blocks in memory while one block of this is made, besides those of its children

    @property
    def nbytes(self) -> int:
        return nbytes(self.dtype, self.shape)

    @property
    def row_size(self) -> int:
        return self.shape[-1] if len(self.shape) > 1 else 1

    @property
    def num_rows(self) -> int:
        return math.prod(self.shape[:-1]) if len(self.shape) > 1 else math.prod(self.shape)

    def children(self) -> Sequence[Expr]:
        return ()

    def spans(self) -> list[Span] | None:
        """The file bytes this is made of, in order, or None where it must be computed."""
        return None

    def raw(self, lo: int, hi: int, reader: Reader) -> NDArray:
        """Rows lo to hi as [hi - lo, row_size] in the stored dtype (bfloat16 as its bits)."""
        raise AssertionError(f"{type(self).__name__} has no blocks")

    def gather(self, rows: NDArray, reader: Reader) -> NDArray:
        """These rows as `raw` gives them, in any order, repetitions allowed; neighbours are made together."""
        wanted, back = np.unique(rows, return_inverse=True)
        ends = np.flatnonzero(np.diff(wanted, append=wanted[-1] + 2) > 1)
        runs = zip(wanted[np.concatenate([[0], ends[:-1] + 1])].tolist(), (wanted[ends] + 1).tolist(), strict=True)
        return np.concatenate([self.raw(lo, hi, reader) for lo, hi in runs])[back]

    def values(self, lo: int, hi: int, reader: Reader) -> NDArray:
        """The same as floats: float32, or float64 where stored so."""
        return to_float(self.raw(lo, hi, reader), self.dtype)

    def moment(self, order: int, of: Moments) -> Expr:
        """Adam's first (1) or second (2) moment of this, from the parent's."""
        raise AssertionError(f"{type(self).__name__} has no rule for moments")

    def memory(self) -> int:
        """Blocks in memory at once while a block of this is made: an upper bound."""
        return self.live + max((child.memory() for child in self.children()), default=0)

    def streams(self) -> bool:
        """Whether a few rows cost no more than their share, so that they may be made a few at a time."""
        return all(child.streams() for child in self.children())

    def leaves(self) -> Iterator[Leaf]:
        for child in self.children():
            yield from child.leaves()

    def own(self) -> Iterator[tuple[str, Any]]:
        """Its fields by name, but for those that are expressions, or several: `children` has these."""
        for name in fields_of(type(self)):
            value = getattr(self, name)
            if not (isinstance(value, Expr) or (isinstance(value, tuple) and value and _are_exprs(value))):
                yield name, value

    def label(self) -> str:
        """Names what it computes, on any machine: a stored tensor's name, or one followed by a digest."""
        return f"{next((leaf.label() for leaf in self.leaves()), 'new')}#{signature(self)[:16]}"

    def first(self, rows: int) -> Expr:
        """The first rows along axis 0."""
        inner = self.num_rows // self.shape[0]
        return self.rows(0, rows * inner, (rows, *self.shape[1:]))

    def rows(self, lo: int, hi: int, shape: tuple[int, ...] | None = None) -> Expr:
        """Rows lo to hi, as a matrix (or vector) or in the given shape; itself where that is all of it."""
        if shape is None:
            shape = (hi - lo, self.row_size) if len(self.shape) > 1 else (hi - lo,)
        return self if shape == self.shape else Rows(self, lo, hi, shape)

    def columns(self, lo: int, hi: int) -> Expr:
        """Columns lo to hi of a matrix; itself where that is all of it."""
        return self if (lo, hi) == (0, self.shape[-1]) else Columns(self, lo, hi)

    def transposed(self) -> Expr:
        """A matrix [n, m] as [m, n]; turned twice it is itself."""
        return Transposed(self)


class Leaf(Expr):
    """A stored tensor: which source's, and its name there. The only source of a checkpoint has the empty key."""

    __slots__ = ("name", "source", "stored")

    def __init__(self, name: str, stored: Stored | Held, source: str = ""):
        self.name, self.stored, self.source = name, stored, source
        self.dtype, self.shape = stored.dtype, stored.shape

    def spans(self) -> list[Span] | None:
        if isinstance(self.stored, Held):
            return None
        return [Span(self.stored.path, self.stored.offset, self.stored.nbytes)]

    def raw(self, lo: int, hi: int, reader: Reader) -> NDArray:
        if isinstance(self.stored, Held):
            return self.stored.array.reshape(self.num_rows, self.row_size)[lo:hi]
        if BITS[self.dtype] % 8 or self.dtype not in RAW:
            raise RekindleError(f"{self.name} is {self.dtype}: it can be copied whole, but not cut or changed.")
        size = self.row_size * BITS[self.dtype] // 8
        data = reader.read(self.stored.path, self.stored.offset + lo * size, (hi - lo) * size)
        return np.frombuffer(data, RAW[self.dtype]).reshape(hi - lo, self.row_size)

    def streams(self) -> bool:
        return not isinstance(self.stored, Held) or not self.stored.mark  # an archive is decoded by the block

    def moment(self, order: int, of: Moments) -> Expr:
        return of(self, order)

    def leaves(self) -> Iterator[Leaf]:
        yield self

    def label(self) -> str:
        return labelled(self.source, self.name)


class Rows(Expr):
    """A run of rows, in a new shape: a slice along the leading axes."""

    __slots__ = ("hi", "lo", "x")
    live = 0

    def __init__(self, x: Expr, lo: int, hi: int, shape: tuple[int, ...]):
        assert 0 <= lo <= hi <= x.num_rows, (lo, hi, x.shape)
        assert (hi - lo) * x.row_size == math.prod(shape), (lo, hi, x.shape, shape)
        self.x, self.lo, self.hi = x, lo, hi
        self.dtype, self.shape = x.dtype, shape

    def children(self) -> Sequence[Expr]:
        return (self.x,)

    def spans(self) -> list[Span] | None:
        whole = self.x.spans()
        bits = self.x.row_size * BITS[self.dtype]
        if whole is None or bits * self.lo % 8 or bits * self.hi % 8:
            return None
        return list(_cut(whole, bits * self.lo // 8, bits * self.hi // 8))

    def raw(self, lo: int, hi: int, reader: Reader) -> NDArray:
        size, wide = self.row_size, self.x.row_size  # they differ where a row of a matrix becomes a vector
        at, to = lo * size // wide, -(-hi * size // wide)
        block = self.x.raw(self.lo + at, self.lo + to, reader).reshape(-1)
        return block[lo * size - at * wide : hi * size - at * wide].reshape(hi - lo, size)

    def gather(self, rows: NDArray, reader: Reader) -> NDArray:
        return (
            self.x.gather(rows + self.lo, reader) if self.row_size == self.x.row_size else super().gather(rows, reader)
        )

    def moment(self, order: int, of: Moments) -> Expr:
        return self.x.moment(order, of).rows(self.lo, self.hi, self.shape)

    def meets(self, other: Rows) -> bool:
        """Whether the other rows are those that follow in the same tensor."""
        return self.x is other.x and self.hi == other.lo and self.row_size == self.x.row_size == other.row_size

    def rows(self, lo: int, hi: int, shape: tuple[int, ...] | None = None) -> Expr:
        if self.row_size != self.x.row_size:
            return super().rows(lo, hi, shape)
        return self.x.rows(self.lo + lo, self.lo + hi, shape)

    def transposed(self) -> Expr:
        if isinstance(self.x, Transposed) and len(self.shape) == 2:
            return self.x.x.columns(self.lo, self.hi)
        return super().transposed()


class Columns(Expr):
    """A run of columns of a matrix: a slice along the last axis."""

    __slots__ = ("hi", "lo", "x")

    def __init__(self, x: Expr, lo: int, hi: int):
        assert len(x.shape) > 1, x.shape
        assert 0 <= lo < hi <= x.shape[-1], (lo, hi, x.shape)
        self.x, self.lo, self.hi = x, lo, hi
        self.dtype, self.shape = x.dtype, (*x.shape[:-1], hi - lo)

    def children(self) -> Sequence[Expr]:
        return (self.x,)

    def spans(self) -> list[Span] | None:
        return self.x.spans() if self.shape == self.x.shape else None

    def raw(self, lo: int, hi: int, reader: Reader) -> NDArray:
        return self.x.raw(lo, hi, reader)[:, self.lo : self.hi]

    def moment(self, order: int, of: Moments) -> Expr:
        return Columns(self.x.moment(order, of), self.lo, self.hi)

    def transposed(self) -> Expr:
        return self.x.transposed().rows(self.lo, self.hi)


class Transposed(Expr):
    """A matrix with its axes exchanged; made by `x.transposed()`."""

    __slots__ = ("x",)
    live = 2

    def __init__(self, x: Expr):
        assert len(x.shape) == 2, x.shape
        self.x, self.dtype, self.shape = x, x.dtype, (x.shape[1], x.shape[0])

    def children(self) -> Sequence[Expr]:
        return (self.x,)

    def raw(self, lo: int, hi: int, reader: Reader) -> NDArray:
        x, step = self.x, max(1, BLOCK // self.x.row_size)
        out: NDArray | None = None
        for at in range(0, x.num_rows, step):  # a block of x at a time: never the whole of it
            block = x.raw(at, min(at + step, x.num_rows), reader)[:, lo:hi]
            out = np.empty((hi - lo, x.num_rows), block.dtype) if out is None else out
            out[:, at : at + len(block)] = block.T
        assert out is not None
        return out

    def streams(self) -> bool:
        return False  # each block goes through all of x

    def moment(self, order: int, of: Moments) -> Expr:
        return self.x.moment(order, of).transposed()

    def transposed(self) -> Expr:
        return self.x


def labelled(source: str, name: str) -> str:
    """A stored tensor among those of all sources; the key of an only one is empty, and no key has a colon."""
    return f"{source}:{name}" if source or ":" in name else name


def signature(x: Expr, seen: dict[int, str] | None = None) -> str:
    """SHA-256 of what an expression computes from which stored tensors; their names stand for their bytes."""
    seen = {} if seen is None else seen
    if id(x) not in seen:
        if isinstance(x, Leaf):
            own = x.label()
        else:
            own = ",".join(f"{name}={_text(value, seen)}" for name, value in x.own())
        inner = ",".join(signature(child, seen) for child in x.children())
        seen[id(x)] = hashlib.sha256(f"{type(x).__name__}({own};{inner}){x.dtype}{x.shape}".encode()).hexdigest()
    return seen[id(x)]


@runtime_checkable
class Saying(Protocol):
    """What a field may hold besides plain values, arrays and expressions."""

    def said(self) -> str:
        """All that it is: another has another text."""
        ...


PLAIN = (int, float, str, bool, type(None))  # whose repr is all that they are


def _text(value: Any, seen: dict[int, str]) -> str:
    """A field's value, whole: of an array its digest, of several values each; raises TypeError for anything else."""
    if type(value) in PLAIN:
        return repr(value)
    if isinstance(value, np.generic) and type(value.item()) in PLAIN:
        return repr(value.item())
    if isinstance(value, (tuple, list)):
        return f"({', '.join(_text(item, seen) for item in value)}{',' * (len(value) == 1)})"
    if isinstance(value, dict):
        return f"{{{', '.join(sorted(_text(item, seen) for item in value.items()))}}}"
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return hashlib.sha256(f"{value.dtype}{value.shape}".encode() + value.tobytes()).hexdigest()
    if isinstance(value, Expr):
        return signature(value, seen)
    if isinstance(value, Saying):
        return value.said()
    raise TypeError(f"a {type(value).__name__} does not say what it is, and cannot be a field of an expression")


def inside(value: Any) -> Iterable[Any]:
    """The values of a field that holds several."""
    return value.values() if isinstance(value, dict) else value if isinstance(value, (tuple, list)) else ()


def _are_exprs(items: tuple[Any, ...]) -> bool:
    return all(isinstance(item, Expr) for item in items)


BLOCK = 1 << 18  # values of a block where an operation must go through a whole tensor


def _cut(spans: Sequence[Span], lo: int, hi: int) -> Iterator[Span]:
    """The bytes lo to hi of a row of spans."""
    start = 0
    for span in spans:
        begin, end = max(lo, start), min(hi, start + span.nbytes)
        if begin < end:
            yield Span(span.path, span.offset + begin - start, end - begin)
        start += span.nbytes
