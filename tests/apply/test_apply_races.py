"""Two commands at once into one OUT, with `--resume` and without: one is refused, and what appears is right."""

from __future__ import annotations

import resource
import subprocess
import sys
import time
from pathlib import Path

import pytest
from store.folders import TINY_LLAMA, hashes, llama_tensors, write_llama

from rekindle import api

pytestmark = pytest.mark.slow

SIZES = {"hidden_size": 256, "intermediate_size": 688, "num_hidden_layers": 8, "vocab_size": 2000}


def start(*command: object, **how) -> subprocess.Popen:
    words = [sys.executable, "-m", "rekindle", *map(str, command)]
    return subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, **how)


@pytest.mark.parametrize("how", [(), ("--resume",), ("--overwrite",)], ids=["plain", "resume", "overwrite"])
def test_two_writers_of_one_out(tmp_path, how):
    parent = write_llama(tmp_path / "big", shards=6, **SIZES)
    whole = hashes(api.upcycle(parent, experts=12).save(tmp_path / "whole", max_shard_size="8MB"))
    refused = 0
    for i, delay in enumerate((0, 0.05, 0.1, 0.2, 0.3, *[0] * 10)):
        if i >= 5 and refused > 1:  # on a busy machine one may be done before the other has come up
            break
        out = tmp_path / f"out-{i}"
        command = ("upcycle", parent, out, "--experts", 12, "--max-shard-size", "8MB", *how)
        running = [start(*command)]
        time.sleep(delay)
        running.append(start(*command))
        said = [process.communicate()[1] for process in running]
        codes = sorted(process.returncode for process in running)
        assert codes in ([0, 0], [0, 2]), said
        assert codes[1] == 0 or any("Another process is writing" in text or "exists" in text for text in said)
        refused += codes[1] == 2
        assert hashes(out) == whole
        assert not list(tmp_path.glob(".*"))
    assert refused > 1


def test_different_writers_of_one_out(tmp_path):
    """The one that is refused leaves the other's result alone."""
    parent = write_llama(tmp_path / "big", shards=6, **SIZES)
    right = [hashes(api.upcycle(parent, experts=n).save(tmp_path / f"{n}", max_shard_size="8MB")) for n in (8, 12)]
    for i in range(4):
        out = tmp_path / f"out-{i}"
        running = [
            start("upcycle", parent, out, "--experts", n, "--max-shard-size", "8MB", "--resume") for n in (8, 12)
        ]
        said = [process.communicate()[1] for process in running]
        codes = [process.returncode for process in running]
        assert sorted(codes) == [0, 2], said
        assert hashes(out) == right[codes.index(0)]


def test_a_part_and_a_whole_of_one_out(tmp_path):
    """Parts share OUT with one another, but not with a whole, and what one leaves is its own."""
    parent = write_llama(tmp_path / "big", shards=6, **SIZES)
    how = ("--max-shard-size", "8MB", "--resume")
    whole = hashes(api.upcycle(parent, experts=12).save(tmp_path / "whole", max_shard_size="8MB"))
    for i, delay in enumerate((0, 0, 0.1, 0.3)):
        out = tmp_path / f"out-{i}"
        running = [start("upcycle", parent, out, "--experts", 11, *how, "--part", "1/2")]
        time.sleep(delay)
        running.append(start("upcycle", parent, out, "--experts", 12, *how))
        said = [process.communicate()[1] for process in running]
        codes = [process.returncode for process in running]
        assert sorted(codes) == [0, 2], said
        assert (out / "config.json").exists() == (codes[1] == 0)
        assert (out / "parts").exists() == (codes[0] == 0)
        assert codes[0] == 0 or hashes(out) == whole


def test_many_parts_at_once(tmp_path):
    """They begin and end at the same time, as those of an array of jobs do: none is refused."""
    parent = write_llama(tmp_path / "parent", shards=2)
    command = ("upcycle", parent, tmp_path / "out", "--experts", 4, "--max-shard-size", "20kB")
    running = [start(*command, "--part", f"{i}/8") for i in range(1, 9)]
    assert [(process.communicate()[1], process.returncode)[1] for process in running] == [0] * 8
    api.join(tmp_path / "out")
    whole = api.upcycle(parent, experts=4).save(tmp_path / "whole", max_shard_size="20kB")
    assert hashes(tmp_path / "out") == hashes(whole)
    assert not [path for path in tmp_path.glob(".*") if path.name != ".out.lock"]


def test_more_shards_than_files_may_be_open(tmp_path):
    """The usual limit of 1,024, with sources of more shards."""
    deep = TINY_LLAMA | {"num_hidden_layers": 120}
    tensors = llama_tensors(config=deep)
    assert len(tensors) > 1050
    parent = write_llama(tmp_path / "parent", shards=len(tensors), tensors=tensors, num_hidden_layers=120)

    def run(*command: object) -> str:
        limit = lambda: resource.setrlimit(resource.RLIMIT_NOFILE, (1024, 1024))  # noqa: E731
        process = start(*command, preexec_fn=limit)
        _, said = process.communicate()
        assert process.returncode == 0, said
        return said

    out = tmp_path / "out"
    run("rewrite", parent, out, "--max-shard-size", 1, "--dtype", "float32")
    assert len(hashes(out)) == len(tensors)
    run("verify", out, "--against", parent, "--blockwise")
    run("pack", parent, tmp_path / "run.rk")
    run("unpack", tmp_path / "run.rk", tmp_path / "unpacked")
    assert _bytes(tmp_path / "unpacked") == _bytes(parent)


def _bytes(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}
