"""torch's files without torch: places and shapes as torch loads them; hostile ones are none, and run nothing."""

from __future__ import annotations

import collections
import io
import os
import pickle
import random
import struct
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from rekindle import api
from rekindle.store.dtypes import TORCH
from rekindle.store.torch_file import read_torch


def leaves(tree, name=""):
    """As torch loaded it."""
    if isinstance(tree, torch.Tensor):
        yield name, tree
    elif isinstance(tree, dict | list | tuple):
        for key, x in tree.items() if isinstance(tree, dict) else enumerate(tree):
            yield from leaves(x, f"{name}.{key}" if name else str(key))


def test_every_tensor_lies_where_torch_reads_it(tmp_path):
    base = torch.randn(6, 8)
    tree = {name: torch.randn(3, 5).to(getattr(torch, name)) for name in TORCH.values() if "int" not in name}
    tree |= {name: torch.arange(15).to(getattr(torch, name)) for name in TORCH.values() if "int" in name}
    tree |= {"rows": base[2:4], "columns": base[:, 2:4], "turned": base.T, "all": base, "empty": torch.empty(0, 3)}
    tree |= {"scalar": torch.tensor(2.0), "one": torch.nn.Parameter(torch.ones(1, 7)), "deep": [{"x": (base.clone(),)}]}
    tree |= {"ordered": collections.OrderedDict(a=torch.ones(4)), "seven": 7, "none": None, "array": np.ones(3)}
    torch.save(tree, tmp_path / "x.pt")
    found = read_torch(tmp_path / "x.pt")
    loaded = dict(leaves(torch.load(tmp_path / "x.pt", weights_only=False)))
    views = dict(found.named())
    assert views.keys() == loaded.keys()
    data = (tmp_path / "x.pt").read_bytes()
    for name, x in loaded.items():
        stored, view = found.stored(views[name]), views[name]
        assert (view.shape, TORCH[view.dtype]) == (tuple(x.shape), str(x.dtype).removeprefix("torch."))
        assert (stored is None) == (not x.is_contiguous()), name
        if stored is not None:
            raw = x.detach().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() if x.numel() else b""
            assert data[stored.offset : stored.offset + stored.nbytes] == raw
        assert found.whole(view) == (x.is_contiguous() and x.nbytes == x.untyped_storage().nbytes()), name


def zipped(path, pickled, storages=()):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_STORED) as out:
        out.writestr("archive/data.pkl", pickled)
        for key, data in storages:
            out.writestr(f"archive/data/{key}", data)
    return path


class Runs:
    def __init__(self, what, *args):
        self.what, self.args = what, args

    def __reduce__(self):
        return self.what, self.args


@pytest.mark.parametrize("protocol", range(6))
def test_nothing_in_a_pickle_runs(tmp_path, protocol):
    flag = tmp_path / "ran"
    for evil in (Runs(os.system, f"touch {flag}"), Runs(eval, f"open({str(flag)!r}, 'w')"), Runs(Path.touch, flag)):
        path = zipped(tmp_path / "evil.pt", pickle.dumps({"x": [evil]}, protocol=protocol))
        read_torch(path)
        (tmp_path / "step-1").mkdir(exist_ok=True)
        path.rename(tmp_path / "step-1" / "optimizer.pt")
        api.pack(tmp_path / "step-1", tmp_path / "r.rk", mode="strong", overwrite=True)
    assert not flag.exists()


HOSTILE = {
    "a memo beyond memory": b"\x80\x02K\x01r\xff\xff\xff\x7f.",
    "bytes beyond memory": b"\x80\x05\x96" + struct.pack("<Q", 2**45) + b".",
    "no end": b"\x80\x02(((((((",
    "depth": b"\x80\x02" + b"(" * 100_000 + b"t" * 100_000 + b".",
    "a circle": b"\x80\x02]q\x00h\x00a.",
    "twice as many each time": b"\x80\x02]q\x00" + b"".join(b"](h%ch%ceq%c" % (i, i, i + 1) for i in range(60)) + b".",
    "no pickle": b"hello",
    "nothing": b"",
}


@pytest.mark.parametrize("case", HOSTILE)
def test_what_torch_would_not_have_written(tmp_path, case):
    found = read_torch(zipped(tmp_path / "x.pt", HOSTILE[case]))
    assert found is None or list(found.named()) == []


def test_what_is_compressed_torn_or_another_zip_is_none(tmp_path):
    torch.save({"x": torch.ones(100)}, tmp_path / "x.pt")
    data = (tmp_path / "x.pt").read_bytes()
    with (
        zipfile.ZipFile(io.BytesIO(data)) as given,
        zipfile.ZipFile(tmp_path / "y.pt", "w", zipfile.ZIP_DEFLATED) as out,
    ):
        for entry in given.infolist():
            out.writestr(entry.filename, given.read(entry))
    (tmp_path / "torn.pt").write_bytes(data[:-200])
    zipfile.ZipFile(tmp_path / "other.zip", "w").writestr("a", "b")
    torch.save({"x": torch.ones(100)}, tmp_path / "old.pt", _use_new_zipfile_serialization=False)
    for name in ("y.pt", "torn.pt", "other.zip", "old.pt"):
        assert read_torch(tmp_path / name) is None


@pytest.mark.parametrize("seed", range(3))
def test_mutated_files_are_archived_to_the_byte(tmp_path, seed):
    """Whatever the reader makes of one: without loss it comes back, and with losses it is packed."""
    dice = random.Random(seed)
    weights = {f"w{i}": torch.randn(20, 10) for i in range(3)}
    state = {i: {"step": torch.tensor(1.0), "exp_avg": x, "exp_avg_sq": x * x} for i, x in enumerate(weights.values())}
    torch.save({"m": weights, "o": {"state": state, "param_groups": [{"params": [0, 1, 2]}]}}, tmp_path / "x.pt")
    data = (tmp_path / "x.pt").read_bytes()
    ends = [i for i in range(len(data)) if data[i : i + 2] == b"PK"]
    (tmp_path / "step-1").mkdir()
    for _ in range(10):
        changed = bytearray(data)
        for _ in range(dice.choice((1, 2, 8))):
            near = dice.choice((dice.choice(ends) + dice.randrange(60), dice.randrange(len(data))))
            changed[min(near, len(data) - 1)] = dice.choice((0, 1, 255, dice.randrange(256)))
        (tmp_path / "step-1" / "x.pt").write_bytes(changed)
        api.pack(tmp_path / "step-1", tmp_path / "r.rk", overwrite=True, workers=1)
        api.unpack(tmp_path / "r.rk", tmp_path / "out", overwrite=True, workers=1)
        assert (tmp_path / "out" / "x.pt").read_bytes() == changed
        api.pack(tmp_path / "step-1", tmp_path / "n.rk", mode="strong", overwrite=True, workers=1)
        assert api.archive_verify(tmp_path / "n.rk", workers=1) == []
