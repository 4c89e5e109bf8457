"""kill -9 at the worst moments; the resumed run draws the same curve, bit for bit."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from train_helpers import curve, write_corpus

from rekindle.train.state import find_state, work_folder

# Trains in a process of its own, which kills itself at a chosen call of a chosen function.
VICTIM = """
import os, signal, sys
from pathlib import Path
import torch
torch.set_num_threads(1)
from rekindle.train import finish, loop, session, state, step
from rekindle.train.config import TrainConfig
sys.path.insert(0, {tests!r})
from train_helpers import defaults

src, out, corpus, module, name, count = sys.argv[1:]
module = globals()[module]
real, calls = getattr(module, name), 0

def deadly(*args, **kwargs):
    global calls
    calls += 1
    if calls == int(count):
        os.kill(os.getpid(), signal.SIGKILL)
    return real(*args, **kwargs)

setattr(module, name, deadly)
loop.train(Path(src), Path(out), TrainConfig(**defaults(Path(corpus))), command="", options={{}}, resume=True)
"""


def killed(src: Path, out: Path, corpus: Path, *where: str) -> None:
    script = VICTIM.format(tests=str(Path(__file__).parent))
    done = subprocess.run([sys.executable, "-c", script, str(src), str(out), str(corpus), *where], capture_output=True)
    assert done.returncode == -9, done.stderr.decode()
    assert not out.exists()


@pytest.mark.slow
def test_killed_once(small: Callable, run: Callable, corpus: Path, tmp_path: Path):
    reference, _ = run(small(), "reference")
    killed(small(), tmp_path / "out", corpus, "step", "cross_entropy", "7")
    resumed, _ = run(small(), "out", resume=True)
    assert curve(resumed) == curve(reference)
    assert (resumed / "model.safetensors").read_bytes() == (reference / "model.safetensors").read_bytes()


@pytest.mark.slow
def test_killed_again_and_again(small: Callable, run: Callable, corpus: Path, tmp_path: Path):
    src = small("qwen3_moe")
    reference, _ = run(src, "reference")
    out = tmp_path / "out"
    work = work_folder(out)
    killed(src, out, corpus, "step", "cross_entropy", "3")  # before anything is saved
    assert find_state(work) is None
    killed(src, out, corpus, "step", "cross_entropy", "6")  # between two states
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
    from rekindle.errors import RekindleError
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
    from rekindle.train import step

    data = tmp_path / "data.jsonl"
    write_corpus(data)
    real, calls = step.cross_entropy, []

    def stopping(*args):
        calls.append(1)
        if len(calls) == 7:
            raise KeyboardInterrupt
        return real(*args)

    monkeypatch.setattr(step, "cross_entropy", stopping)
    with pytest.raises(KeyboardInterrupt):
        run(small(), "out", data=str(data))
    lines = data.read_text().splitlines(keepends=True)
    data.write_text("".join(lines[::-1]))
    with pytest.raises(RekindleError, match="digest of all text was"):
        run(small(), "out", data=str(data), resume=True)
    data.write_text("".join(lines))
    run(small(), "out", data=str(data), resume=True)
