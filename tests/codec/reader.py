"""A reader of archives written from docs/format.md alone: short, slow, and without a line of rekindle's own."""

from __future__ import annotations

import hashlib
import json
import struct
import zlib
from bisect import bisect_left
from math import prod

import numpy as np
import xxhash

BITS = {"F64": 64, "I64": 64, "U64": 64, "C64": 64, "F32": 32, "I32": 32, "U32": 32, "F16": 16, "BF16": 16, "I16": 16,
        "U16": 16}  # fmt: skip
SIZES = {"F64": 8, "I64": 8, "U64": 8, "C64": 4, "F32": 4, "I32": 4, "U32": 4, "F16": 2, "BF16": 2, "I16": 2, "U16": 2}


def checked(data: bytes, checksum: str) -> bytes:
    assert xxhash.xxh3_64_hexdigest(data) == checksum
    return data


def read(data: bytes) -> dict[int, dict[str, bytes]]:
    """The files of every step of an archive, by step number."""
    slots = []
    for at in (0, 4096):
        magic, version, zero, commit, offset, length, checksum, own = struct.unpack_from("<8sIIQQQQQ", data, at)
        if xxhash.xxh3_64_intdigest(data[at : at + 48]) == own:
            assert (magic, version, zero) == (b"REKINDLE", 1, 0)
            slots.append((commit, offset, length, f"{checksum:016x}"))
    _, offset, length, checksum = max(slots)
    directory = json.loads(zlib.decompress(checked(data[offset : offset + length], checksum)))
    steps: dict[str, tuple[dict, list[list[int]]]] = {}
    files = {}
    for entry in directory["steps"]:
        offset, length, checksum = entry["index"]
        index = json.loads(zlib.decompress(checked(data[offset : offset + length], checksum)))
        content = {**index, "blocks": [block[2:] for block in index["blocks"]], "step": entry["step"]}
        digest = hashlib.sha256(json.dumps(content, separators=(",", ":")).encode()).hexdigest()
        assert digest == entry["digest"]
        values = step(index, data[entry["offset"] : offset], steps.get(entry["reference"]))
        steps[digest] = index, values
        at, files[entry["step"]] = 0, {}
        for path, count in index["files"]:
            parts = range(at, at + count)
            files[entry["step"]][path] = b"".join(stored(values[t], size(index["tensors"][t][1])) for t in parts)
            at += count
    return files


def size(dtype: str) -> int:
    return SIZES.get(dtype, 1)


def stored(words: list[int], width: int) -> bytes:
    return b"".join(word.to_bytes(width, "little") for word in words)


