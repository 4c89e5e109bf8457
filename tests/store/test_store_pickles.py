"""`pytorch_model*.bin`: tensors and nothing else, converted bit for bit."""

from __future__ import annotations

import contextlib
import json
import os
import random

import pytest
import torch
from safetensors.torch import load_file
from store.folders import TINY_LLAMA, llama_tensors

from rekindle import api
from rekindle.errors import RekindleError
from rekindle.store.folder import open_folder


def state(dtype: torch.dtype) -> dict[str, torch.Tensor]:
    """A tiny llama's."""
    generator = torch.Generator().manual_seed(0)
    shapes = {name: shape for name, (_, shape, _) in llama_tensors().items()}
    return {name: torch.randn(shape, generator=generator).to(dtype) for name, shape in shapes.items()}


@pytest.fixture
def folder(tmp_path):
    folder = tmp_path / "old"
    folder.mkdir()
    (folder / "config.json").write_text(json.dumps(TINY_LLAMA))
    return folder


def refusal(folder) -> str:
    with pytest.raises(RekindleError) as refused:
        open_folder(folder)
    return refused.value.what


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float16])
def test_a_state_dict_converts_bit_for_bit(folder, tmp_path, dtype):
    torch.save(state(dtype), folder / "pytorch_model.bin")
    model = api.open(folder)
    assert "rekindle rewrite" in model.checkpoint.notes[0]
    made = load_file(api.rewrite(model).save(tmp_path / "out") / "model.safetensors")
    assert made.keys() == state(dtype).keys()
    for name, tensor in state(dtype).items():
        assert made[name].dtype == dtype
        assert torch.equal(made[name], tensor), name


def test_shards_of_pickles(folder, tmp_path):
    tensors = state(torch.bfloat16)
    weight_map = {name: f"pytorch_model-0000{i % 2 + 1}-of-00002.bin" for i, name in enumerate(tensors)}
    for file in set(weight_map.values()):
        torch.save({n: t for n, t in tensors.items() if weight_map[n] == file}, folder / file)
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": weight_map}))
    made = load_file(api.rewrite(folder).save(tmp_path / "out") / "model.safetensors")
    assert all(torch.equal(made[name], tensor) for name, tensor in tensors.items())
    (folder / "pytorch_model-00001-of-00002.bin").unlink()
    assert "is missing" in refusal(folder)


def test_a_tensor_in_two_pickles(folder):
    for i in (1, 2):
        torch.save({"a": torch.ones(1)}, folder / f"pytorch_model-{i}.bin")
    index = {"weight_map": {"a": "pytorch_model-1.bin", "b": "pytorch_model-2.bin"}}
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps(index))
    assert "a is in two shards" in refusal(folder)


def test_an_index_of_pickles_cannot_lead_out(folder, tmp_path):
    torch.save(state(torch.float32), tmp_path / "x.bin")
    (folder / "pytorch_model.bin.index.json").write_text(json.dumps({"weight_map": {"a": "../x.bin"}}))
    assert "not a file name inside the folder" in refusal(folder)


def test_views_and_parameters_are_values_like_others(folder, tmp_path):
    tensors = state(torch.float32)
    turned = {name: t.T.contiguous().T if t.ndim == 2 else t for name, t in tensors.items()}
    torch.save({n: torch.nn.Parameter(t) for n, t in turned.items()}, folder / "pytorch_model.bin")
    made = load_file(api.rewrite(folder).save(tmp_path / "out") / "model.safetensors")
    assert all(torch.equal(made[name], tensor) for name, tensor in tensors.items())


class Malicious:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_malicious_pickle_is_refused_and_does_not_run(folder, tmp_path, zipped):
    bad = {"a": torch.ones(1), "b": Malicious(tmp_path / "ran")}
    torch.save(bad, folder / "pytorch_model.bin", _use_new_zipfile_serialization=zipped)
    assert "pickle" in refusal(folder)
    assert not (tmp_path / "ran").exists()
    torch.load(folder / "pytorch_model.bin", weights_only=False)
    assert (tmp_path / "ran").exists(), "the test's pickle is harmless"


@pytest.mark.parametrize(
    ("held", "word"),
    [
        ([torch.ones(1)], "not a table"),
        ({"model": {"a": torch.ones(1)}}, "model is not a tensor"),
        ({0: torch.ones(1)}, "without a name"),
        ({"a": torch.eye(3).to_sparse()}, "sparse"),
        ({"a": torch.ones(1, device="meta")}, "without values"),
        ({"a": torch.ones(1, dtype=torch.complex64)}, "complex64"),
    ],
)
def test_what_is_not_a_table_of_plain_tensors_is_refused(folder, held, word):
    torch.save(held, folder / "pytorch_model.bin")
    assert word in refusal(folder)


def test_torn_pickles_are_refused_or_read(folder):
    """Cut anywhere, or with bytes changed: a sentence or tensors, never anything else."""
    torch.save({"a": torch.ones(3, 2), "b": torch.ones(4, dtype=torch.bfloat16)}, folder / "pytorch_model.bin")
    raw, rng = (folder / "pytorch_model.bin").read_bytes(), random.Random(0)
    for number in range(400):
        torn = bytearray(raw)
        for _ in range(rng.choice((1, 2, 8))):
            torn[rng.randrange(len(torn))] = rng.randrange(256)
        if number % 3 == 0:
            torn = bytearray(raw[: rng.randrange(len(raw))])
        (folder / "pytorch_model.bin").write_bytes(torn)
        if number % 3 == 0:
            assert "pickle" in refusal(folder)
            continue
        with contextlib.suppress(RekindleError):
            open_folder(folder)
