"""Archives as files: near-lossless beside ExCP's rule with lzma, one tensor out of a gigabyte, memory, and training on.

The series is that of `benchmarks.series`; what is read of an archive is counted where it is read from the file.
"""

from __future__ import annotations

import lzma
from pathlib import Path
from statistics import median

import numpy as np
from safetensors.numpy import save_file

from benchmarks.measure import BIN, Row, drop, record, run
from benchmarks.series import make_series
from rekindle import api
from rekindle.codec.archive import Archive
from rekindle.lab.streams import symbols

ROUNDS = 3
LINKS = 3  # of the gigabyte, and a keyframe
ROWS, COLUMNS, LAYERS = 4096, 2048, 9  # of its matrices, float32
STEPS, EVERY, BATCH = 150, 50, 2048
SHAPE = {"hidden": 192, "heads": 6, "ffn": 512, "layers": 4, "context": 128, "tokenizer": "bpe:1024"}


def main(work: Path) -> None:
    folders = make_series(work / "series")
    record("Archives: near-lossless, a series of float32 weights and moments", modes(folders, work))
    record("Archives: one tensor of many, and memory", access(work))
    record(
        "Archives: training on", training(work), f"A save every {EVERY} steps of {BATCH} tokens, both into a folder."
    )


def modes(folders: list[Path], work: Path) -> list[Row]:
    rows, archive = [], work / "near.rk"
    for mode, target in (("near-lossless", ">= 20 x"), ("strong", ">= 60 x"), ("excp", "")):
        api.pack(folders, archive, mode=mode, overwrite=True)
        links = [step for step in api.archive_info(archive)["steps"] if not step["keyframe"]]
        ratio = sum(step["raw"] for step in links) / sum(step["bytes"] for step in links)
        span = f"{min(s['ratio'] for s in links):.1f} to {max(s['ratio'] for s in links):.1f} by link"
        rows.append(Row(mode, f"{ratio:.1f} x", span, "", target))
    alone = with_lzma(archive)
    rows.append(Row("ExCP's rule, 4 bits, lzma", f"{alone:.1f} x", "ours, the same values", f"{ratio / alone:.2f}", ""))
    for mode in ("lossless", "near-lossless"):
        api.pack(folders, archive, mode=mode, overwrite=True)
        whole = api.archive_info(archive)["ratio"]
        rows.append(Row(f"whole archive, {mode}", f"{whole:.2f} x", f"{len(folders)} steps with keyframes", "", ""))
    return rows


def with_lzma(archive: Path) -> float:
    """ExCP as published keeps two symbols a byte, for a packer of files: the ratio over all links."""
    raw = packed = 0
    with Archive(archive) as steps:
        for step in (steps[name] for name in steps if steps[name].reference is not None):
            pairs: dict[str, bytes] = {}
            for _, tensor, found in symbols(step):
                if len(found) == 1:  # places among a few values, not bytes
                    nibbles = np.append(found[0], np.zeros(found.shape[1] % 2, np.uint8))
                    key = step.index.tensors[tensor].key
                    pairs[key] = pairs.get(key, b"") + (nibbles[::2] << 4 | nibbles[1::2]).tobytes()
            rest = b"".join(step[key].tobytes() for key in step if key not in pairs)
            packed += len(lzma.compress(b"".join(pairs.values()))) + len(lzma.compress(rest))
            raw += step.entry.raw
    return raw / packed


def access(work: Path) -> list[Row]:
    folders, archive = [work / f"large-{i}" for i in range(LINKS + 1)], work / "large.rk"
    make_large(folders)
    used = run([BIN / "rekindle", "pack", *folders, archive, "--overwrite"])
    size = archive.stat().st_size
    drop(*folders)
    name = f"layers.{LAYERS // 2}.weight"
    chain = sum(
        tensor["bytes"]
        for i in range(LINKS + 1)
        for tensor in api.archive_contents(f"{archive}@{i}")["tensors"]
        if tensor["name"] == name
    )
    read = 0
    with Archive(archive) as steps:
        inner = steps.read

        def counted(offset: int, nbytes: int) -> bytes:
            nonlocal read
            read += nbytes
            return inner(offset, nbytes)

        steps.read = counted  # type: ignore[method-assign]
        values = steps[LINKS][name]
        index = sum(entry.index.nbytes for entry in steps.directory.steps)
    assert values.shape == (ROWS, COLUMNS)
    part, packing = ROWS * COLUMNS * 4, f"{used.rss / 1e6:.0f} MB"
    return [
        Row(f"one tensor of {size / 1e9:.2f} GB, {LINKS} links", f"{read / 1e6:.1f} MB read",
            f"{chain / 1e6:.1f} MB of its chain", f"{read / chain:.2f}", "<= 2, and the index"),
        Row("the indices of the chain", f"{index / 1e3:.0f} kB", f"{part / 1e6:.0f} MB the tensor", "", ""),
        Row("memory while packing", packing, f"{LAYERS * part / 1e6:.0f} MB a checkpoint", "", "by blocks"),
    ]  # fmt: skip


def make_large(folders: list[Path]) -> None:
    """Matrices that move by a thousandth from checkpoint to checkpoint."""
    random = np.random.default_rng(0)
    weights = {f"layers.{i}.weight": 0.02 * random.standard_normal((ROWS, COLUMNS), np.float32) for i in range(LAYERS)}
    for folder in folders:
        folder.mkdir(exist_ok=True)
        save_file(weights, folder / "model.safetensors")
        for w in weights.values():
            w += 2e-5 * random.standard_normal(w.shape, np.float32)


def training(work: Path) -> list[Row]:
    api.init(work / "start", **SHAPE, overwrite=True)
    seconds: dict[bool, list[float]] = {False: [], True: []}
    options = {"tokens": STEPS * BATCH, "seq_len": 128, "batch_tokens": BATCH, "save_every": EVERY * BATCH,
               "eval_every": STEPS * BATCH, "eval_tokens": 128}  # fmt: skip
    for _ in range(ROUNDS):
        for archived in seconds:
            (work / "run.rk").unlink(missing_ok=True)
            given = options | ({"archive": str(work / "run.rk")} if archived else {})
            seconds[archived].append(api.train(work / "start", work / "run", overwrite=True, **given)["seconds"])
    without, with_ = (median(seconds[archived]) for archived in (False, True))
    saved = api.archive_info(work / "run.rk")["steps"]
    cost = f"{with_ / without - 1:+.1%}"
    return [Row(f"train --archive, {len(saved)} saves of {saved[0]['raw'] / 1e6:.0f} MB", f"{with_:.2f} s",
                f"without {without:.2f} s", cost, "<= 3 %")]  # fmt: skip
