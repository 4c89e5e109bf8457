"""Folders: config, index and shards; what is missing, misplaced or doubled is refused."""

from __future__ import annotations

import json
import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from store.folders import index_of, llama_tensors, write_index, write_llama
from store.safetensors_bytes import file_of

from rekindle import api
from rekindle.errors import RekindleError
from rekindle.store.folder import open_folder

SHARD = "model-00001-of-00003.safetensors"


@pytest.fixture
def sharded(tmp_path):
    return write_llama(tmp_path / "model", shards=3)


def refusal(folder) -> RekindleError:
    with pytest.raises(RekindleError) as refused:
        open_folder(folder)
    return refused.value


def test_one_file_and_shards_are_the_same_checkpoint(tmp_path, sharded):
    whole = open_folder(write_llama(tmp_path / "whole"))
    parts = open_folder(sharded)
    assert {n: (t.dtype, t.shape) for n, t in whole.tensors.items()} == {
        n: (t.dtype, t.shape) for n, t in parts.tensors.items()
    }
    assert len(whole.shards) == 1
    assert len(parts.shards) == 3


def test_shards_may_be_links_as_in_the_hubs_cache(tmp_path, sharded):
    blobs = tmp_path / "blobs"
    blobs.mkdir()
    for i, path in enumerate(sorted(sharded.iterdir())):
        path.rename(blobs / f"{i:064x}")
        path.symlink_to(os.path.relpath(blobs / f"{i:064x}", sharded))
    assert len(open_folder(sharded).tensors) == len(llama_tensors())
    assert api.rewrite(sharded).save(tmp_path / "out").is_dir()


@pytest.mark.parametrize(
    "file",
    ["../x.safetensors", "/etc/passwd", "sub/x.safetensors", "..", ".", "", "..\\x.safetensors", "a\\b", "C:\\x", 3,
     None, ["x"], {}],
)  # fmt: skip
def test_an_index_cannot_lead_out_of_the_folder(tmp_path, sharded, file):
    (tmp_path / "x.safetensors").write_bytes((sharded / SHARD).read_bytes())
    write_index(sharded, index_of(sharded) | {"lm_head.weight": file})
    assert "is not a file name inside the folder" in refusal(sharded).what
    assert repr(file) in refusal(sharded).what


@pytest.mark.parametrize("file", ["gone.safetensors", "x" * 300, "nul\0"])
def test_an_index_that_names_a_missing_file(sharded, file):
    write_index(sharded, index_of(sharded) | {"lm_head.weight": file})
    assert "is missing" in refusal(sharded).what


def test_a_missing_shard_is_named(sharded):
    (sharded / SHARD).unlink()
    error = refusal(sharded)
    assert error.what == f"The shard {SHARD} is missing."
    assert error.where == sharded / SHARD


def test_a_shard_that_is_a_dead_link_is_missing(sharded):
    (sharded / SHARD).unlink()
    (sharded / SHARD).symlink_to("nowhere")
    assert "is missing" in refusal(sharded).what


def test_a_tensor_that_is_not_where_the_index_says(sharded):
    index = index_of(sharded)
    other = next(file for file in index.values() if file != index["lm_head.weight"])
    write_index(sharded, index | {"lm_head.weight": other})
    assert "which does not hold it" in refusal(sharded).what


def test_a_tensor_that_the_index_does_not_list(sharded):
    write_index(sharded, {name: file for name, file in index_of(sharded).items() if name != "lm_head.weight"})
    assert "1 tensor(s) that the index does not list, such as lm_head.weight" in refusal(sharded).what


def test_a_tensor_in_two_shards(sharded):
    index = index_of(sharded)
    file = next(file for file in index.values() if file != index["lm_head.weight"])
    tensors = {name: tensor for name, tensor in llama_tensors().items() if index[name] == file}
    (sharded / file).write_bytes(file_of(tensors | {"lm_head.weight": llama_tensors()["lm_head.weight"]}))
    assert refusal(sharded).what == "lm_head.weight is in two shards."


def test_a_broken_shard_is_named(sharded):
    (sharded / SHARD).write_bytes((sharded / SHARD).read_bytes()[:-1])
    assert SHARD in str(refusal(sharded).where)
    assert "truncated" in refusal(sharded).what


