"""A signal ends a verb as Ctrl-C does: nothing temporary is left, and what was finished is kept for --resume."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from store.folders import hashes, llama_tensors, write_llama

from rekindle import api
from rekindle.apply.crew import JOURNAL
from rekindle.cli import main
from rekindle.cli.verbs import Verbs
from rekindle.errors import Ended
from rekindle.store.publish import partial_path

SLOWLY = """
import signal, sys, time
for number in (signal.SIGTERM, signal.SIGHUP):
    signal.signal(number, getattr(signal, sys.argv.pop(1)))
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs pytest in the background ignores it
from rekindle.codec import unpack
from rekindle.store.files import Files
copy, write_all = Files.copy, unpack.write_all
Files.copy = lambda *a: (time.sleep(0.02), copy(*a))
unpack.write_all = lambda *a: (time.sleep(0.02), write_all(*a))
from rekindle.cli import main
main()
"""
FLAGS = ["--experts", "4", "--max-shard-size", "20kB", "--workers", "2"]


@pytest.fixture
def place(tmp_path):
    """A source in an archive, and a folder for temporary files."""
    parent = write_llama(tmp_path / "parent", shards=2)
    api.pack(parent, tmp_path / "run.rk", step=5)
    (tmp_path / "temporary").mkdir()
    return tmp_path


def start(place: Path, *command: str, ignoring: bool = False) -> subprocess.Popen:
    program = [sys.executable, "-c", SLOWLY, *["SIG_IGN" if ignoring else "SIG_DFL"] * 2]
    environment = {**os.environ, "TMPDIR": str(place / "temporary")}
    return subprocess.Popen(
        [*program, *command], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )


def until(there, process: subprocess.Popen) -> None:
    for _ in range(3000):
        if there():
            return
        assert process.poll() is None, process.communicate()
        time.sleep(0.01)
    raise AssertionError("it never came so far")


CODES = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}


@pytest.mark.slow
@pytest.mark.parametrize("number", CODES)
def test_a_write_from_an_archive(place, number):
    out, step = place / "out", f"{place / 'run.rk'}@5"
    process = start(place, "upcycle", step, str(out), *FLAGS)
    until((partial_path(out) / JOURNAL).exists, process)
    process.send_signal(number)
    _, said = process.communicate(timeout=60)
    assert process.returncode == CODES[number], said
    assert "--resume goes on where it stopped" in said
    assert "Traceback" not in said
    assert not list((place / "temporary").iterdir())
    assert not out.exists()
    assert not (place / ".out.lock").exists()
    done = json.loads((partial_path(out) / JOURNAL).read_text())["done"]
    stamps = {file: (partial_path(out) / file).stat().st_ino for file in done}
    process = start(place, "upcycle", step, str(out), *FLAGS, "--resume")
    assert process.communicate(timeout=60)
    assert process.returncode == 0
    assert {file: (out / file).stat().st_ino for file in done} == stamps, "what was finished is kept"
    assert hashes(out) == hashes(api.upcycle(place / "parent", experts=4).save(place / "whole", max_shard_size="20kB"))
    assert not list((place / "temporary").iterdir())


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGHUP])
def test_an_unpacking(place, number):
    process = start(place, "unpack", str(place / "run.rk"), str(place / "out"))
    until(lambda: any(place.glob(".out.partial/*.safetensors")), process)
    process.send_signal(number)
    process.send_signal(signal.SIGTERM)  # a second one does not cut short what the first began
    _, said = process.communicate(timeout=60)
    assert process.returncode in (CODES[number], 143), said
    assert not [path for path in place.iterdir() if "out" in path.name]


def test_a_signal_while_a_step_is_unpacked_to_be_read(place):
    process = start(place, "upcycle", f"{place / 'run.rk'}@5", str(place / "out"), *FLAGS)
    until(lambda: any((place / "temporary").rglob("*.safetensors")), process)
    process.send_signal(signal.SIGTERM)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 143, said
    assert not list((place / "temporary").iterdir())


def test_nohup_is_obeyed(place):
    process = start(place, "upcycle", f"{place / 'run.rk'}@5", str(place / "out"), *FLAGS, ignoring=True)
    until((partial_path(place / "out") / JOURNAL).exists, process)
    process.send_signal(signal.SIGHUP)
    assert process.communicate(timeout=60)
    assert process.returncode == 0
    assert (place / "out" / "config.json").exists()


def test_another_step_of_an_archive_does_not_finish_what_one_began(place):
    """An archive that was written anew has other bytes under the same name and number."""
    other = write_llama(
        place / "other", shards=2, tensors={n: (d, s, bytes(len(b))) for n, (d, s, b) in llama_tensors().items()}
    )
    out, calls = place / "out", []

    def stop(done):
        calls.append(done)
        if len(calls) > 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        api.upcycle(f"{place / 'run.rk'}@5", experts=4).save(out, progress=stop, workers=1, max_shard_size="20kB")
    api.pack(other, place / "run.rk", step=5, overwrite=True)
    api.upcycle(f"{place / 'run.rk'}@5", experts=4).save(out, resume=True, max_shard_size="20kB")
    assert hashes(out) == hashes(api.upcycle(other, experts=4).save(place / "whole", max_shard_size="20kB"))


def test_a_signal_in_the_middle_of_an_import(monkeypatch, capsys):
    """numpy cannot be imported again then, not even to look up which verbs resume."""
    calls = []

    def loaded(self, context, name):
        calls.append(name)
        raise Ended(signal.SIGTERM) if len(calls) == 1 else ImportError("cannot load module more than once per process")

    monkeypatch.setattr(Verbs, "get_command", loaded)
    with pytest.raises(SystemExit) as ended:
        main(["upcycle", "a", "b"])
    assert ended.value.code == 143
    assert "Interrupted." in capsys.readouterr().err
    assert len(calls) == 2


@pytest.mark.parametrize(("interrupt", "code"), [(Ended(signal.SIGTERM), 143), (KeyboardInterrupt(), 130)])
def test_a_signal_while_a_class_is_made(monkeypatch, capsys, interrupt, code):
    """Python makes a RuntimeError of what is raised in __set_name__, to which a dataclass' import leads."""

    calls = []

    class Named:
        def __set_name__(self, owner, name):
            calls.append(name)
            if len(calls) == 1:
                raise interrupt

    def loaded(self, context, name):
        type("Options", (), {"known": Named()})

    monkeypatch.setattr(Verbs, "get_command", loaded)
    with pytest.raises(SystemExit) as ended:
        main(["upcycle", "a", "b"])
    assert ended.value.code == code
    assert "bug" not in capsys.readouterr().err


