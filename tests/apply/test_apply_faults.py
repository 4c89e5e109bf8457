"""A disc that fills, a place that cannot be written, a source that changes: a sentence, and nothing left behind."""

from __future__ import annotations

import errno
import os
import resource
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

import pytest
from store.folders import hashes, write_llama

from rekindle import api
from rekindle.apply import crew, write
from rekindle.errors import RekindleError
from rekindle.store import files

NOBODY = 65534


@pytest.fixture
def parent(tmp_path):
    return write_llama(tmp_path / "parent", shards=2)


def refused(parent: Path, out: Path, match: str, **options) -> RekindleError:
    """The sentence; and the folder of OUT is as it was before."""
    before = (
        set(out.parent.iterdir())
        if out.parent.is_dir() and os.access(out.parent, os.R_OK, effective_ids=True)
        else None
    )
    with pytest.raises(RekindleError, match=match) as error:
        api.upcycle(parent, experts=2, init="noise", noise=0.1).save(out, **options)
    assert before is None or set(out.parent.iterdir()) == before
    return error.value


# -- a full disc -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("call", "after"),
    [("pwrite", 0), ("pwrite", 5), ("copy_file_range", 0), ("copy_file_range", 5), ("fsync", 0), ("fsync", 2)]
    + [("replace", 0), ("replace", 3), ("rename", 0)],
)
def test_a_disc_that_fills_up(parent, tmp_path, monkeypatch, call, after):
    inner, calls = getattr(os, call), []

    def full(*args, **kwargs):
        calls.append(args)
        if len(calls) > after:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return inner(*args, **kwargs)

    monkeypatch.setattr(files, "PAGE", 1)  # every copy is the kernel's
    monkeypatch.setattr(os, call, full)
    error = refused(parent, tmp_path / "out", "The disc is full", max_shard_size="20kB")
    assert "free some space" in error.hint


def test_a_disc_that_is_known_to_be_too_small_is_refused_before_the_first_byte(parent, tmp_path, monkeypatch):
    stat, wrote = os.statvfs(tmp_path), []
    smaller = os.statvfs_result([*stat[:4], 10, *stat[5:]])
    monkeypatch.setattr(os, "statvfs", lambda path: smaller)
    monkeypatch.setattr(os, "pwrite", lambda *a: wrote.append(a))
    refused(parent, tmp_path / "out", r"The result needs 0\.00 GB, but the disc has 0\.00 GB free")
    assert not wrote


@pytest.fixture
def small_disc(tmp_path):
    place = tmp_path / "small"
    place.mkdir()
    mount = shutil.which("mount")
    if os.geteuid() or not mount:
        pytest.skip("mounting a small file system needs root")
    command = [mount, "-t", "tmpfs", "-o", "size=32k", "tmpfs", str(place)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("this machine lets nobody mount")
    yield place
    subprocess.run(["umount", str(place)], check=True)


def test_a_real_disc_that_fills_up(parent, small_disc, monkeypatch):
    monkeypatch.setattr(crew, "_reserve", lambda shards, folder: None)
    refused(parent, small_disc / "out", "The disc is full")


def test_a_real_disc_that_is_too_small(parent, small_disc):
    refused(parent, small_disc / "out", "but the disc has")


def test_a_file_system_with_a_limit_to_files(parent, tmp_path):
    """FAT's is 4 GB; here the process has one."""
    command = [sys.executable, "-m", "rekindle", "upcycle", str(parent), str(tmp_path / "out"), "--experts", "2"]
    limit = lambda: resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))  # noqa: E731
    ran = subprocess.run(command, preexec_fn=limit, capture_output=True, text=True, check=False)
    assert ran.returncode == 2
    assert "no file this large" in ran.stderr
    assert "--max-shard-size" in ran.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["parent"]


# -- places ----------------------------------------------------------------------------------------------------


@pytest.fixture
def as_nobody():
    """A folder that is open to all, and a user for whom permissions count, as they do not for root."""
    place = Path(tempfile.mkdtemp())
    place.chmod(0o755)
    yield place
    os.seteuid(os.getuid())
    shutil.rmtree(place)


