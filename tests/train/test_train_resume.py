"""kill -9 at the worst moments; the resumed run draws the same curve, bit for bit."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from train_helpers import curve, defaults, rows, write_corpus

from rekindle import api
from rekindle.cli.verbs import rekindle
from rekindle.errors import RekindleError
from rekindle.store.lock import alone, lock_of
from rekindle.store.manifest import read_manifest
from rekindle.train import session
from rekindle.train.objectives import labelled
from rekindle.train.state import find_state, work_folder

# Trains in a process of its own, which kills itself at a chosen call of a chosen function.
VICTIM = """
import json, os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from rekindle.train import archive, finish, loop, session, state
from rekindle.train.objectives import labelled
from rekindle.train.config import TrainConfig
sys.path.insert(0, {tests!r})
from train_helpers import defaults

src, out, corpus, changes, module, name, count = sys.argv[1:]
module = globals()[module]
real, calls = getattr(module, name), 0

def deadly(*args, **kwargs):
    global calls
    calls += 1
    if calls == int(count):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)

setattr(module, name, deadly)
options = defaults(Path(corpus)) | json.loads(changes)
loop.train(Path(src), Path(out), TrainConfig(**options), command="", options={{}}, resume=True)
"""


def killed(src: Path, out: Path, corpus: Path, *where: str, **changes: Any) -> None:
    script = VICTIM.format(tests=str(Path(__file__).parent))
    words = [sys.executable, "-c", script, str(src), str(out), str(corpus), json.dumps(changes), *where]
    done = subprocess.run(words, capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    assert not out.exists()


@pytest.mark.slow
def test_killed_once(small: Callable, run: Callable, corpus: Path, tmp_path: Path):
    reference, _ = run(small(), "reference")
    killed(small(), tmp_path / "out", corpus, "labelled", "cross_entropy", "7")
    resumed, _ = run(small(), "out", resume=True)
    assert curve(resumed) == curve(reference)
    assert (resumed / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_killed_again_and_again(small: Callable, run: Callable, corpus: Path, tmp_path: Path):
    src = small("qwen3_moe")
    reference, _ = run(src, "reference")
    out = tmp_path / "out"
    work = work_folder(out)
    killed(src, out, corpus, "labelled", "cross_entropy", "3")  # before anything is saved
    assert find_state(work) is None
    killed(src, out, corpus, "labelled", "cross_entropy", "6")  # between two states
    saved = find_state(work)
    assert saved is not None
    assert saved.step == 4
    killed(src, out, corpus, "state", "save_file", "2")  # in the middle of writing the second state
    assert find_state(work) == saved
    killed(src, out, corpus, "finish", "save_model", "1")  # in the middle of writing OUT
    resumed, _ = run(src, "out", resume=True)
    assert curve(resumed) == curve(reference)
    for name in ("model.safetensors", "optimizer/optimizer.safetensors", "optimizer/optimizer.json"):
        assert (resumed / name).read_bytes() == (reference / name).read_bytes()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "reference"}


def test_a_state_whose_deletion_was_interrupted_is_not_one(small: Callable, tmp_path: Path):
    work = tmp_path / "work"
    for step in (4, 8):
        (work / f"state-{step}").mkdir(parents=True)
    (work / "state-4" / "state.json").write_text('{"step": 4, "position": 10, "run": {}}')
    (work / "state-8" / "weights.safetensors").write_bytes(b"")
    saved = find_state(work)
    assert saved is not None
    assert (saved.step, saved.position) == (4, 10)


def test_a_damaged_state_is_refused(small: Callable, run: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    from rekindle.train import session

    def stop(*_: object) -> None:
        raise OSError(5, "the disc is gone")

    monkeypatch.setattr(session, "summarise", stop, raising=False)
    monkeypatch.setattr("rekindle.train.loop.summarise", stop)
    with pytest.raises(OSError, match="disc is gone"):
        run(small())
    saved = find_state(work_folder(tmp_path / "out"))
    assert saved is not None
    (saved.path / "moments.safetensors").write_bytes(b"torn")
    with pytest.raises(RekindleError, match="saved state cannot be read"):
        run(small(), resume=True)


def test_other_text_of_the_same_length_is_refused(
    small: Callable, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    from rekindle.errors import RekindleError

    data = tmp_path / "data.jsonl"
    write_corpus(data)
    real, calls = labelled.cross_entropy, []

    def stopping(*args):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(labelled, "cross_entropy", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(small(), "out", data=str(data))
    lines = data.read_text().splitlines(keepends=True)
    data.write_text("".join(lines[::-1]))
    with pytest.raises(RekindleError, match="digest of all text was"):
        run(small(), "out", data=str(data), resume=True)
    data.write_text("".join(lines))
    run(small(), "out", data=str(data), resume=True)


def stopped(run: Callable, src: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
    """A run that saved its last state and could not write OUT."""

    def stop(*_: object) -> None:
        raise OSError(5, "the disc is gone")

    with monkeypatch.context() as patch:
        patch.setattr("rekindle.train.loop.summarise", stop)
        with pytest.raises(OSError, match="disc is gone"):
            run(src, **changes)


@pytest.mark.parametrize(
    "name", ["weights.safetensors", "moments.safetensors", "state.json", "checksums.json", "metrics"]
)
def test_a_bit_that_flipped_in_a_saved_state_is_seen(
    small: Callable, run: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, name: str
):
    stopped(run, small(), monkeypatch)
    saved = find_state(work_folder(tmp_path / "out"))
    assert saved is not None
    path = saved.path.parent / "metrics.jsonl" if name == "metrics" else saved.path / name
    whole = path.read_bytes()
    for at in (3 * len(whole) // 4, len(whole) // 2, 3):
        path.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(RekindleError, match="saved state cannot be read|interrupted run is another one"):
            run(small(), resume=True)
    path.write_bytes(whole)
    run(small(), resume=True)


def test_an_earlier_state_that_is_whole_is_named(
    small: Callable, run: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
):
    from rekindle.train import state

    with monkeypatch.context() as patch:
        patch.setattr(state, "_states", lambda work: [])  # no earlier state is dropped
        stopped(run, small(), patch)
    reference, _ = run(small(), "reference")
    last = work_folder(tmp_path / "out") / "state-12"
    (last / "weights.safetensors").write_bytes((last / "weights.safetensors").read_bytes()[:-1] + b"!")
    with pytest.raises(RekindleError, match="delete that folder, and --resume goes on from step 8"):
        run(small(), resume=True)
    for path in last.iterdir():
        path.unlink()
    last.rmdir()
    resumed, _ = run(small(), resume=True)
    assert curve(resumed) == curve(reference)


def test_what_resuming_goes_on_from_and_with_is_said_and_recorded(
    small: Callable, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
):
    how = {"save_every": 512}
    killed_at(run, small(), monkeypatch, 7, **how)
    caplog.clear()
    killed_at(run, small(), monkeypatch, 3, resume=True, **how)
    assert caplog.messages == ["out: goes on from step 6 of 12"]
    caplog.clear()
    out, _ = run(small(), resume=True, lr=5e-3, clip=0.5, **how)
    assert caplog.messages == ["out: goes on from step 8 of 12; lr was 0.01, is 0.005; clip was 1.0, is 0.5"]
    manifest = read_manifest(out)
    assert manifest is not None
    assert manifest.lineage[-1].summary.endswith("; from step 8 on lr was 0.01, is 0.005, clip was 1.0, is 0.5")
    assert [row["lr"] for row in rows(out, "step")][5] == pytest.approx(1e-2)
    assert [row["lr"] for row in rows(out, "step")][8] == pytest.approx(5e-3)
    caplog.clear()
    run(small(), "another", resume=True)
    assert not caplog.messages


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"tokens": 24 * 256}, "tokens was 3072, is 6144"),
        ({"seed": 1, "batch_tokens": 512}, "batch_tokens was 256, is 512; seed was 0, is 1"),
        ({"eval_tokens": 512}, "eval_tokens was 256, is 512"),  # another set of windows under the same name
    ],
)
def test_what_would_be_another_run_is_refused(
    small: Callable, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict, said: str
):
    killed_at(run, small(), monkeypatch, 7)
    with pytest.raises(RekindleError, match=f"interrupted run is another one: {said}"):
        run(small(), resume=True, **changes)


def test_only_what_makes_it_another_run_is_named(small: Callable, run: Callable, monkeypatch: pytest.MonkeyPatch):
    killed_at(run, small(), monkeypatch, 7)
    with pytest.raises(RekindleError) as caught:
        run(small(), resume=True, seed=1, save_every=256, lr=1e-3)
    assert caught.value.what == "The interrupted run is another one: seed was 0, is 1."


@pytest.mark.parametrize("call", [5, 7])
def test_a_dry_run_says_where_a_run_goes_on_and_what_is_left(
    small: Callable, run: Callable, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: int
):
    killed_at(run, small(), monkeypatch, call, save_every=512)
    state = find_state(work_folder(tmp_path / "out"))
    assert state is not None
    text = lambda: {p: p.read_bytes() for p in tmp_path.rglob("*") if p.is_file()}  # noqa: E731
    before, how = text(), {"out": tmp_path / "out"}
    for refused, said in (
        ({}, f"unfinished run of .* stopped after step {state.step}"),
        ({"resume": True, "seed": 1, "save_every": 256}, "another one: seed was 0, is 1[.]"),
        ({"resume": True, "tokens": 24 * 256}, "another one: tokens was 3072, is 6144"),
    ):
        with pytest.raises(RekindleError, match=said):
            api.train_cost(small(), **(defaults(corpus) | {"save_every": 512} | refused), **how)
    options = defaults(corpus) | {"save_every": 512, "lr": 5e-3}
    cost = api.train_cost(small(), **options, **how, resume=True)
    assert (cost["steps"], cost["from_step"], cost["changes"]) == (12, state.step, ["lr was 0.01, is 0.005"])
    assert api.train_cost(small(), **options, **how, overwrite=True)["from_step"] == 0
    words = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    typed = ["train", str(small()), str(tmp_path / "out"), "--resume", "--dry-run", *words]
    assert f"from step {state.step}: what follows is of the rest; lr was" in CliRunner().invoke(rekindle, typed).stdout
    assert text() == before
    saves: list[int] = []
    real = session.save_state
    monkeypatch.setattr(session, "save_state", lambda *a, **k: (saves.append(1), real(*a, **k)))
    out, summary = run(small(), resume=True, save_every=512, lr=5e-3)
    assert cost["saves"] == len(saves)
    assert cost["evaluations"] == len([row for row in rows(out, "eval") if row["step"] >= state.step])
    assert cost["flops"] == pytest.approx(summary["flops"] * (12 - state.step) / 12)
    with pytest.raises(RekindleError, match="has ended, at step 12"):
        api.train_cost(small(), **options, **how, resume=True)


def test_a_run_that_has_ended_is_not_resumed(small: Callable, run: Callable, monkeypatch: pytest.MonkeyPatch):
    out, _ = run(small())
    with pytest.raises(RekindleError, match="has ended, at step 12: there is nothing to resume") as caught:
        run(small(), resume=True)
    assert f"rekindle train {out} OUT" in str(caught.value)
    stopped(run, small(), monkeypatch, overwrite=True)
    with pytest.raises(RekindleError, match="an unfinished run that is to replace it stopped after step 12"):
        run(small(), resume=True)
    run(small(), resume=True, overwrite=True)


def killed_at(run: Callable, src: Path, monkeypatch: pytest.MonkeyPatch, call: int, **changes: Any) -> None:
    """A run that is interrupted in its `call`-th step, after which its state is saved."""
    real, calls = labelled.cross_entropy, []

    def stopping(*args: Any) -> Any:
        calls.append(1)
        if len(calls) == call:
            raise KeyboardInterrupt
        return real(*args)

    with monkeypatch.context() as patch:
        patch.setattr(labelled, "cross_entropy", stopping)
        with pytest.raises(KeyboardInterrupt):
            run(src, **changes)


def test_two_runs_do_not_write_to_one_out(small: Callable, run: Callable, tmp_path: Path):
    lock = tmp_path / ".out.training.lock"
    with alone(lock, "training"), pytest.raises(RekindleError, match="Another process is training into out"):
        run(small())
    assert not list(tmp_path.iterdir())
    run(small())
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_what_is_trained_into_is_written_by_nothing_else(
    small: Callable, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    out, real = tmp_path / "out", session.Session._step
    model = api.upcycle(small(), experts=2)
    api.pack(small(), tmp_path / "run.rk")
    ways = [
        lambda: model.save(out, overwrite=True),
        lambda: model.save(out, part="1/2"),
        lambda: api.unpack(tmp_path / "run.rk", out, overwrite=True),
    ]

    def meddled(self, number, *rest):
        for way in ways if number == 0 else ():
            with pytest.raises(RekindleError, match="Another process is training into out"):
                way()
        return real(self, number, *rest)

    monkeypatch.setattr(session.Session, "_step", meddled)
    run(small())
    assert (out / "metrics.jsonl").exists()
    assert {path.name for path in tmp_path.iterdir()} == {"out", "run.rk"}
    monkeypatch.undo()
    ways[0]()
    assert not (out / "metrics.jsonl").exists()


@pytest.mark.parametrize("shared", [False, True])  # as a part of OUT does
def test_what_is_being_written_is_not_trained_into(
    small: Callable, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shared: bool
):
    steps: list[int] = []
    monkeypatch.setattr(session.Session, "_step", lambda self, number, *rest: steps.append(number))
    writing = alone(lock_of(tmp_path / "out"), "writing", shared=shared)
    with writing, pytest.raises(RekindleError, match="Another process is writing .*out"):
        run(small())
    assert not steps
    assert not list(tmp_path.iterdir())


@pytest.mark.slow
def test_of_two_runs_at_once_one_is_refused(small: Callable, run: Callable, corpus: Path, tmp_path: Path):
    reference, _ = run(small(), "reference")
    script = VICTIM.format(tests=str(Path(__file__).parent))
    words = [sys.executable, "-c", script, str(small()), str(tmp_path / "out"), str(corpus), "{}", "state", "sync", "0"]
    running = [subprocess.Popen(words, stderr=subprocess.PIPE) for _ in range(2)]
    said = [process.communicate()[1].decode() for process in running]
    assert sorted(process.returncode for process in running) == [0, 1]
    late = "has ended, at step 12"  # where it began when the other was done
    assert any("Another process is training into out" in text or late in text for text in said), said
    assert curve(tmp_path / "out") == curve(reference)
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()
