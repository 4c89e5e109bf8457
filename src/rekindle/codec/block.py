"""One block: up to a few MB of values, coded by whatever makes them smallest, and decoded on its own.

    stored     the bytes as they are
    deflate    zlib's stream: text, and what repeats
    same       nothing: the bytes are the reference's
    planes     the top byte of each value, sign turned to the bottom, as a symbol; the bytes below it as planes
    delta      the difference from the reference, or from nothing, as a class and raw bits
    adaptive   the same, the classes by a coder that learns as it goes: smaller, and slower
    palette    one of a few values, or the reference's and one of a few: what near-lossless checkpoints are made of

Symbols are coded by tables, one for each context: none, or the top byte of the reference's value, or of the value
beside it (the second moment at the same place, for a first moment).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from enum import IntEnum
from typing import Literal

import numpy as np

from rekindle.codec import palette
from rekindle.codec.bits import Broken, Bytes, Contexts, Words
from rekindle.codec.kernel import Kernel
from rekindle.codec.palette import Context
from rekindle.codec.tables import merge, own_tables, read_tables, round_to_total, table_of, write_tables

Tier = Literal["fast", "max"]
SAMPLE = 4096  # values that a coder is chosen by, in pieces
PIECES = 16
WORTH = 0.985  # a plane is coded where that takes less than this share


class Codec(IntEnum):
    STORED, DEFLATE, SAME, PLANES, DELTA, ADAPTIVE, PALETTE = range(7)


class From(IntEnum):
    """What a difference is from; tracked: from the reference and what the differences before foretell."""

    NOTHING, REFERENCE, TRACKED = range(3)


@dataclass(frozen=True)
class Block:
    """What a block is of. `values` are bits as unsigned words [n]; reference and beside [n] are at the same places."""

    values: Words
    real: bool  # floats, whose bits are put in order before they are subtracted
    reference: Words | None = None
    beside: Words | None = None
    palette: np.ndarray | None = None  # float32: the few values there are, or are added to the reference

    def context(self, kind: Context) -> Words | None:
        return {Context.NONE: None, Context.REFERENCE: self.reference, Context.BESIDE: self.beside}[kind]


@dataclass(frozen=True)
class Choice:
    codec: Codec
    context: Context = Context.NONE
    origin: From = From.NOTHING
    bias: int = 0


def words(data: bytes | memoryview, dtype_bits: int) -> Words:
    """The bytes of values as unsigned words; bytes where they do not fill words of 2, 4 or 8."""
    width = dtype_bits if dtype_bits in (16, 32, 64) else 8
    return np.frombuffer(data, f"<u{width // 8}")


def encode(kernel: Kernel, block: Block, tier: Tier = "fast") -> bytes:
    """The smallest of what the block's codecs make of it; never more than a byte longer than stored."""
    values = block.values
    if block.reference is not None and np.array_equal(values, block.reference):
        return bytes([Codec.SAME])
    if found := [bytes([Codec.PALETTE]) + coded for coded in palette.encode(kernel, block)]:
        return min(found, key=len)
    best = min(_choices(kernel, block), key=lambda pair: pair[0])[1]
    found = []
    if best.codec == Codec.DEFLATE:
        found.append(bytes([Codec.DEFLATE]) + zlib.compress(values.tobytes(), 6))
    elif best.codec == Codec.PLANES:
        found.append(_encode_planes(kernel, block, best))
    elif best.codec == Codec.DELTA:
        found += _encode_delta(kernel, block, best, tier)
    least = min(found, key=len, default=None)
    if least is not None and len(least) <= values.nbytes:
        return least
    return bytes([Codec.STORED]) + values.tobytes()


def decode(kernel: Kernel, data: memoryview, n: int, block: Block) -> Words:
    """The block's n values; `block` holds what is known beforehand, its own values empty. Raises Broken."""
    like, body = block.values.dtype, data[1:]
    codec = data[0] if len(data) else None
    if codec == Codec.STORED and len(body) == n * like.itemsize:
        return np.frombuffer(bytes(body), like)  # a copy, in its place in memory
    if codec == Codec.DEFLATE:
        return _inflate(body, n, like)
    if codec == Codec.SAME and block.reference is not None and not len(body):
        return block.reference
    if codec == Codec.PLANES:
        return _decode_planes(kernel, body, n, block)
    if codec == Codec.DELTA:
        return _decode_delta(kernel, body, n, block)
    if codec == Codec.ADAPTIVE:
        return _decode_delta(kernel, body, n, block, adaptive=True)
    if codec == Codec.PALETTE:
        return palette.decode(kernel, body, n, block)
    raise Broken(f"its codec {codec} does not fit")