# -- streams that are closed -----------------------------------------------------------------------------------


@pytest.mark.parametrize("closed", ["2>&-", ">&-", ">&- 2>&-", "<&- >&- 2>&-"])
def test_verbs_that_write_work_without_their_streams(place, closed):
    for i, verb in enumerate((f"upcycle {place / 'parent'} OUT --experts 2", f"unpack {place / 'run.rk'} OUT")):
        out = place / f"out-{i}"
        command = f"{sys.executable} -m rekindle {verb.replace('OUT', str(out))} {closed}"
        assert subprocess.run(command, shell=True, check=False).returncode == 0
        whole = api.upcycle(place / "parent", experts=2).save(place / "whole", overwrite=True)
        assert hashes(out) == hashes(place / "parent" if i else whole)
    refused = f"{sys.executable} -m rekindle upcycle {place / 'parent'} {place / 'out-0'} --experts 2 {closed}"
    assert subprocess.run(refused, shell=True, check=False).returncode == 2


def test_a_verb_of_a_group_says_how_to_go_on():
    from rekindle.cli import _way_on

    assert "--resume" in _way_on(["music", "train", "OUT"])
    assert [_way_on(words) for words in (["music", "data", "OUT"], ["music"], ["archive", "ls"])] == ["", "", ""]
