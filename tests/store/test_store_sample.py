"""A sample of files and tensors: copies are the same, and what was written again is not."""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
from store.folders import write_llama

from rekindle.errors import RekindleError
from rekindle.store.folder import open_folder
from rekindle.store.sample import MOST, SAMPLE, sampled, sampled_files


def changed(path: Path, at: int) -> None:
    data = bytearray(path.read_bytes())
    data[at] ^= 1
    path.write_bytes(data)


def test_every_byte_of_a_small_file_counts_and_no_time_nor_place(tmp_path):
    one, other = tmp_path / "one.txt", tmp_path / "elsewhere.txt"
    for size in (0, 1, SAMPLE, 3 * SAMPLE + 5):
        for path in (one, other):
            path.write_bytes(np.random.default_rng(0).bytes(size))
        os.utime(other, (1, 1))
        first = sampled_files({"text": one})
        assert first == sampled_files({"text": other}) != sampled_files({"another": other})
        for at in {0, size // 3, size // 2, size - 1} if size else ():
            changed(other, at)
            assert sampled_files({"text": other}) != first, (size, at)
            changed(other, at)


def test_of_a_large_file_ends_and_size_count(tmp_path):
    path = tmp_path / "large"
    path.write_bytes(bytes(5 << 20))
    first = sampled_files({"": path})
    for at in (0, (5 << 20) - 1, (5 << 20) // 255 * 7):
        changed(path, at)
        assert sampled_files({"": path}) != first
        changed(path, at)
    assert sampled_files({"": path}) == first
    path.write_bytes(bytes((5 << 20) + 1))
    assert sampled_files({"": path}) != first


@pytest.mark.parametrize("shards", [1, 3])
def test_each_tensor_counts_whatever_file_it_is_in(tmp_path, shards):
    whole = open_folder(write_llama(tmp_path / "whole", hidden_size=256, vocab_size=512)).tensors
    folder = write_llama(tmp_path / "again", hidden_size=256, vocab_size=512, shards=shards)
    tensors = open_folder(folder).tensors
    assert any(x.nbytes > MOST * SAMPLE for x in tensors.values())
    first = sampled(whole)
    assert sampled(tensors) == first
    for x in tensors.values():
        changed(Path(x.path), x.offset + x.nbytes - 1)
        assert sampled(open_folder(folder).tensors) != first
        changed(Path(x.path), x.offset + x.nbytes - 1)


def test_a_file_that_is_gone_is_a_sentence(tmp_path):
    with pytest.raises(RekindleError, match="gone"):
        sampled_files({"": tmp_path / "gone"})