def _choices(kernel: Kernel, block: Block) -> Iterator[tuple[float, Choice]]:
    """Bits per value of each codec, by a sample."""
    picked = _sample(block.values.size)
    width = 8 * block.values.itemsize
    part = Block(
        block.values[picked],
        block.real,
        None if block.reference is None else block.reference[picked],
        None if block.beside is None else block.beside[picked],
    )
    yield width, Choice(Codec.STORED)
    if not block.real:
        kept = block.values[: 1 << 16].tobytes()
        yield 8 * len(zlib.compress(kept, 1)) / max(len(kept), 1) * width / 8, Choice(Codec.DEFLATE)
    if width > 8:
        symbols, rest = kernel.split(part.values)
        below = sum(min(8.0, _bits(kernel, plane, None)) for plane in rest)
    else:
        symbols, below = part.values, 0.0
    for kind in (Context.NONE, Context.BESIDE):
        context = part.context(kind)
        if kind == Context.NONE or context is not None:
            yield below + _bits(kernel, symbols, context), Choice(Codec.PLANES, kind)
    for choice in _differences(part):
        symbols, raw = _delta(kernel, part, choice)
        bits = 8 * raw.size / max(symbols.size, 1) + _bits(kernel, symbols, part.context(choice.context))
        yield bits, choice


def _differences(part: Block) -> Iterator[Choice]:
    if part.reference is None:
        if not part.real:
            yield Choice(Codec.DELTA)
        return
    bias = _bias(part)
    for offset in sorted({0, bias}):
        yield Choice(Codec.DELTA, Context.REFERENCE, From.REFERENCE, offset)
    if part.values.itemsize in (2, 4):
        most = 1 << (8 * part.values.itemsize - 8)
        yield Choice(Codec.DELTA, Context.REFERENCE, From.TRACKED, min(max(bias, -most), most))


def _delta(kernel: Kernel, block: Block, choice: Choice) -> tuple[Bytes, Bytes]:
    """Classes and raw bits of the differences that are chosen."""
    if choice.origin == From.TRACKED:
        assert block.reference is not None
        apart = kernel.track(block.values, block.reference, choice.bias, block.real)
        return kernel.delta(apart, None, 0, False)
    reference = block.reference if choice.origin == From.REFERENCE else None
    return kernel.delta(block.values, reference, choice.bias, block.real)