def become_nobody() -> None:
    if os.geteuid() == 0:
        os.seteuid(NOBODY)


def test_a_place_that_cannot_be_written(as_nobody):
    parent = write_llama(as_nobody / "parent")
    closed = as_nobody / "closed"
    closed.mkdir()
    closed.chmod(0o555)
    become_nobody()
    error = refused(parent, closed / "out", "No permission to write here")
    assert str(closed) in str(error.where)
    error = refused(parent, closed / "deeper" / "out", "No permission to write here")
    assert str(closed) in str(error.where)


def test_a_place_that_cannot_be_entered(as_nobody):
    parent = write_llama(as_nobody / "parent")
    closed = as_nobody / "closed"
    closed.mkdir()
    closed.chmod(0o000)
    become_nobody()
    refused(parent, closed / "out", "No permission to write here")
    with pytest.raises(RekindleError, match="cannot be read: Permission denied"):
        api.open(closed / "model")
    with pytest.raises(RekindleError, match="cannot be read: Permission denied"):
        api.pack([closed], as_nobody / "run.rk")


@pytest.mark.parametrize("file", ["config.json", "model.safetensors"])
def test_a_source_that_cannot_be_read(as_nobody, file):
    parent = write_llama(as_nobody / "parent")
    (parent / file).chmod(0o000)
    become_nobody()
    with pytest.raises(RekindleError, match="cannot be read: Permission denied") as error:
        api.open(parent)
    assert error.value.where == parent / file


def test_a_passenger_that_cannot_be_read(as_nobody):
    parent = write_llama(as_nobody / "parent")
    (parent / "tokenizer.json").touch(0o000)
    as_nobody.chmod(0o777)
    become_nobody()
    error = refused(parent, as_nobody / "out", "cannot be read: Permission denied")
    assert str(error.where) == str(parent / "tokenizer.json")


def test_out_that_is_a_file(parent, tmp_path):
    (tmp_path / "out").write_text("mine")
    for overwrite in (True, False):
        refused(parent, tmp_path / "out", "is a file, not a folder", overwrite=overwrite)
    refused(parent, tmp_path / "out" / "inner", "is a file, not a folder")
    assert (tmp_path / "out").read_text() == "mine"