@pytest.mark.parametrize("index", [{}, [], "model.safetensors", None, 1])
def test_an_index_without_a_map(sharded, index):
    write_index(sharded, index)
    assert "no weight_map" in refusal(sharded).what


BROKEN_JSON = {
    "empty": b"", "cut": b'{"model_type": "llama"', "a list": b"[]", "a number": b"1", "null": b"null",
    "not UTF-8": b'{"model_type": "\xff"}', "a byte order mark": b"\xef\xbb\xbf{}", "binary": bytes(range(256)),
    "deep": b'{"a":' * 100_000,
}  # fmt: skip


@pytest.mark.parametrize("broken", BROKEN_JSON)
@pytest.mark.parametrize("file", ["config.json", "model.safetensors.index.json"])
def test_broken_json_is_refused_by_name(sharded, broken, file):
    (sharded / file).write_bytes(BROKEN_JSON[broken])
    assert "JSON" in refusal(sharded).what
    assert refusal(sharded).where == sharded / file


def test_a_folder_without_config(sharded):
    (sharded / "config.json").unlink()
    assert "has no config.json" in refusal(sharded).what


def test_a_folder_without_weights(tmp_path):
    (write_llama(tmp_path / "model") / "model.safetensors").unlink()
    assert "has no weights" in refusal(tmp_path / "model").what


def test_what_is_no_folder(tmp_path, sharded):
    assert "is a file, not a checkpoint folder" in refusal(sharded / "config.json").what
    assert "does not exist" in refusal(tmp_path / "modle").what
    assert refusal(tmp_path / "modle").hint == str(sharded)
    assert "cannot be read" in refusal(tmp_path / ("x" * 300)).what


def test_a_config_that_is_a_folder(tmp_path):
    (tmp_path / "config.json").mkdir()
    assert "cannot be read" in refusal(tmp_path).what


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=50)
@given(index=st.recursive(st.none() | st.booleans() | st.integers() | st.text(), lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner)))  # fmt: skip # noqa: E501
def test_any_index_is_read_or_refused(tmp_path, index):
    folder = tmp_path / "model"
    if not folder.exists():
        write_llama(folder, shards=2)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": index}))
    with pytest.raises(RekindleError):
        open_folder(folder)


def test_all_that_is_wrong_with_the_tensors_is_said_at_once(tmp_path):
    tensors = llama_tensors()
    del tensors["model.norm.weight"]
    tensors["model.extra.weight"] = ("BF16", (1,), b"xy")
    tensors["lm_head.weight"] = ("BF16", (64, 16), bytes(64 * 16 * 2))
    with pytest.raises(RekindleError) as refused:
        api.open(write_llama(tmp_path / "model", tensors=tensors))
    for word in ("3 problems", "model.norm.weight", "no tensor model.extra.weight", "[64, 16]", "[64, 32]"):
        assert word in refused.value.what


def test_buffers_that_no_model_reads_are_ignored(tmp_path):
    tensors = llama_tensors() | {"model.layers.0.self_attn.rotary_emb.inv_freq": ("F32", (4,), bytes(16))}
    model = api.open(write_llama(tmp_path / "model", tensors=tensors))
    assert model.checkpoint.unused == ["model.layers.0.self_attn.rotary_emb.inv_freq"]


def test_base_model_names_need_no_prefix(tmp_path):
    bare = {name.removeprefix("model."): tensor for name, tensor in llama_tensors().items()}
    folder = write_llama(tmp_path / "model", tensors=bare)
    out = api.rewrite(folder).save(tmp_path / "out")
    assert set(open_folder(out).tensors) == set(llama_tensors())


def test_passengers_travel_and_results_stay(tmp_path):
    folder = write_llama(tmp_path / "model", shards=2)
    travel = {"tokenizer.json", "generation_config.json", "merges.txt", "chat_template.jinja", "LICENSE"}
    stay = {"verify.json", "trainer_state.json", "training_args.bin", "optimizer.pt", "notes.md"}
    for name in travel | stay:
        (folder / name).write_text("{}")
    out = api.rewrite(folder).save(tmp_path / "out")
    made = {path.name for path in out.iterdir()}
    assert made == travel | {"config.json", "model.safetensors", "rekindle.json", "rekindle.yaml", "README.md"}
