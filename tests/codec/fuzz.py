"""Mutated archives, through both decoders: each ends in the packed values or in a sentence, and the two agree.

`make fuzz` runs it under the address and undefined-behaviour sanitizers, where the compiler has them:

    python tests/codec/fuzz.py [CASES] [SEED] [LIBRARY]

Some archives are changed anywhere; in most the checksums are made anew around the change, so that it reaches the
decoders and what reads the index.
"""

from __future__ import annotations

import json
import random
import struct
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import save_file

from rekindle import api
from rekindle.codec import layout, lossy
from rekindle.codec.archive import Archive
from rekindle.codec.block import Tier
from rekindle.codec.container import SLOT, checksum
from rekindle.codec.fallback import Numpy
from rekindle.codec.index import shrink, unshrink
from rekindle.codec.kernel import Kernel, Native, kernel
from rekindle.errors import RekindleError


def seeds(base: Path) -> list[bytes]:
    """Small archives with every codec, context and dtype in them."""
    made = []
    kinds: list[tuple[Tier, str, int]] = [("fast", "lossless", n) for n in (40, 320, 1500)]
    kinds += [("max", "lossless", n) for n in (40, 320)] + [("fast", "near-lossless", 320)]
    for tier, mode, n in kinds:
        folders = [_folder(base / f"{tier}-{mode}-{n}" / f"step-{step}", n, step) for step in (1, 2)]
        path = base / f"{tier}-{mode}-{n}.rk"
        pack(folders, path, tier, mode)
        made.append(path.read_bytes())
    return made


def pack(folders: list[Path], path: Path, tier: Tier, mode: str = "lossless", **options: Any) -> None:
    """Small tensors as if they were large: in blocks of their own, with rows and columns, and palettes."""
    small, least = layout.SMALL, lossy.LEAST
    layout.SMALL, lossy.LEAST = 1024, 256
    try:
        api.pack(folders, path, tier=tier, mode=mode, workers=1, **options)
    finally:
        layout.SMALL, lossy.LEAST = small, least


