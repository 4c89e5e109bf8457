"""A source that somebody writes to while it is read is refused, however it is done; and nothing is left."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from apply_moments import write_moments
from store.folders import TINY_LLAMA, hashes, llama_tensors, write_llama

from rekindle import api
from rekindle.errors import RekindleError
from rekindle.store import sample
from rekindle.store.publish import partial_path

SMALL = {"max_shard_size": "20kB", "workers": 1}


@pytest.fixture
def parent(tmp_path):
    folder = write_llama(tmp_path / "parent", shards=2)
    (folder / "tokenizer.json").write_text("{}")
    return folder


def in_place(path: Path) -> None:
    with path.open("r+b") as file:
        file.seek(-100, os.SEEK_END)
        file.write(bytes(100))


def by_rename(path: Path) -> None:
    """What a trainer does with its latest state: the same size, and if it likes the same time of change."""
    other, times = path.with_name("other"), path.stat()
    other.write_bytes(path.read_bytes()[:-100] + bytes(100))
    os.utime(other, ns=(times.st_atime_ns, times.st_mtime_ns))
    other.replace(path)


def with_its_time(path: Path) -> None:
    times = path.stat()
    in_place(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))


def all_by_rename(path: Path) -> None:
    new = path.parent.with_name("new")
    shutil.copytree(path.parent, new)
    path.parent.rename(path.parent.with_name("old"))
    new.rename(path.parent)


@pytest.mark.parametrize("change", [in_place, by_rename, with_its_time, all_by_rename])
@pytest.mark.parametrize("file", ["model-00001-of-00002.safetensors", "config.json", "tokenizer.json"])
@pytest.mark.parametrize("when", [0, 8])
@pytest.mark.parametrize("how", [{}, {"part": "1/2"}])
def test_a_change_while_it_is_read_is_refused(parent, tmp_path, change, file, when, how):
    (parent / "config.json").write_text(json.dumps(TINY_LLAMA | {"padding": " " * 200}))
    (parent / "tokenizer.json").write_text(" " * 200 + "{}")
    calls = []

    def progress(done):
        calls.append(done)
        if len(calls) == when + 1:
            change(parent / file)

    model = api.upcycle(parent, experts=2, init="noise", noise=0.1)
    with pytest.raises(RekindleError, match="The source was changed while it was read") as refused:
        model.save(tmp_path / "out", progress=progress, **SMALL, **how)
    assert Path(refused.value.where).parent == parent
    assert len(calls) > when
    assert not [path for path in tmp_path.iterdir() if path.name.startswith((".out", "out"))]


def test_a_change_before_the_first_byte_is_refused_at_once(parent, tmp_path):
    model = api.upcycle(parent, experts=2)
    in_place(parent / "model-00002-of-00002.safetensors")
    done = []
    with pytest.raises(RekindleError, match=r"changed while it was read: model-00002-of-00002\.safetensors\."):
        model.save(tmp_path / "out", progress=done.append)
    assert not done


def test_moments_that_change_are_refused(parent, tmp_path):
    state = write_moments(tmp_path / "state", parent)
    changed = []

    def progress(done):
        if not changed:
            changed.append(in_place(state / "optimizer.safetensors"))

    with pytest.raises(RekindleError, match=r"changed while it was read: optimizer\.safetensors\."):
        api.upcycle(parent, experts=2).save(tmp_path / "out", optimizer_state=str(state), progress=progress)


def test_what_is_not_read_may_change(parent, tmp_path):
    """A trainer's log, the card."""

    def progress(done):
        (parent / "log").write_text(str(done))
        (parent / "README.md").write_text(str(done))

    whole = hashes(api.upcycle(parent, experts=2).save(tmp_path / "whole"))
    assert hashes(api.upcycle(parent, experts=2).save(tmp_path / "out", progress=progress)) == whole


def test_of_a_shard_that_is_finished_nothing_remains_once_the_source_changed(parent, tmp_path):
    calls = []

    def stop(done):
        calls.append(done)
        if len(calls) > 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.upcycle(parent, experts=2).save(tmp_path / "out", progress=stop, **SMALL)
    for path in parent.glob("*.safetensors"):
        in_place(path)
    out = api.upcycle(parent, experts=2).save(tmp_path / "out", resume=True, **SMALL)
    assert hashes(out) == hashes(api.upcycle(parent, experts=2).save(tmp_path / "whole", **SMALL))


