"""Which links of a checkpoint folder are followed: those within it, and the hub's cache's."""

from __future__ import annotations

from pathlib import Path

import pytest
from store.folders import hashes, write_llama

from rekindle import api
from rekindle.errors import RekindleError
from rekindle.store.links import check_links


@pytest.fixture
def secret(tmp_path):
    path = tmp_path / "elsewhere" / "secret.txt"
    path.parent.mkdir()
    path.write_text("secret")
    return path


def snapshot(cache: Path) -> Path:
    """A folder as the hub's library leaves it: each file a link to a blob."""
    whole = write_llama(cache / "whole")
    (whole / "tokenizer.json").write_text("{}")
    repository = cache / "models--org--name"
    folder, blobs = repository / "snapshots" / "0123abc", repository / "blobs"
    folder.mkdir(parents=True)
    blobs.mkdir()
    for i, path in enumerate(sorted(whole.iterdir())):
        path.rename(blobs / f"{i}")
        (folder / path.name).symlink_to(Path("..") / ".." / "blobs" / f"{i}")
    return folder


def test_a_link_out_of_the_folder_is_not_copied(tmp_path, secret):
    parent = write_llama(tmp_path / "parent")
    (parent / "notes.txt").symlink_to(secret)
    for how in ({}, {"part": "1/2"}):
        with pytest.raises(RekindleError, match=r"notes\.txt is a link to a file outside") as refused:
            api.rewrite(parent).save(tmp_path / "out", **how)
        assert str(secret) in refused.value.why
        assert not list(tmp_path.glob("*out*"))


def test_a_link_out_of_the_folder_is_refused_before_training(tiny, tmp_path, secret):
    import shutil

    parent = shutil.copytree(tiny("llama"), tmp_path / "parent")
    (parent / "notes.txt").symlink_to(secret)
    with pytest.raises(RekindleError, match=r"notes\.txt is a link to a file outside"):
        api.train(parent, tmp_path / "out", tokens=256, seq_len=16, batch_tokens=64, lr=1e-3)
    assert not list(tmp_path.glob("*out*"))


def test_links_within_the_folder_are_followed(tmp_path):
    parent = write_llama(tmp_path / "parent")
    (parent / "notes.txt").write_text("ours")
    (parent / "more.txt").symlink_to("notes.txt")
    out = api.rewrite(parent).save(tmp_path / "out")
    assert (out / "more.txt").read_text() == "ours"
    assert not (out / "more.txt").is_symlink()


def test_a_snapshot_of_the_hub_s_cache(tmp_path):
    """And it through a link of one's own."""
    folder = snapshot(tmp_path / "cache")
    (tmp_path / "name").symlink_to(folder)
    for i, source in enumerate((folder, tmp_path / "name")):
        out = api.rewrite(source).save(tmp_path / f"out-{i}")
        assert (out / "tokenizer.json").read_text() == "{}"
        assert not (out / "tokenizer.json").is_symlink()
        assert hashes(out)


def test_a_snapshot_with_a_link_to_elsewhere(tmp_path, secret):
    folder = snapshot(tmp_path / "cache")
    other = snapshot(tmp_path / "other")
    for target in (secret, other / "tokenizer.json", folder.parent.parent / "blobs" / ".." / ".." / ".." / "elsewhere"):
        (folder / "notes.txt").unlink(missing_ok=True)
        (folder / "notes.txt").symlink_to(target)
        with pytest.raises(RekindleError, match=r"notes\.txt is a link to a file outside"):
            check_links(folder, sorted(folder.iterdir()))