def _folder(folder: Path, n: int, step: int) -> Path:
    fixed, moved = np.random.default_rng(n), np.random.default_rng(step)
    shape = (n // 20, 20) if n >= 320 else (n,)
    w = fixed.normal(size=shape) + 1e-3 * moved.normal(size=shape)
    rows = np.exp(0.1 * moved.normal(size=(shape[0], 1)[: len(shape)]))
    second = np.exp(fixed.normal(size=shape)) * rows * 0.97**step
    tensors = {"w.exp_avg": moved.normal(size=shape) * np.sqrt(second), "w.exp_avg_sq": second, "w": w}
    tensors = {name: x.astype(np.float32) for name, x in tensors.items()}
    tensors["rounded"] = (tensors["w"].view(np.uint32) >> 12 << 12).view(np.float32)
    tensors |= {"half": w.astype(np.float16), "wide": w, "steps": fixed.integers(0, 90, n) + step, "flags": w > 0}
    folder.mkdir(parents=True)
    save_file(tensors, folder / "model.safetensors")
    (folder / "notes.txt").write_text(f"the {step}. of a few words, " * (n // 30))
    return folder


def mutated(data: bytes, dice: random.Random) -> tuple[bytes, bool]:
    """An archive changed in one of the ways; and whether only its last step is."""
    way = dice.random()
    if way < 0.15:
        return bytes(_hit(bytearray(data), dice)), False
    if way < 0.2:
        return data[: dice.randrange(len(data))], False
    return _resealed(data, dice, of_index=way < 0.35), True


def _hit(data: bytearray, dice: random.Random) -> bytearray:
    for _ in range(dice.choice((1, 1, 1, 2, 4, 16))):
        if not data:
            break
        at = dice.randrange(len(data))
        what = dice.random()
        if what < 0.4:
            data[at] ^= 1 << dice.randrange(8)
        elif what < 0.7:
            data[at] = dice.choice((0, 1, 2, 127, 128, 254, 255, dice.randrange(256)))
        elif what < 0.8:
            del data[at : at + dice.randrange(1, 9)]
        elif what < 0.9:
            data[at:at] = bytes(dice.randrange(256) for _ in range(dice.randrange(1, 9)))
        else:
            data[at : at + 4] = struct.pack("<I", dice.choice((0, 1, 2**16, 2**31, 2**32 - 1)))
    return data


def _resealed(data: bytes, dice: random.Random, *, of_index: bool) -> bytes:
    """The archive with a block or the index of its last step changed, every checksum of it right."""
    commit = max(struct.unpack_from("<Q", data, at + 16)[0] for at in (0, SLOT))
    offset, nbytes = struct.unpack_from("<QQ", data, SLOT * (commit % 2) + 24)
    body = unshrink(data[offset : offset + nbytes])
    entry = body["steps"][-1]
    at, length, _ = entry["index"]
    index = unshrink(data[at : at + length])
    blocks = data[entry["offset"] : at]
    if of_index:
        text = bytes(_hit(bytearray(json.dumps(index).encode()), dice))
        try:
            index = json.loads(text)
        except ValueError:
            _twist(index, dice)
    else:
        chosen = dice.randrange(len(index["blocks"]))
        start = sum(block[0] for block in index["blocks"][:chosen])
        new = bytes(_hit(bytearray(blocks[start : start + index["blocks"][chosen][0]]), dice)) or b"\0"
        blocks = blocks[:start] + new + blocks[start + index["blocks"][chosen][0] :]
        index["blocks"][chosen][:2] = [len(new), checksum(new)]
    packed = shrink(index)
    entry["nbytes"] = len(blocks)
    entry["index"] = [entry["offset"] + len(blocks), len(packed), checksum(packed)]
    again = shrink(body)
    slot = struct.pack("<8sIIQQQQ", b"REKINDLE", 1, 0, commit, entry["index"][0] + len(packed), len(again),
                       int(checksum(again), 16))  # fmt: skip
    slot += struct.pack("<Q", int(checksum(slot), 16))
    out = bytearray(data[: entry["offset"]] + blocks + packed + again)
    out[SLOT * (commit % 2) : SLOT * (commit % 2) + len(slot)] = slot
    return bytes(out)


def _twist(index: dict, dice: random.Random) -> None:
    """Another number somewhere."""
    rows = index[dice.choice(("files", "tensors", "blocks"))]
    row = dice.choice(rows)
    while isinstance(row[-1], list) and row[-1] and dice.random() < 0.8:
        row = row[-1]
    row[dice.randrange(len(row))] = dice.choice((0, 1, -1, 2**31, 2**62, 2**63, 1.5, None, "x", [], [0]))


def read(path: Path, inner: Kernel, last: bool) -> dict[tuple[int, str], bytes | None]:
    """Every tensor's bytes, of the last step or of all, None where it is refused; nothing of an archive that is."""
    import rekindle.codec.archive as module

    module.kernel = lambda: inner
    found: dict[tuple[int, str], bytes | None] = {}
    try:
        with Archive(path) as archive:
            for name in list(archive)[-1:] if last else archive:
                step = archive[name]
                try:
                    tensors = step.index.tensors
                except RekindleError:
                    continue
                for i, tensor in enumerate(tensors):
                    try:
                        found[name, tensor.key] = step.words(i, 0, tensor.n).tobytes()
                    except RekindleError:
                        found[name, tensor.key] = None
    except RekindleError:
        pass
    return found


def fuzz(cases: int, seed: int, native: Kernel, base: Path) -> Counter[str]:
    """Raises AssertionError at the first archive that comes out wrong, and keeps it as BASE/wrong.rk."""
    dice, kernels, told = random.Random(seed), (native, Numpy()), Counter()
    path = base / "wrong.rk"
    archives = seeds(base)
    truths = []
    for data in archives:
        path.write_bytes(data)
        truths.append(read(path, native, False))
    for _ in range(cases):
        which = dice.randrange(len(archives))
        changed, sealed = mutated(archives[which], dice)
        path.write_bytes(changed)
        results = [read(path, inner, sealed) for inner in kernels]
        assert results[0] == results[1], "the decoders disagree"
        for key, value in results[0].items():
            assert value is None or key not in truths[which] or value == truths[which][key], f"wrong values: {key}"
        whole = results[0] and None not in results[0].values()
        told["whole" if whole else "refused"] += 1
    path.unlink()
    return told


if __name__ == "__main__":
    count, start = (int(x) for x in [*sys.argv[1:3], *("1000", "0")[len(sys.argv[1:3]) :]])
    chosen = Native(Path(sys.argv[3])) if len(sys.argv) > 3 else kernel()
    folder = Path(tempfile.mkdtemp(prefix="rekindle-fuzz-"))
    sys.stdout.write(
        f"{count} archives from seed {start}, {chosen.name} and numpy: {dict(fuzz(count, start, chosen, folder))}\n"
    )
