"""A block to bytes, by whatever makes it smallest, and back.

Symbols are coded by tables, one for each context: none, or the top byte of the reference's value, or of the value
beside it (the second moment at the same place, for a first moment).
"""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

import numpy as np

from rekindle.codec import palette
from rekindle.codec.bits import Broken, Bytes, Contexts, Words
from rekindle.codec.block import Block, Codec, Context, From, Tier, narrowed, top, widened
from rekindle.codec.choose import Choice, choices, reference_of
from rekindle.codec.grid import read_grid
from rekindle.codec.kernel import Kernel
from rekindle.codec.tables import merge, own_tables, read_tables, round_to_total, table_of, write_tables


def encode(kernel: Kernel, block: Block, tier: Tier = "fast") -> bytes:
    """The smallest of what the block's codecs make of it; never more than a byte longer than stored."""
    values = block.values
    if block.reference is not None and np.array_equal(values, block.reference):
        return bytes([Codec.SAME])
    if found := [bytes([Codec.PALETTE]) + coded for coded in palette.encode(kernel, block)]:
        return min(found, key=len)
    best = min(choices(kernel, block), key=lambda pair: pair[0])[1]
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
    if any(known is not None and known.size != n for known in (block.reference, block.beside)):
        raise Broken("what it is coded by has another size")
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


def encode_symbols(kernel: Kernel, symbols: Bytes, context: Words | None) -> bytes:
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
    return b"".join((write_tables(own, freqs), struct.pack("<I", coded.size), coded.data))


def decode_symbols(kernel: Kernel, data: memoryview, n: int, context: Words | None) -> tuple[Bytes, memoryview]:
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
    parts = [bytes([Codec.PLANES, choice.context]), encode_symbols(kernel, symbols, block.context(choice.context))]
    for plane, worth in zip(rest, choice.coded, strict=True):
        coded = encode_symbols(kernel, plane, None) if worth else b""
        parts += [b"\1", coded] if coded and len(coded) < plane.size else [b"\0", plane.data]
    return b"".join(parts)


def _decode_planes(kernel: Kernel, data: memoryview, n: int, block: Block) -> Words:
    context, like = _context(data, block), block.values.dtype
    symbols, data = decode_symbols(kernel, data[1:], n, context)
    rest = np.empty((like.itemsize - 1, n), np.uint8)
    for plane in rest:
        coded = _exactly(data, 0, 1)[0]
        if coded == 1:
            plane[:], data = decode_symbols(kernel, data[1:], n, None)
        elif coded == 0:
            plane[:], data = np.frombuffer(_exactly(data, 1, n), np.uint8), data[1 + n :]
        else:
            raise Broken(f"a plane is coded as {coded}")
    if len(data):
        raise Broken("something follows its end")
    return kernel.join(symbols, rest, like) if like.itemsize > 1 else symbols


def _encode_delta(kernel: Kernel, block: Block, choice: Choice, tier: Tier) -> Iterator[bytes]:
    """By tables, and in the tier that takes its time adaptively too."""
    small, context = narrowed(block, choice.shift), block.context(choice.context)
    symbols, raw = kernel.delta(small.values, reference_of(small, choice), choice.bias, block.real)
    head = struct.pack("<BBBq", choice.context, choice.origin, choice.shift, choice.bias)
    head += choice.grid.to_bytes() if choice.grid else b""
    yield b"".join((bytes([Codec.DELTA]), head, encode_symbols(kernel, symbols, context), raw.tobytes()))
    if tier == "max":
        coded = kernel.adapt(symbols, None, _offsets(context), block.columns, _class_bits(block))
        if coded is not None:
            sized = struct.pack("<II", block.columns, coded.size) + coded.tobytes()
            yield b"".join((bytes([Codec.ADAPTIVE]), head, sized, raw.tobytes()))


def _decode_delta(kernel: Kernel, data: memoryview, n: int, block: Block, *, adaptive: bool = False) -> Words:
    context, like = _context(data, block), block.values.dtype
    _, origin, shift, bias = struct.unpack("<BBBq", _exactly(data, 0, 11))
    if origin > max(From) or (origin and block.reference is None):
        raise Broken("its reference is missing")
    if shift and not (block.real and shift < 8 * like.itemsize):
        raise Broken("its values are shifted too far")
    reference, data = narrowed(block, shift).reference if origin else None, data[11:]
    if reference is not None and origin == From.GRID:
        if not (block.real and like.itemsize in (2, 4)):
            raise Broken("its values have no rows and columns")
        grid, data = read_grid(data, n, like)
        reference = grid.foretell(reference)
    if adaptive:
        symbols, coded = _unadapt(kernel, data, n, block, context)
    else:
        symbols, coded = decode_symbols(kernel, data, n, context)
    raw = np.frombuffer(coded, np.uint8)
    return widened(kernel.undelta(symbols, raw, reference, bias, block.real, like), shift)


def _unadapt(kernel: Kernel, data: memoryview, n: int, block: Block, context: Words | None) -> tuple[Bytes, memoryview]:
    columns, nbytes = struct.unpack("<II", _exactly(data, 0, 8))
    coded = np.frombuffer(_exactly(data, 8, nbytes), np.uint8)
    return kernel.unadapt(coded, None, _offsets(context), columns, _class_bits(block), n), data[8 + nbytes :]


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