def test_a_file_that_no_longer_travels_does_not_stay_from_an_earlier_attempt(parent, tmp_path):
    def stop(done):
        if (partial_path(tmp_path / "out") / "tokenizer.json").exists():
            raise KeyboardInterrupt

    (parent / "added_tokens.json").write_text("{}")
    with pytest.raises(KeyboardInterrupt):
        api.rewrite(parent).save(tmp_path / "out", progress=stop, **SMALL)
    (parent / "added_tokens.json").unlink()
    out = api.rewrite(parent).save(tmp_path / "out", resume=True, **SMALL)
    assert {path.name for path in out.iterdir()} >= {"tokenizer.json", "config.json"}
    assert not (out / "added_tokens.json").exists()


# -- parts of one source, and of another like it ---------------------------------------------------------------


def tuned(folder: Path, names: str) -> Path:
    """A copy in which only the tensors with this in their name have other values; sizes are the same."""
    changed = {
        name: (dtype, shape, bytes(len(data)) if names in name else data)
        for name, (dtype, shape, data) in llama_tensors().items()
    }
    return write_llama(folder, shards=2, tensors=changed)


@pytest.mark.parametrize("names", ["lm_head", "layers.1.self_attn.q_proj", "embed_tokens", "norm", "1.mlp.down_proj"])
def test_a_part_of_a_fine_tune_does_not_join(tmp_path, monkeypatch, names):
    """Whichever tensors were trained, and wherever they lie in their file."""
    parts = [write_llama(tmp_path / "a" / "parent", shards=2), tuned(tmp_path / "b" / "parent", names)]
    for i, source in enumerate(parts, 1):
        monkeypatch.chdir(source.parent)
        api.upcycle("parent", experts=2).save("out", part=f"{i}/2", **SMALL)
    shutil.copytree(tmp_path / "b" / "out", tmp_path / "a" / "out", dirs_exist_ok=True)
    with pytest.raises(RekindleError, match="are made from different source files"):
        api.join(tmp_path / "a" / "out")


def test_a_part_with_another_tokenizer_does_not_join(parent, tmp_path):
    api.upcycle(parent, experts=2).save(tmp_path / "out", part="1/2", **SMALL)
    (parent / "tokenizer.json").write_text("[]")
    with pytest.raises(RekindleError, match="are made from folders that differ"):
        api.upcycle(parent, experts=2).save(tmp_path / "out", part="2/2", **SMALL)


def test_a_copy_of_the_source_is_the_same_source(parent, tmp_path):
    """On another machine: other times, another place."""
    shutil.copytree(parent, tmp_path / "elsewhere" / "parent", copy_function=shutil.copyfile)
    first = api.upcycle(parent, experts=2).job().identity
    assert api.upcycle(tmp_path / "elsewhere" / "parent", experts=2).job().identity == first


def test_how_much_is_read_to_know_a_source(tmp_path, monkeypatch):
    """At most PLACES pages in all, but one of each tensor, spread over it from near its start to near its end."""
    parent, reads = write_llama(tmp_path / "parent", hidden_size=256, vocab_size=512), []
    read = sample.Files.read

    def counted(self, path, offset, nbytes):
        reads.append((offset, nbytes))
        return read(self, path, offset, nbytes)

    monkeypatch.setattr(sample.Files, "read", counted)
    tensors = api.open(parent).checkpoint.folder.tensors
    for places, most in ((1 << 14, 16), (len(tensors) * 3, 3), (1, 1)):
        reads.clear()
        monkeypatch.setattr(sample, "PLACES", places)
        api.rewrite(parent).job().identity  # noqa: B018
        assert len(reads) <= max(places, len(tensors))
        for tensor in tensors.values():
            mine = [(at, n) for at, n in reads if tensor.offset <= at < tensor.offset + tensor.nbytes]
            assert len(mine) == min(most, -(-tensor.nbytes // sample.SAMPLE))
            assert all(at + n <= tensor.offset + tensor.nbytes for at, n in mine)
    embedding = tensors["model.embed_tokens.weight"]
    assert embedding.nbytes == 512 * 256 * 2


def test_small_tensors_are_known_to_the_last_byte(tmp_path):
    parent = write_llama(tmp_path / "parent")
    first = api.rewrite(parent).job().identity
    in_place(parent / "model.safetensors")
    assert api.rewrite(parent).job().identity != first
