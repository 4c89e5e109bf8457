"""Names on the hub, through a cache that lies here and a network that does not answer."""

from __future__ import annotations

import os

import huggingface_hub.constants
import pytest
from store.folders import hashes, write_llama

from rekindle import api
from rekindle.errors import RekindleError
from rekindle.store.hub import locate

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A cache as huggingface_hub keeps it: blobs, a snapshot of links to them, and the name of a commit."""
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", True)
    monkeypatch.chdir(tmp_path)
    repo = tmp_path / "hub" / "models--maker--small"
    snapshot = repo / "snapshots" / COMMIT
    made = write_llama(tmp_path / "made", shards=2)
    for folder in (snapshot, repo / "blobs", repo / "refs"):
        folder.mkdir(parents=True)
    for i, path in enumerate(sorted(made.iterdir())):
        blob = repo / "blobs" / f"{i:064x}"
        blob.write_bytes(path.read_bytes())
        (snapshot / path.name).symlink_to(os.path.relpath(blob, snapshot))
    (repo / "refs" / "main").write_text(COMMIT)
    return snapshot


@pytest.mark.parametrize("name", ["maker/small", "hf://maker/small", "maker/small@main", f"maker/small@{COMMIT}"])
def test_a_cached_name_works_offline(cache, name):
    assert locate(name) == cache
    assert len(api.open(name).checkpoint.folder.shards) == 2


def test_what_is_made_of_links_is_files(cache, tmp_path):
    out = api.rewrite(
        "maker/small",
    ).save(tmp_path / "out", max_shard_size="20kB")
    assert not any(path.is_symlink() for path in out.iterdir())
    assert hashes(out).keys() == {path.name for path in out.glob("*.safetensors")}


def test_a_cached_name_that_lacks_a_shard(cache):
    next(cache.glob("*.safetensors")).unlink()
    with pytest.raises(RekindleError, match="is missing"):
        api.open("maker/small")


@pytest.mark.parametrize("name", ["maker/other", "hf://maker/other", "maker/small@v2"])
def test_an_unknown_name_offline(cache, name):
    with pytest.raises(RekindleError, match="neither a folder here nor in the hub's cache") as refused:
        api.open(name)
    assert "HF_HUB_OFFLINE" in refused.value.hint


@pytest.mark.parametrize("name", ["models--a/b", "models/llama-", "data/x.git", "a/" + "b" * 100, "hf://a/b..c"])
def test_a_mistyped_path_that_is_no_name_either(cache, name):
    with pytest.raises(RekindleError, match="cannot be a name on the hub"):
        api.open(name)


@pytest.mark.parametrize("name", ["nowhere", "./a/b", "/a/b", "a/b/c", "~/a", "", "x" * 300, "a\0b", "hf://x", "@"])
def test_what_is_no_name_is_a_path(cache, name):
    with pytest.raises(RekindleError):
        api.open(name)


def test_a_folder_goes_before_a_name(cache, tmp_path):
    write_llama(tmp_path / "maker" / "small")
    assert len(api.open("maker/small").checkpoint.folder.shards) == 1
    assert len(api.open("hf://maker/small").checkpoint.folder.shards) == 2
