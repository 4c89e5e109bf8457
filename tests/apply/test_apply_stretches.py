"""Several workers write one shard: each byte once, the hash in file order, and the same file as one worker's."""

from __future__ import annotations

import hashlib
import os
import threading
import time

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from store.folders import hashes, write_llama

from rekindle import api
from rekindle.apply import write
from rekindle.apply.shards import Shard
from rekindle.apply.write import ShardWriter, stretches
from rekindle.edit.arithmetic import Fill
from rekindle.edit.expressions import Rows
from rekindle.store.files import Files
from rekindle.store.header import PAGE
from rekindle.store.manifest import read_manifest

tensors = st.lists(
    st.tuples(st.sampled_from(["BF16", "F32", "U8", "F4"]), st.lists(st.integers(0, 15), max_size=2)), max_size=6
)


@given(tensors, st.integers(1, 3000), st.integers(0, 99))
def test_stretches_are_all_bytes_once_and_in_order(made, stretch, start):
    shard = Shard("x", {f"t{i}": Fill(dtype, (*shape, 4), 0.0) for i, (dtype, shape) in enumerate(made)})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(write, "STRETCH", stretch)
        found = list(stretches(shard, start))
    at, rows = start, dict.fromkeys(shard.tensors, 0)
    for one in found:
        assert one.at == at
        for name, expr in one.tensors:
            assert rows[name] == (expr.lo if isinstance(expr, Rows) else 0)
            rows[name] += expr.num_rows
            at += expr.nbytes
    assert rows == {name: expr.num_rows for name, expr in shard.tensors.items()}
    assert at == start + sum(expr.nbytes for expr in shard.tensors.values())


def test_a_large_tensor_is_cut_on_pages(monkeypatch):
    """So that a file system that shares blocks can still share them."""
    monkeypatch.setattr(write, "STRETCH", 100_000)
    shard = Shard("x", {"a": Fill("BF16", (1000, 96), 0.0), "b": Fill("F32", (100_000,), 0.0)})
    parts = [expr for one in stretches(shard, 0) for _, expr in one.tensors]
    assert len(parts) > 5
    assert all(part.lo * part.x.row_size * (2 if part.dtype == "BF16" else 4) % PAGE == 0 for part in parts)
    assert max(part.nbytes for part in parts) <= 100_000


@pytest.mark.parametrize("workers", [1, 2, 5])
@pytest.mark.parametrize("limit", ["5GB", "20kB"])
def test_the_file_and_its_hash_are_those_of_one_worker(tmp_path, monkeypatch, workers, limit):
    model = api.upcycle(write_llama(tmp_path / "parent", shards=2), experts=3, init="noise", noise=0.1)
    whole = hashes(model.save(tmp_path / "whole", workers=1, max_shard_size=limit))
    monkeypatch.setattr(write, "STRETCH", 700)
    out = model.save(tmp_path / "out", workers=workers, max_shard_size=limit, checksum=True)
    assert hashes(out) == whole
    shards = {file: sha256 for file, sha256 in whole.items() if not file.startswith("measurements/")}
    assert {file: entry["sha256"] for file, entry in read_manifest(out).shards.items()} == shards


def test_two_workers_compute_one_shard_at_the_same_time(tmp_path, monkeypatch):
    meet, inner = threading.Barrier(2, timeout=20), write._write_tensor

    def met(expr, out, at, files):
        if expr.nbytes > 8000:
            meet.wait()
        return inner(expr, out, at, files)

    monkeypatch.setattr(write, "_write_tensor", met)
    monkeypatch.setattr(write, "STRETCH", 9000)
    parent = write_llama(tmp_path / "parent", vocab_size=128, tie_word_embeddings=True)
    out = api.rewrite(parent, dtype="float32").save(tmp_path / "out", workers=2)
    assert [path.name for path in out.glob("*.safetensors")] == ["model.safetensors"]


def test_a_second_worker_does_not_copy_into_the_same_file(tmp_path, monkeypatch):
    """A file system would have one wait for the other."""
    copiers, inner = {}, Files.copy

    def copied(self, path, offset, nbytes, out, at):
        copiers.setdefault(os.fstat(out).st_ino, set()).add(threading.get_ident())
        time.sleep(0.002)
        inner(self, path, offset, nbytes, out, at)

    monkeypatch.setattr(Files, "copy", copied)
    monkeypatch.setattr(write, "STRETCH", 700)
    api.rewrite(write_llama(tmp_path / "parent")).save(tmp_path / "out", workers=3, max_shard_size="10kB")
    assert all(len(threads) == 1 for threads in copiers.values())
    assert len(set().union(*copiers.values())) > 1


@settings(deadline=None)  # files are written
@given(st.permutations(range(12)))
def test_the_hash_follows_in_file_order_whatever_the_order_of_writing(tmp_path_factory, order):
    folder = tmp_path_factory.mktemp("hash")
    shard = Shard("x.safetensors", {f"t{i}": Fill("F32", (50, 4), float(i)) for i in range(12)})
    with pytest.MonkeyPatch.context() as patch, Files() as files:
        patch.setattr(write, "STRETCH", 800)
        writer = ShardWriter(shard, folder, checksum=True)
        ends = []
        for index in order:
            list(writer.write(index, files, threading.Event()))
            ends.append(writer.follow(index, threading.Event()))
        assert ends == [False] * 11 + [True]
        written = writer.seal()
    data = (folder / "x.safetensors").read_bytes()
    assert (written.bytes, written.sha256) == (len(data), hashlib.sha256(data).hexdigest())