def _sample(n: int) -> slice | np.ndarray:
    if n <= SAMPLE:
        return slice(None)
    starts = np.linspace(0, n - SAMPLE // PIECES, PIECES).astype(np.int64)
    return (starts[:, None] + np.arange(SAMPLE // PIECES)).reshape(-1)


def _bits(kernel: Kernel, symbols: Bytes, context: Words | None) -> float:
    """Entropy of a sample, bits per symbol: of all contexts, by how often each occurs."""
    tops = None if context is None else top(context)
    counts = kernel.count(np.ascontiguousarray(symbols), tops, 1 if tops is None else 256).astype(float)
    counts = counts[counts.any(axis=1)]
    shares = counts / counts.sum(axis=1, keepdims=True)
    entropy = -(counts * np.log2(np.where(shares > 0, shares, 1.0))).sum()
    return float(entropy / max(symbols.size, 1))


def _bias(part: Block) -> int:
    """What values are more than their references, by the median: second moments all shrink alike."""
    assert part.reference is not None
    apart = np.sort(_integers(part.values, part.real) - _integers(part.reference, part.real))
    return int(apart[apart.size // 2]) if apart.size else 0


def _integers(values: Words, real: bool) -> np.ndarray:
    signed = values.astype(np.int64)
    sign = 1 << (8 * values.itemsize - 1)
    if not real or values.itemsize == 8:
        return signed
    return np.where(signed & sign, sign - 1 - (signed ^ sign) - sign, signed)


def top(values: Words) -> Bytes:
    """The top byte below the sign: the exponent of a float32 or bfloat16."""
    width = 8 * values.itemsize
    return values if width == 8 else (values >> (width - 9)).astype(np.uint8)


def _encode_symbols(kernel: Kernel, symbols: Bytes, context: Words | None) -> bytes:
    """Tables, the number of bytes, and the coded words."""
    if context is None:
        own, tables = np.zeros(0, np.uint8), None
        counts = kernel.count(symbols, None, 1)
    else:
        tops = top(context)
        counts = kernel.count(symbols, tops, 256)
        own = own_tables(counts)
        counts, tables = merge(counts, own), table_of(own)[tops]
    freqs = round_to_total(counts)
    coded = kernel.encode(symbols, tables, freqs)
    return b"".join((write_tables(own, freqs), struct.pack("<I", coded.size), coded.tobytes()))


def _decode_symbols(kernel: Kernel, data: memoryview, n: int, context: Words | None) -> tuple[Bytes, memoryview]:
    """Symbols [n], and what follows them."""
    own, freqs, at = read_tables(data)
    if len(own) and context is None:
        raise Broken("it has contexts where there are none")
    (nbytes,) = struct.unpack("<I", _exactly(data, at, 4))
    coded = np.frombuffer(_exactly(data, at + 4, nbytes), np.uint8)
    tables = None if context is None else table_of(own)[top(context)]
    return kernel.decode(coded, tables, freqs, n), data[at + 4 + nbytes :]


def _exactly(data: memoryview, at: int, nbytes: int) -> memoryview:
    if len(data) < at + nbytes:
        raise Broken("it is cut off")
    return data[at : at + nbytes]


def _encode_planes(kernel: Kernel, block: Block, choice: Choice) -> bytes:
    values = block.values
    symbols, rest = kernel.split(values) if values.itemsize > 1 else (values, np.empty((0, values.size), np.uint8))
    parts = [bytes([Codec.PLANES, choice.context]), _encode_symbols(kernel, symbols, block.context(choice.context))]
    picked = _sample(values.size)
    for plane in rest:
        coded = b""
        if _bits(kernel, plane[picked], None) < 8 * WORTH:
            coded = _encode_symbols(kernel, plane, None)
        parts += [b"\1", coded] if coded and len(coded) < plane.size else [b"\0", plane.tobytes()]
    return b"".join(parts)


def _decode_planes(kernel: Kernel, data: memoryview, n: int, block: Block) -> Words:
    context, like = _context(data, block), block.values.dtype
    symbols, data = _decode_symbols(kernel, data[1:], n, context)
    rest = np.empty((like.itemsize - 1, n), np.uint8)
    for plane in rest:
        coded = _exactly(data, 0, 1)[0]
        if coded == 1:
            plane[:], data = _decode_symbols(kernel, data[1:], n, None)
        elif coded == 0:
            plane[:], data = np.frombuffer(_exactly(data, 1, n), np.uint8), data[1 + n :]
        else:
            raise Broken(f"a plane is coded as {coded}")
    if len(data):
        raise Broken("something follows its end")
    return kernel.join(symbols, rest, like) if like.itemsize > 1 else symbols


def _encode_delta(kernel: Kernel, block: Block, choice: Choice, tier: Tier) -> Iterator[bytes]:
    """By tables, and in the tier that takes its time adaptively too."""
    symbols, raw = _delta(kernel, block, choice)
    context = block.context(choice.context)
    head = struct.pack("<BBq", choice.context, choice.origin, choice.bias)
    yield b"".join((bytes([Codec.DELTA]), head, _encode_symbols(kernel, symbols, context), raw.tobytes()))
    if tier == "max":
        coded = kernel.adapt(symbols, None, _offsets(context), _class_bits(block))
        if coded is not None:
            sized = struct.pack("<I", coded.size) + coded.tobytes()
            yield b"".join((bytes([Codec.ADAPTIVE]), head, sized, raw.tobytes()))


def _decode_delta(kernel: Kernel, data: memoryview, n: int, block: Block, *, adaptive: bool = False) -> Words:
    context, like = _context(data, block), block.values.dtype
    _, origin, bias = struct.unpack("<BBq", _exactly(data, 0, 10))
    if origin > max(From) or (origin and block.reference is None):
        raise Broken("its reference is missing")
    if adaptive:
        symbols, coded = _unadapt(kernel, data[10:], n, block, context)
    else:
        symbols, coded = _decode_symbols(kernel, data[10:], n, context)
    raw = np.frombuffer(coded, np.uint8)
    if origin == From.TRACKED:
        if block.reference is None or like.itemsize not in (2, 4) or abs(bias) > 1 << (8 * like.itemsize - 8):
            raise Broken("its running mean is out of bounds")
        apart = kernel.undelta(symbols, raw, None, 0, False, like)
        return kernel.untrack(apart, block.reference, bias, block.real)
    reference = block.reference if origin == From.REFERENCE else None
    return kernel.undelta(symbols, raw, reference, bias, block.real, like)


def _unadapt(kernel: Kernel, data: memoryview, n: int, block: Block, context: Words | None) -> tuple[Bytes, memoryview]:
    (nbytes,) = struct.unpack("<I", _exactly(data, 0, 4))
    coded = np.frombuffer(_exactly(data, 4, nbytes), np.uint8)
    return kernel.unadapt(coded, None, _offsets(context), _class_bits(block), n), data[4 + nbytes :]


def _class_bits(block: Block) -> int:
    """Of classes of differences: below twice the width."""
    return (16 * block.values.itemsize).bit_length() - 1


def _offsets(context: Words | None) -> Contexts | None:
    """Twice the exponent: classes are half octaves, so that class and offset tell a difference's size."""
    return None if context is None else 2 * top(context).astype(np.uint16)


def _context(data: memoryview, block: Block) -> Words | None:
    kind = _exactly(data, 0, 1)[0]
    if kind > max(Context) or (kind and block.context(Context(kind)) is None):
        raise Broken(f"its context {kind} is missing")
    return block.context(Context(kind))


def _inflate(data: memoryview, n: int, like: np.dtype) -> Words:
    inflate = zlib.decompressobj()
    try:
        out = inflate.decompress(data, n * like.itemsize + 1)
    except zlib.error as error:
        raise Broken(str(error)) from None
    if len(out) != n * like.itemsize or not inflate.eof or inflate.unused_data:
        raise Broken("it does not inflate to its length")
    return np.frombuffer(out, like)