def step(index: dict, data: bytes, reference: tuple[dict, list[list[int]]] | None) -> list[list[int]]:
    """The words of every tensor. Blocks that need what is beside them come when it is there."""
    tensors, beside = index["tensors"], dict(index["beside"])
    values = [[0] * (prod(shape) * BITS.get(dtype, 8) // 8 // size(dtype)) for _, dtype, shape in tensors]
    place, todo = 0, []
    for length, checksum, decoded, parts in index["blocks"]:
        todo.append((checked(data[place : place + length], checksum), decoded, parts))
        place += length
    for block, decoded, parts in sorted(todo, key=lambda block: block[2][0][0] in beside):
        dtype = tensors[parts[0][0]][1]
        like = gathered(reference, [(tensors[t], start, count) for t, start, count in parts])
        side = None
        if parts[0][0] in beside:
            side = [word for t, start, count in parts for word in values[beside[t]][start : start + count]]
        n, width = sum(part[2] for part in parts), size(dtype)
        words = decode(block, n, 8 * width, dtype.startswith(("F", "BF")), like, side)
        checked(stored(words, width), decoded)
        at = 0
        for t, start, count in parts:
            values[t][start : start + count] = words[at : at + count]
            at += count
    return values


def gathered(reference, parts) -> list[int] | None:
    if reference is None:
        return None
    index, values = reference
    found = []
    for tensor, start, count in parts:
        if tensor not in index["tensors"]:
            return None
        found += values[index["tensors"].index(tensor)][start : start + count]
    return found


def decode(block: bytes, n: int, width: int, real: bool, like: list[int] | None, side: list[int] | None) -> list[int]:
    codec, data = block[0], block[1:]
    if codec in (0, 1):
        data = zlib.decompress(data) if codec else data
        return [int.from_bytes(data[i : i + width // 8], "little") for i in range(0, n * width // 8, width // 8)]
    if codec == 2:
        return like
    context = [None, like, side][data[0]]
    if codec == 6:
        return few(data, n, like, side)
    tops = None if context is None else [word if width == 8 else word >> (width - 9) & 255 for word in context]
    if codec == 3:
        symbols, data = tabled(data[1:], n, tops)
        turned = [symbol << (width - 8) for symbol in symbols]
        if width == 8:
            return turned
        for plane in range(width // 8 - 1):
            if data[0]:
                row, data = tabled(data[1:], n, None)
            else:
                row, data = data[1 : 1 + n], data[1 + n :]
            turned = [word | byte << (8 * plane) for word, byte in zip(turned, row)]
        return [word >> 1 | (word & 1) << (width - 1) for word in turned]
    origin, shift, bias = struct.unpack_from("<BBq", data, 1)
    data, foretold = data[11:], [bias] * n
    if origin == 2:
        columns, scale = struct.unpack_from("<IB", data)
        rows = n // columns
        small = struct.unpack_from(f"<{rows + columns}b", data, 5)
        data = data[5 + rows + columns :]
        foretold = [bias + (small[i // columns] + small[rows + i % columns]) * 2**scale for i in range(n)]
    if codec == 4:
        classes, raw = tabled(data, n, tops)
    else:
        columns, length = struct.unpack_from("<II", data)
        classes, raw = adaptive(data[8 : 8 + length], n, width, tops, columns), data[8 + length :]
    sign = 1 << (width - 1)
    like = [(word % sign >> shift) + (word & sign) for word in like] if origin else None
    words = undone(classes, raw, width, real, like, foretold)
    return [(word % sign << shift) + (word & sign) for word in words]


def few(data: bytes, n: int, like: list[int] | None, side: list[int] | None) -> list[int]:
    """Words of float32 values that are one of a few, or the reference's and one of a few."""
    kind, origin, count = data[:3]
    palette = struct.unpack_from(f"<{count}f", data, 3)
    between = [(a + b) / 2 for a, b in zip(palette, palette[1:])]
    contexts = offsets = None
    if kind == 1:
        contexts = [bisect_left(between, number) for number in struct.unpack(f"<{n}f", stored(like, 4))]
        offsets = [count - there for there in contexts]
    if kind == 2:
        contexts = [word >> 23 & 255 for word in side]
    (columns,) = struct.unpack_from("<I", data, 3 + 4 * count)
    symbols = learnt(data[11 + 4 * count :], n, max(1, (count - 1).bit_length()), contexts, offsets, columns)
    found = np.array(palette, np.float32)[symbols]
    if origin:
        found = np.array(like, np.uint32).view(np.float32) + found
    return found.view(np.uint32).tolist()


def undone(classes, raw, width, real, like, foretold):
    """Values from differences."""
    bits, at, whole, out = int.from_bytes(raw, "little"), 0, 1 << width, []
    for i, c in enumerate(classes):
        k = c if c < 2 else c // 2 + 1
        m, negative = (1, 0) if c == 1 else (0, 0)
        if c:
            negative, at = bits >> at & 1, at + 1
        if c > 1:
            m, at = (2 + c % 2) << (k - 2) | bits >> at & ((1 << (k - 2)) - 1), at + k - 2
        d = -m if negative else m
        d += foretold[i]
        ordered = (d + (order(like[i], width, real) if like else 0)) % whole
        out.append(order_back(ordered, width, real))
    return out


def order(word, width, real):
    if not real:
        return word
    return word ^ ((1 << width) - 1) if word >> (width - 1) else word | 1 << (width - 1)


def order_back(word, width, real):
    if not real:
        return word
    return word ^ 1 << (width - 1) if word >> (width - 1) else word ^ ((1 << width) - 1)


def tabled(data: bytes, n: int, tops: list[int] | None) -> tuple[list[int], bytes]:
    own, at = list(data[1 : 1 + data[0]]), 1 + data[0]
    tables = []
    for _ in range(1 + len(own)):
        low, high, at, freqs = data[at], data[at + 1], at + 2, {}
        for symbol in range(low, high + 1):
            freqs[symbol], at = data[at], at + 1
            if freqs[symbol] > 127:
                freqs[symbol], at = freqs[symbol] - 128 + (data[at] << 7), at + 1
        assert sum(freqs.values()) == 4096
        slots, begin = [], 0
        for symbol, freq in freqs.items():
            slots += [(symbol, freq, begin)] * freq
            begin += freq
        tables.append(slots)
    (length,) = struct.unpack_from("<I", data, at)
    coded, rest = data[at + 4 : at + 4 + length], data[at + 4 + length :]
    states, words, symbols = (
        list(struct.unpack_from("<32I", coded)),
        iter(struct.unpack(f"<{length // 2 - 64}H", coded[128:])),
        [],
    )
    for i in range(n):
        table = tables[own.index(tops[i]) + 1 if tops is not None and tops[i] in own else 0]
        x = states[i % 32]
        symbol, freq, begin = table[x % 4096]
        x = freq * (x // 4096) + x % 4096 - begin
        states[i % 32] = x * 65536 + next(words) if x < 32768 else x
        symbols.append(symbol)
    assert not list(words)
    assert set(states) == {32768}
    return symbols, rest


def adaptive(data: bytes, n: int, width: int, tops: list[int] | None, columns: int) -> list[int]:
    offsets = None if tops is None else [2 * top for top in tops]
    return learnt(data, n, {8: 4, 16: 5, 32: 6, 64: 7}[width], None, offsets, columns)


def learnt(data, n, bits, contexts: list[int] | None, offsets: list[int] | None, columns: int) -> list[int]:
    nodes, symbols = {}, []
    low, high, code, at = 0, 2**32 - 1, int.from_bytes(data[:4], "big"), 4
    mean, above = 256 * offsets[0] if offsets else 0, []
    for i in range(n):
        expected = (mean + above[i % columns]) // 2 if 0 < columns <= i else mean
        tree = 0 if offsets is None else min(max(expected // 128 - 2 * offsets[i], 0), 127)
        tree, node = (tree, contexts[i] if contexts else 0), 1
        for _ in range(bits):
            p, seen = nodes.get((tree, node), (32768, 0))
            mid = low + (high - low) * min(max(p, 32), 65503) // 65536
            bit = int(code <= mid)
            low, high = (low, mid) if bit else (mid + 1, high)
            nodes[tree, node] = p + (65535 * bit - p) * (131072 // (2 * seen + 3)) // 65536, min(seen + 1, 250)
            node = 2 * node + bit
            while low >> 24 == high >> 24:
                low, high = low << 8 & 0xFFFFFFFF, (high << 8 | 255) & 0xFFFFFFFF
                code, at = (code << 8 | data[at]) & 0xFFFFFFFF, at + 1
        symbols.append(node - (1 << bits))
        size = (symbols[-1] + (offsets[i] if offsets else 0)) * 256
        mean += (size - mean) // 32
        if i < columns:
            above.append(size)
        elif columns:
            above[i % columns] += (size - above[i % columns]) // 16
    assert at == len(data)
    assert code == low
    return symbols
