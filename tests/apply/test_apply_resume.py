"""--resume goes on with the same plan over the same files, and with nothing else."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from apply_moments import write_moments
from store.folders import hashes, write_llama

from rekindle import api
from rekindle.apply.crew import JOURNAL
from rekindle.store.publish import partial_path

SMALL = {"max_shard_size": "20kB", "workers": 1}


@pytest.fixture
def parent(tmp_path):
    return write_llama(tmp_path / "parent", shards=2)


def cut_short(model, out: Path, after: int = 30, **options) -> dict[str, tuple[int, int]]:
    """Stop a write after so many tensors; {finished shard: (inode, time of change)}."""
    calls = []

    def stop(done):
        calls.append(done)
        if len(calls) > after:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        model.save(out, progress=stop, **(SMALL | options))
    assert not out.exists()
    done = json.loads((partial_path(out) / JOURNAL).read_text())["done"]
    assert done
    return {file: stamp(partial_path(out) / file) for file in done}


def stamp(path: Path) -> tuple[int, int]:
    return path.stat().st_ino, path.stat().st_mtime_ns


def test_resume_finishes_without_touching_what_is_finished(parent, tmp_path):
    model = api.upcycle(parent, experts=4)
    whole = hashes(model.save(tmp_path / "whole", **SMALL))
    done = cut_short(model, tmp_path / "out")
    counted = []
    out = model.save(tmp_path / "out", resume=True, progress=counted.append, **SMALL)
    assert hashes(out) == whole
    assert {file: stamp(out / file) for file in done} == done
    assert sum(counted) >= model.job().nbytes, "what was finished counts as done"
    assert not list(out.rglob(JOURNAL))
    assert not partial_path(out).exists()


def test_checksums_of_finished_shards_are_recorded_too(parent, tmp_path):
    model = api.upcycle(parent, experts=4)
    cut_short(model, tmp_path / "out", checksum=True)
    out = model.save(tmp_path / "out", resume=True, checksum=True, **SMALL)
    assert len(list(api.checksums(out))) == len(hashes(out))


def test_resume_where_there_is_nothing_starts_afresh(parent, tmp_path):
    assert api.upcycle(parent, experts=2).save(tmp_path / "out", resume=True).is_dir()


def test_without_resume_what_was_cut_short_is_dropped(parent, tmp_path):
    model = api.upcycle(parent, experts=4)
    done = cut_short(model, tmp_path / "out")
    out = model.save(tmp_path / "out", **SMALL)
    assert not {stamp(out / file) for file in done} & set(done.values())


CHANGED = {
    "seed": {"experts": 4, "seed": 1},
    "experts": {"experts": 3},
    "noise": {"experts": 4, "init": "noise", "noise": 0.01},
    "router": {"experts": 4, "router_std": 0.01},
    "top-k": {"experts": 4, "top_k": 1},
}


@pytest.mark.parametrize("what", CHANGED)
def test_another_plan_reuses_nothing(parent, tmp_path, what):
    done = cut_short(api.upcycle(parent, experts=4), tmp_path / "out")
    other = api.upcycle(parent, **CHANGED[what])
    out = other.save(tmp_path / "out", resume=True, **SMALL)
    assert hashes(out) == hashes(other.save(tmp_path / "whole", **SMALL))
    assert not {stamp(path) for path in out.glob("*.safetensors")} & set(done.values())


def test_other_shards_reuse_nothing(parent, tmp_path):
    model = api.upcycle(parent, experts=4)
    cut_short(model, tmp_path / "out")
    out = model.save(tmp_path / "out", resume=True, max_shard_size="90kB")
    assert hashes(out) == hashes(model.save(tmp_path / "whole", max_shard_size="90kB"))


def test_a_source_that_changed_is_copied_again(parent, tmp_path):
    """Same names, shapes and offsets, other values: only the time of change tells."""
    done = cut_short(api.upcycle(parent, experts=4), tmp_path / "out")
    for file in parent.glob("*.safetensors"):
        before = file.stat().st_mtime_ns
        file.write_bytes(file.read_bytes()[:-1000] + bytes(1000))
        os.utime(file, ns=(before, before + 1))
    model = api.upcycle(parent, experts=4)
    out = model.save(tmp_path / "out", resume=True, **SMALL)
    assert hashes(out) == hashes(model.save(tmp_path / "whole", **SMALL))
    assert not {stamp(path) for path in out.glob("*.safetensors")} & set(done.values())


def test_another_parent_leaves_nothing_of_the_first(parent, tmp_path):
    """Its moments and its tokenizer too are gone."""
    state = write_moments(tmp_path / "state", parent)
    other = write_llama(tmp_path / "other")
    cut_short(api.upcycle(parent, experts=2), tmp_path / "out", after=60, optimizer_state=str(state))
    (partial_path(tmp_path / "out") / "tokenizer.json").touch()
    assert (partial_path(tmp_path / "out") / "optimizer").exists()
    out = api.upcycle(other, experts=2).save(tmp_path / "out", resume=True, **SMALL)
    whole = api.upcycle(other, experts=2).save(tmp_path / "whole", **SMALL)
    assert {path.name for path in out.iterdir()} == {path.name for path in whole.iterdir()}


@pytest.mark.parametrize("text", ["", "{", "[]", '{"plan": 1}', "null", "\0" * 50])
def test_a_torn_journal_starts_afresh(parent, tmp_path, text):
    model = api.upcycle(parent, experts=4)
    cut_short(model, tmp_path / "out")
    (partial_path(tmp_path / "out") / JOURNAL).write_text(text)
    assert hashes(model.save(tmp_path / "out", resume=True, **SMALL)) == hashes(model.save(tmp_path / "2", **SMALL))


def test_a_finished_shard_that_is_gone_or_cut_is_written_again(parent, tmp_path):
    model = api.upcycle(parent, experts=4)
    gone, cut, *_ = cut_short(model, tmp_path / "out")
    (partial_path(tmp_path / "out") / gone).unlink()
    os.truncate(partial_path(tmp_path / "out") / cut, 100)
    assert hashes(model.save(tmp_path / "out", resume=True, **SMALL)) == hashes(model.save(tmp_path / "2", **SMALL))


def test_a_shard_is_flushed_before_it_has_its_name(parent, tmp_path, monkeypatch):
    """What the journal calls finished is on disc, whatever happens to the machine."""
    flushed, replace, fsync = set(), os.replace, os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: flushed.add(os.fstat(fd).st_ino) or fsync(fd))

    def named(source, to):
        assert not str(to).endswith(".safetensors") or os.stat(source).st_ino in flushed
        replace(source, to)

    monkeypatch.setattr(os, "replace", named)
    assert api.upcycle(parent, experts=2).save(tmp_path / "out", **SMALL)


# -- the command line ------------------------------------------------------------------------------------------

SLOWLY = """
import signal, sys, time
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs pytest in the background ignores it
from rekindle.store.files import Files
copy = Files.copy
Files.copy = lambda *a: (time.sleep(0.02), copy(*a))
from rekindle.cli import main
main()
"""


def started(parent: Path, out: Path) -> subprocess.Popen:
    """`rekindle upcycle` with slow copies, when its first shards are finished."""
    flags = ["--experts", "4", "--max-shard-size", "20kB", "--workers", "2"]
    command = [sys.executable, "-c", SLOWLY, "upcycle", str(parent), str(out), *flags]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    for _ in range(3000):
        if (partial_path(out) / JOURNAL).exists():
            return process
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("nothing was written")


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGKILL])
def test_an_interrupted_command_leaves_no_out_and_resumes(parent, tmp_path, number):
    process = started(parent, tmp_path / "out")
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert not (tmp_path / "out").exists()
    if number == signal.SIGINT:
        assert process.returncode == 130
        assert "--resume" in said
        assert "Traceback" not in said
    done = json.loads((partial_path(tmp_path / "out") / JOURNAL).read_text())["done"]
    stamps = {file: stamp(partial_path(tmp_path / "out") / file) for file in done}
    command = [sys.executable, "-m", "rekindle", "upcycle", str(parent), str(tmp_path / "out"), "--experts", "4"]
    subprocess.run([*command, "--max-shard-size", "20kB", "--resume"], check=True, capture_output=True)
    assert {file: stamp(tmp_path / "out" / file) for file in done} == stamps
    assert hashes(tmp_path / "out") == hashes(api.upcycle(parent, experts=4).save(tmp_path / "whole", **SMALL))