def test_out_that_is_not_empty(parent, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    refused(parent, tmp_path / "out", "exists and is not empty")
    assert api.rewrite(parent).save(tmp_path / "out", overwrite=True)
    assert not (tmp_path / "out" / "mine").exists()


def test_a_refused_overwrite_leaves_the_old_result(parent, tmp_path, monkeypatch):
    old = hashes(api.rewrite(parent).save(tmp_path / "out"))
    monkeypatch.setattr(os, "fsync", lambda fd: (_ for _ in ()).throw(OSError(errno.EIO, "Input/output error")))
    refused(parent, tmp_path / "out", "Input/output error", overwrite=True)
    assert hashes(tmp_path / "out") == old


# -- sources that change ---------------------------------------------------------------------------------------


def at_first_tensor(action):
    """A progress callback that does something to the source when the first tensor is written."""
    calls = []

    def progress(done):
        if not calls:
            calls.append(done)
            action()

    return progress


@pytest.mark.parametrize("kernel", [True, False])
def test_a_source_cut_while_it_is_copied(parent, tmp_path, monkeypatch, kernel):
    if not kernel:
        monkeypatch.delattr(os, "copy_file_range")
    cut = at_first_tensor(lambda: [os.truncate(file, 3000) for file in parent.glob("*.safetensors")])
    error = refused(parent, tmp_path / "out", "The source was changed while it was read", progress=cut, workers=1)
    assert "model-0000" in str(error.where)


def test_a_source_that_goes_away(parent, tmp_path):
    gone = at_first_tensor(lambda: [file.unlink() for file in parent.glob("*.safetensors")])
    refused(parent, tmp_path / "out", "cannot be read: No such file", progress=gone, workers=1)


def test_a_source_that_went_away_before(parent, tmp_path):
    model = api.upcycle(parent, experts=2)
    next(parent.glob("*.safetensors")).unlink()
    with pytest.raises(RekindleError, match="cannot be read: No such file"):
        model.save(tmp_path / "out")
    assert [path.name for path in tmp_path.iterdir()] == ["parent"]


def test_the_other_workers_stop_where_one_fails(parent, tmp_path, monkeypatch):
    """Few shards are begun after the failure."""
    begun = []

    class Counted(write.ShardWriter):
        def __init__(self, shard, *rest):
            begun.append(shard.file)
            if len(begun) == 2:
                raise OSError(errno.ENOSPC, "No space left on device")
            super().__init__(shard, *rest)

    monkeypatch.setattr(crew, "ShardWriter", Counted)
    refused(parent, tmp_path / "out", "The disc is full", max_shard_size="1", workers=2)
    assert len(begun) < 20


# -- a source that goes while it is used, and places that may not be entered -----------------------------------


def test_a_source_that_disappears(tiny, tmp_path):
    def source(name):
        shutil.copytree(tiny("llama"), tmp_path / name)
        (tmp_path / name / "tokenizer.json").write_text("{}")
        return tmp_path / name, api.rewrite(tmp_path / name)

    folder, model = source("folder")
    shutil.rmtree(folder)
    for way in (model.job, lambda: model.save(tmp_path / "out")):
        with pytest.raises(RekindleError, match="The folder cannot be read: No such file"):
            way()
    for file in ("model.safetensors", "tokenizer.json", "config.json"):
        folder, model = source(f"without-{file}")
        (folder / file).unlink()
        with pytest.raises(RekindleError, match="No such file") as gone:
            model.save(tmp_path / "out")
        assert file in str(gone.value)
    folder, model = source("later")
    with pytest.raises(RekindleError, match="No such file"):
        model.save(tmp_path / "out", progress=lambda done: shutil.rmtree(folder, ignore_errors=True), workers=1)
    assert not [path for path in tmp_path.iterdir() if path.name.strip(".").startswith("out")]


AS_NOBODY = """
import os, sys
from rekindle import api
from rekindle.errors import RekindleError
base, nobody = sys.argv[1], 65534
api.upcycle(f"{base}/parent", experts=2).save(f"{base}/warm")  # what is imported on the way cannot be, by nobody
if os.geteuid() == 0:
    os.seteuid(nobody)
for verb in ("rewrite", "upcycle"):
    for out in ("locked/out", "locked/a/b", "closed", "closed/out", "free/out"):
        try:
            options = {"experts": 2} if verb == "upcycle" else {}
            api.apply(verb, f"{base}/parent", **options).save(f"{base}/{out}", overwrite=True)
            print("done")
        except RekindleError as error:
            print(error.what)
for verb in (api.join, api.open):
    try:
        verb(f"{base}/closed")
    except RekindleError as error:
        print(error.what)
print(sorted(os.listdir(f"{base}/free")))
"""


def test_places_that_a_user_may_not_write_or_enter(tiny):
    base = Path(tempfile.mkdtemp())  # pytest's own folders are closed to others
    try:
        base.chmod(0o755)
        shutil.copytree(tiny("llama"), base / "parent")
        for path in (base / "parent").iterdir():
            path.chmod(0o444)
        for name, mode in (("locked", 0o555), ("free", 0o777), ("closed", 0o000)):
            (base / name).mkdir()
            (base / name).chmod(mode)
        (base / "parent").chmod(0o555)
        command = [sys.executable, "-c", AS_NOBODY, str(base)]
        ran = subprocess.run(command, capture_output=True, text=True, check=False)
        no = ["No permission to write here."]
        assert ran.stdout.splitlines() == [
            *2 * [*4 * no, "done"],
            *no,
            "The folder cannot be read: Permission denied.",
            "['out']",
        ], ran.stderr
    finally:
        for path in (base / "parent", base / "locked", base / "closed"):
            path.chmod(0o755)
        shutil.rmtree(base)
