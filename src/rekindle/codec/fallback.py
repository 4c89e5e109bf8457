"""inner.c in numpy, for machines without a compiler: a tenth of its speed, and the same bytes."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from rekindle.codec.bits import LANES, Broken, Bytes, Contexts, Words, ordered, stored

TOTAL, LOW, HIGH = 4096, 1 << 15, 1 << 31


class Numpy:
    name = "numpy"

    def split(self, values: Words) -> tuple[Bytes, Bytes]:
        width = 8 * values.itemsize
        turned = values << 1 | values >> (width - 1)
        planes = (
            turned.astype(values.dtype.newbyteorder("<"), copy=False)
            .view(np.uint8)
            .reshape(values.size, values.itemsize)
            .T
        )
        return np.ascontiguousarray(planes[-1]), np.ascontiguousarray(planes[:-1])

    def join(self, symbols: Bytes, rest: Bytes, like: np.dtype) -> Words:
        planes = np.vstack([rest.reshape(like.itemsize - 1, symbols.size), symbols[None]])
        turned = np.ascontiguousarray(planes.T).view(like.newbyteorder("<")).reshape(-1).astype(like, copy=False)
        return turned >> 1 | turned << (8 * like.itemsize - 1)

    def delta(self, values: Words, reference: Words | None, bias: int, real: bool) -> tuple[Bytes, Bytes]:
        width, one = 8 * values.itemsize, values.dtype.type(1)
        with np.errstate(over="ignore"):
            d = ordered(values, real) - values.dtype.type(bias % 2**width)
            d = d - ordered(reference, real) if reference is not None else d
            negative = d >> (width - 1)
            m = np.where(negative, values.dtype.type(0) - d, d)
        k = _bit_length(m)
        low = np.maximum(k, 2) - 2  # magnitude bits below the class
        second = (m >> low.astype(m.dtype)) & one
        symbols = np.where(k < 2, k, 2 * k - 2 + second).astype(np.uint8)
        kept = np.where(k < 2, negative, (m & ((one << low.astype(m.dtype)) - one)) << 1 | negative)
        return symbols, _pack(kept.astype(np.uint64), _raw_bits(symbols))

    def undelta(
        self, symbols: Bytes, raw: Bytes, reference: Words | None, bias: int, real: bool, like: np.dtype
    ) -> Words:
        width, counts = 8 * like.itemsize, _raw_bits(symbols)
        total = int(counts.sum())
        padded = total % 8 and raw.size and raw[-1] >> total % 8
        if symbols.max(initial=0) > 2 * width - 2 or (total + 7) // 8 != raw.size or padded:
            raise Broken("its raw bits are not those of its classes")
        bits = _unpack(raw, counts)
        wide = symbols.astype(np.uint64)
        low = np.maximum(wide // 2, 1) - 1
        m = np.where(wide < 2, wide, (2 + (wide & 1)) << low | bits >> 1)
        with np.errstate(over="ignore"):
            d = np.where(bits & 1, np.uint64(0) - m, m).astype(like) + like.type(bias % 2**width)
            d = d + ordered(reference, real) if reference is not None else d
        return stored(d, real)

    def count(self, symbols: Bytes, contexts: Bytes | None, tables: int) -> NDArray[np.uint32]:
        which = symbols if contexts is None else contexts.astype(np.int32) * 256 + symbols
        return np.bincount(which, minlength=256 * tables).reshape(tables, 256).astype(np.uint32)

    def encode(self, symbols: Bytes, contexts: Bytes | None, freqs: NDArray[np.uint16]) -> Bytes:
        starts = np.cumsum(freqs, axis=1, dtype=np.uint64) - freqs
        which = symbols if contexts is None else (contexts, symbols)
        freq, start = (np.asarray(x.reshape(-1) if contexts is None else x, np.uint64)[which] for x in (freqs, starts))
        states, words = np.full(LANES, LOW, np.uint64), []
        for i in range((symbols.size - 1) // LANES * LANES, -1, -LANES):
            f, s = freq[i : i + LANES], start[i : i + LANES]
            x = states[: f.size]
            full = x >= f << 19
            words.append(x[full].astype("<u2"))
            x = np.where(full, x >> 16, x)
            states[: f.size] = (x // f << 12) + x % f + s
        return np.concatenate([states.astype("<u4").view(np.uint8), *(w.view(np.uint8) for w in reversed(words))])

    def decode(self, data: Bytes, contexts: Bytes | None, freqs: NDArray[np.uint16], n: int) -> Bytes:
        if data.size < 4 * LANES or data.size % 2:
            raise Broken("its symbols do not end where its words do")
        symbol_of = np.stack([np.repeat(np.arange(256, dtype=np.uint8), f) for f in freqs])
        starts = np.cumsum(freqs, axis=1, dtype=np.uint64) - freqs
        states = data[: 4 * LANES].view("<u4").astype(np.uint64)
        if ((states < LOW) | (states >= HIGH)).any():
            raise Broken("a state is none that an encoder leaves")
        words, at = np.concatenate([data[4 * LANES :].view("<u2"), np.zeros(LANES, "<u2")]), 0
        tables = np.zeros(n, np.uint8) if contexts is None else contexts
        out, wide = np.empty(n, np.uint8), freqs.astype(np.uint64)
        for i in range(0, n, LANES):
            t = tables[i : i + LANES]
            x = states[: t.size]
            slot = x & (TOTAL - 1)
            s = out[i : i + LANES] = symbol_of[t, slot]
            x = wide[t, s] * (x >> 12) + slot - starts[t, s]
            empty = x < LOW
            order = np.cumsum(empty)
            if at + int(order[-1]) > words.size - LANES:
                raise Broken("its symbols do not end where its words do")
            states[: t.size] = np.where(empty, x << 16 | words[at + order - empty], x)
            at += int(order[-1])
        if at != words.size - LANES or (states != LOW).any():
            raise Broken("its symbols do not end where its words do")
        return out

    def adapt(
        self, symbols: Bytes, contexts: Contexts | None, offsets: Contexts | None, columns: int, bits: int
    ) -> Bytes | None:
        model, low, high, out = _Model(contexts, offsets, columns, bits), 0, _ALL, bytearray()
        for i, symbol in enumerate(symbols.tolist()):
            nodes, node = model.tree(i), 1
            if symbols.size + 64 - len(out) < 4 * bits + 4:
                return None
            for k in reversed(range(bits)):
                bit = symbol >> k & 1
                mid = model.middle(low, high, nodes + node)
                low, high = (low, mid) if bit else (mid + 1, high)
                model.learn(nodes + node, bit)
                node = 2 * node + bit
                while not (low ^ high) >> 24:
                    out.append(high >> 24)
                    low, high = low << 8 & _ALL, (high << 8 | 255) & _ALL
            model.moved(i, symbol)
        if symbols.size + 64 - len(out) < 4:
            return None
        return np.frombuffer(bytes(out) + low.to_bytes(4, "big"), np.uint8)

    def unadapt(
        self, data: Bytes, contexts: Contexts | None, offsets: Contexts | None, columns: int, bits: int, n: int
    ) -> Bytes:
        wrong = Broken("its symbols do not end where its bytes do")
        if data.size < 4:
            raise wrong
        model, low, high, given = _Model(contexts, offsets, columns, bits), 0, _ALL, data.tolist()
        code, at, symbols = int.from_bytes(bytes(given[:4]), "big"), 4, np.empty(n, np.uint8)
        for i in range(n):
            nodes, node = model.tree(i), 1
            for _ in range(bits):
                mid = model.middle(low, high, nodes + node)
                bit = int(code <= mid)
                low, high = (low, mid) if bit else (mid + 1, high)
                model.learn(nodes + node, bit)
                node = 2 * node + bit
                while not (low ^ high) >> 24:
                    if at >= len(given):
                        raise wrong
                    code = (code << 8 | given[at]) & _ALL
                    low, high, at = low << 8 & _ALL, (high << 8 | 255) & _ALL, at + 1
            symbols[i] = node - (1 << bits)
            model.moved(i, node - (1 << bits))
        if at != len(given) or code != low:
            raise wrong
        return symbols


_ALL = 2**32 - 1
_BUCKETS, _SURE = 128, 250
_RATE = [131072 // (2 * seen + 3) for seen in range(_SURE + 1)]


class _Model:
    """Probabilities that the nodes of each context's tree have learnt."""

    def __init__(self, contexts: Contexts | None, offsets: Contexts | None, columns: int, bits: int):
        self.p: dict[int, int] = {}
        self.seen: dict[int, int] = {}
        self.contexts = None if contexts is None else contexts.tolist()
        self.offsets = None if offsets is None else offsets.tolist()
        self.mean, self.bits = (self.offsets[0] * 256 if self.offsets else 0), bits
        self.above: list[int] = []  # of each column, once there is one
        self.columns = columns

    def tree(self, i: int) -> int:
        context = 0 if self.contexts is None else self.contexts[i]
        if self.offsets is not None:
            mean = (self.mean + self.above[i % self.columns]) >> 1 if 0 < self.columns <= i else self.mean
            bucket = (mean >> 7) - 2 * self.offsets[i]
            context = context * _BUCKETS + min(max(bucket, 0), _BUCKETS - 1)
        return context << self.bits

    def middle(self, low: int, high: int, node: int) -> int:
        return low + ((high - low) * min(max(self.p.get(node, 32768), 32), 65503) >> 16)

    def learn(self, node: int, bit: int) -> None:
        p, seen = self.p.get(node, 32768), self.seen.get(node, 0)
        self.p[node] = p + (((65535 if bit else 0) - p) * _RATE[seen] >> 16)
        self.seen[node] = min(seen + 1, _SURE)

    def moved(self, i: int, symbol: int) -> None:
        if self.offsets is None:
            return
        size = (symbol + self.offsets[i]) * 256
        self.mean += (size - self.mean) >> 5
        if i < self.columns:
            self.above.append(size)
        elif self.columns:
            self.above[i % self.columns] += (size - self.above[i % self.columns]) >> 4


