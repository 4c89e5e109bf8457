"""Steps run once each, in order, whatever fails or is killed."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from rekindle.errors import RekindleError
from rekindle.sweep.engines import Local, engine_named
from rekindle.sweep.steps import Step, perform, same_steps

JOBS = "sweep_jobs:"


@pytest.fixture(scope="module")
def local():
    with Local(2) as engine:
        yield engine


def test_a_step_waits_for_what_it_reads(tmp_path, local):
    steps = [
        Step("b", JOBS + "make", "a", {"text": "b"}),
        Step("a", JOBS + "slow"),
        Step("c", JOBS + "make", "b", {"text": "c"}),
    ]
    said: list[str] = []
    assert perform(steps, tmp_path / "out", local, said.append) == {}
    assert (tmp_path / "out" / "c" / "text").read_text() == "cbslow"
    assert len(said) == 3
    perform(steps, tmp_path / "out", local, said.append)
    assert said[3:] == ["3 of 3 steps are there already"]


def test_a_failing_step_leaves_the_others_alone_and_is_tried_again(tmp_path, local):
    steps = [
        Step("bad", JOBS + "refuse"),
        Step("after", JOBS + "make", "bad"),
        Step("good", JOBS + "make", options={"text": "x"}),
    ]
    failed = perform(steps, tmp_path, local, print, go_on=True)
    assert failed == {"bad": "this cell cannot be"} == json.loads((tmp_path / "failed.json").read_text())
    assert (tmp_path / "good").is_dir()
    assert not (tmp_path / "after").exists()
    with pytest.raises(ValueError, match="cannot be"):
        perform(steps, tmp_path, local, print)


def test_a_step_whose_worker_is_killed_is_run_again(tmp_path):
    steps = [Step("x", JOBS + "die_once"), Step("y", JOBS + "slow"), Step("z", JOBS + "make", "x")]
    said: list[str] = []
    with Local(2) as engine:
        assert perform(steps, tmp_path / "out", engine, said.append, go_on=True) == {}
    assert any("worker died" in line for line in said)
    assert (tmp_path / "out" / "z" / "text").read_text() == "lived"


def test_other_steps_in_the_folder_are_refused(tmp_path, local):
    perform([Step("a", JOBS + "make", options={"text": "1"})], tmp_path, local, print)
    with pytest.raises(RekindleError, match="its step a was made in another way"):
        perform([Step("a", JOBS + "make", options={"text": "2"})], tmp_path, local, print)


def test_what_made_a_step_is_remembered_beside_other_steps(tmp_path, local):
    perform([Step("a", JOBS + "make", options={"text": "1"})], tmp_path, local, print)
    perform([Step("b", JOBS + "make")], tmp_path, local, print)
    with pytest.raises(RekindleError, match="its step a was made in another way"):
        perform([Step("a", JOBS + "make", options={"text": "2"})], tmp_path, local, print)


@pytest.mark.parametrize(
    ("number", "first", "second"),
    [(signal.SIGTERM, "wait", "run"), (signal.SIGTERM, "marked", "run"), (signal.SIGKILL, "wait", "wait")],
)
def test_a_sweep_that_is_ended_leaves_no_worker(tmp_path, number, first, second):
    """A driver of its own, ended by a signal while its steps run; its workers get none but by their parent's end.

    A worker that has done its step, "marked", waits for the next, and holds a lock of the pool's as long: ended so, it
    leaves the other, which outlives two signals, to wait for that lock.
    """
    code = (
        "import sys; sys.path.insert(0, sys.argv[1])\n"
        "from pathlib import Path\n"
        "from rekindle.errors import Ended\n"
        "from rekindle.sweep import engines\n"
        "from rekindle.sweep.engines import Local\n"
        "from rekindle.sweep.steps import Step, perform\n"
        "if __name__ == '__main__':\n"
        f"    steps = [Step('a', 'sweep_jobs:{first}'), Step('b', 'sweep_jobs:{second}')]\n"
        "    engines._GRACE = 3.0\n"
        "    try:\n"
        "        with Local(2) as engine:\n"
        "            perform(steps, Path(sys.argv[2]), engine, lambda text: None)\n"
        "    except Ended as ended:\n"
        "        sys.exit(128 + ended.number)\n"
    )
    driver = tmp_path / "driver.py"
    driver.write_text(code)
    here = str(Path(__file__).parent)
    running = subprocess.Popen(
        [sys.executable, driver, here, tmp_path / "out"],
        stderr=subprocess.DEVNULL,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([here, os.environ.get("PYTHONPATH", "")])},
    )
    marks = [tmp_path / "out" / f"{name}-pid" for name in "ab"]
    deadline = time.monotonic() + 60
    while not all(mark.exists() for mark in marks) and time.monotonic() < deadline:
        time.sleep(0.1)
    workers = [int(mark.read_text()) for mark in marks]
    time.sleep(0.5)
    running.send_signal(number)
    assert running.wait(30) == (-number if number == signal.SIGKILL else 128 + number)
    deadline = time.monotonic() + 15
    while any(psutil.pid_exists(pid) for pid in workers) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert not any(psutil.pid_exists(pid) for pid in workers)


def test_workers_keep_their_progress_to_themselves(tmp_path):
    with Local(1) as engine:
        perform([Step("a", JOBS + "shown")], tmp_path / "out", engine, lambda text: None)
    assert (tmp_path / "out" / "a" / "text").read_text() == "off"


def test_an_engine_that_is_not_there():
    with pytest.raises(RekindleError, match="local or ray"):
        engine_named("slurm")
    with pytest.raises(RekindleError, match="0 workers"):
        engine_named("local", 0)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore::FutureWarning", "ignore::DeprecationWarning", "ignore::ResourceWarning")
def test_ray_runs_the_same_steps_and_survives_a_killed_worker(tmp_path, monkeypatch):
    pytest.importorskip("ray", reason="ray is not installed; the dev group has it")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent))
    steps = [
        *(Step(f"a{i}", JOBS + "slow") for i in range(3)),
        Step("x", JOBS + "die_once", "a0"),
        Step("bad", JOBS + "refuse"),
        Step("z", JOBS + "make", "x", {"text": "z"}),
    ]
    with engine_named("ray", 2) as engine:
        failed = perform(steps, tmp_path / "out", engine, print, go_on=True)
    assert failed == {"bad": "this cell cannot be"}
    assert (tmp_path / "out" / "z" / "text").read_text() == "zlivedslow"


def test_a_kill_while_the_steps_are_noted_is_no_other_work(tmp_path):
    (tmp_path / "steps.part").write_text("{")
    same_steps({}, tmp_path)
    assert [path.name for path in tmp_path.iterdir()] == ["steps.json"]


def test_each_step_that_is_done_is_told_at_once(tmp_path, local):
    steps = [Step("a", JOBS + "make"), Step("b", JOBS + "make", "a"), Step("bad", JOBS + "refuse", "b")]
    heard: list[tuple[str, bool]] = []

    def ended(name: str) -> None:
        heard.append((name, (tmp_path / "b").exists()))

    perform(steps, tmp_path, local, print, go_on=True, ended=ended)
    assert heard == [("a", False), ("b", True)]
