"""Steps whose weights are read out of the archive: the same values as on disk, and each block decoded once."""

from __future__ import annotations

from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

import rekindle
from rekindle.codec import archive as archives
from rekindle.codec.straight import open_step
from rekindle.edit.expressions import Leaf
from rekindle.store.files import Files
from rekindle.store.folder import open_folder
from rekindle.store.legacy import Held

STEPS = (1, 2, 10)
HALF = "model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"


def checkpoint(folder: Path, step: int) -> Path:
    """Of a class that no table knows, in shards, with what travels along and what a trainer leaves."""
    fixed, moved = np.random.default_rng(0), np.random.default_rng(step)
    near = {
        name: np.asarray(fixed.normal(size=shape) + 1e-3 * moved.normal(size=shape), np.float32)
        for name, shape in {"a.weight": (700, 500), "a.bias": (5,), "b.scale": (), "b.weight": (3, 4, 6)}.items()
    }
    near |= {"ids": np.arange(7) + step, "half.weight": near["a.weight"][:9].astype(np.float16)}
    (folder / "optimizer").mkdir(parents=True)
    (folder / "2_Dense").mkdir()
    names = sorted(near)
    for file, some in zip(HALF, (names[:3], names[3:]), strict=True):
        save_file({name: near[name] for name in some}, folder / file, metadata={"format": "pt"})
    save_file(near, folder / "optimizer" / "optimizer.safetensors")
    save_file({"w": near["a.bias"]}, folder / "2_Dense" / "model.safetensors")
    (folder / "config.json").write_text('{"model_type": "unheard-of", "architectures": ["Unheard"]}')
    return folder


@pytest.fixture
def run(tmp_path):
    for step in STEPS:
        checkpoint(tmp_path / "run" / f"checkpoint-{step}", step)
    rekindle.pack(tmp_path / "run", tmp_path / "run.rk")
    return tmp_path / "run"


def test_rows_are_those_of_the_folder(run, tmp_path):
    with archives.Archive(run.with_suffix(".rk")) as archive, Files() as files:
        for step in STEPS:
            there, packed = open_folder(run / f"checkpoint-{step}"), open_step(archive[step], tmp_path / f"out-{step}")
            assert packed is not None
            assert (packed.config, packed.fingerprint) == (there.config, there.fingerprint)
            assert list(packed.tensors) == list(there.tensors)
            for name, stored in packed.tensors.items():
                assert isinstance(stored, Held)
                one, other = Leaf(name, stored), Leaf(name, there.tensors[name])
                for lo in range(0, one.num_rows, 3):
                    rows = lo, min(lo + 3, one.num_rows)
                    found, wanted = one.raw(*rows, files), other.raw(*rows, files)
                    assert (found.dtype, found.tobytes()) == (wanted.dtype, wanted.tobytes())


def test_weights_and_a_trainer_s_state_stay_packed(run, tmp_path):
    with archives.Archive(run.with_suffix(".rk")) as archive:
        open_step(archive[2], tmp_path / "out")
    found = {path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()}
    assert found == {"config.json", "2_Dense/model.safetensors"}
    whole = (run / "checkpoint-2" / "2_Dense" / "model.safetensors").read_bytes()
    assert (tmp_path / "out" / "2_Dense" / "model.safetensors").read_bytes() == whole


def test_pickles_are_unpacked(tmp_path):
    import torch

    folder = tmp_path / "checkpoint-1"
    folder.mkdir()
    torch.save({"w": torch.arange(4.0)}, folder / "pytorch_model.bin")
    (folder / "config.json").write_text('{"model_type": "unheard-of"}')
    rekindle.pack(folder, tmp_path / "run.rk")
    with archives.Archive(tmp_path / "run.rk") as archive:
        assert open_step(archive[1], tmp_path / "out") is None


def test_a_merge_decodes_each_block_once(run, tmp_path, monkeypatch):
    decoded, whole = Counter(), archives.decode

    def counting(kernel, data, n, given):
        decoded[bytes(data)] += 1
        return whole(kernel, data, n, given)

    monkeypatch.setattr(archives, "decode", counting)
    monkeypatch.setattr(archives, "CACHE", 2)  # what a step is coded by is the one before
    rekindle.merge(f"{run.with_suffix('.rk')}@*", how="mean").save(tmp_path / "packed", workers=1)
    large = [times for data, times in decoded.items() if len(data) > 100_000]
    assert large == [1] * len(STEPS)
    monkeypatch.undo()
    rekindle.merge(f"{run}/checkpoint-*", how="mean").save(tmp_path / "plain")
    packed, plain = (load_file(tmp_path / name / "model.safetensors") for name in ("packed", "plain"))
    assert packed.keys() == plain.keys()
    assert all(packed[name].tobytes() == plain[name].tobytes() for name in plain)