def _bit_length(m: Words) -> NDArray[np.int64]:
    k, rest = np.zeros(m.shape, np.int64), m.astype(np.uint64)
    for step in (32, 16, 8, 4, 2, 1):
        large = rest >> np.uint64(step) > 0
        k += step * large
        rest = np.where(large, rest >> np.uint64(step), rest)
    return k + (rest > 0)


def _raw_bits(symbols: Bytes) -> NDArray[np.int64]:
    return np.where(symbols < 4, symbols > 0, symbols // 2).astype(np.int64)


def _pack(values: NDArray[np.uint64], counts: NDArray[np.int64]) -> Bytes:
    """The `counts` lowest bits of each value, one after the other, from the lowest bit of the first byte up."""
    ends = np.cumsum(counts)
    starts, bits = ends - counts, np.zeros(int(ends[-1]) if ends.size else 0, np.uint8)
    for j in range(int(counts.max(initial=0))):
        has = counts > j
        bits[starts[has] + j] = values[has] >> np.uint64(j) & np.uint64(1)
    return np.packbits(bits, bitorder="little")


def _unpack(raw: Bytes, counts: NDArray[np.int64]) -> NDArray[np.uint64]:
    starts, bits = np.cumsum(counts) - counts, np.unpackbits(raw, bitorder="little")
    values = np.zeros(counts.size, np.uint64)
    for j in range(int(counts.max(initial=0))):
        has = counts > j
        values[has] |= bits[starts[has] + j].astype(np.uint64) << np.uint64(j)
    return values
