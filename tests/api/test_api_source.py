"""What SRC names: one checkpoint, a range of an archive's steps, what a pattern matches, a folder of numbered ones."""

from __future__ import annotations

import json
import shutil
import subprocess
import tempfile
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from rekindle import api
from rekindle.api.source import Located, local, located, place, typed
from rekindle.cli import main
from rekindle.errors import RekindleError

STEPS = (5, 20, 100, 300)


def checkpoint(folder: Path, value: float = 0.0) -> Path:
    folder.mkdir(parents=True)
    save_file({"w": np.full((8, 8), value, np.float32)}, folder / "model.safetensors")
    return folder


@pytest.fixture
def run(tmp_path, monkeypatch) -> Path:
    """run/checkpoint-5 and so on, as seen from the folder that holds `run`."""
    monkeypatch.chdir(tmp_path)
    for step in STEPS:
        checkpoint(tmp_path / "run" / f"checkpoint-{step}", step)
    return Path("run")


@pytest.fixture(scope="module")
def archive(tmp_path_factory) -> Path:
    folder = tmp_path_factory.mktemp("packed")
    for step in STEPS:
        checkpoint(folder / "run" / f"checkpoint-{step}", step)
    api.pack(folder / "run", folder / "run.rk")
    return folder / "run.rk"


def names(found: list[Located]) -> list[str]:
    return [one.given for one in found]


def numbered(*steps: int) -> list[str]:
    return [f"run/checkpoint-{step}" for step in steps]


def value(one: Located) -> float:
    return float(load_file(one.path / "model.safetensors")["w"][0, 0])


@pytest.mark.parametrize(
    ("asked", "steps"),
    [("20:100", (20, 100)), ("6:299", (20, 100)), ("100:", (100, 300)), (":20", (5, 20)), ("*", STEPS), (":", STEPS),
     ("20", (20,)), ("020", (20,)), ("20:20", (20,))],
)  # fmt: skip
def test_a_range_of_an_archive_s_steps(archive, asked, steps):
    found = located(f"{archive}@{asked}")
    assert [one.step for one in found] == list(steps)
    assert [value(one) for one in found] == list(steps)
    assert [located(one.given)[0].path for one in found] == [one.path for one in found]  # each opens it alone


@settings(deadline=None, max_examples=50)
@given(st.none() | st.integers(0, 400), st.none() | st.integers(0, 400))
def test_any_range_is_what_lies_in_it(archive, first, last):
    inside = [step for step in STEPS if (first or 0) <= step <= (last if last is not None else 10**9)]
    text = f"{archive}@{'' if first is None else first}:{'' if last is None else last}"
    if inside:
        assert [one.step for one in located(text)] == inside
        return
    with pytest.raises(RekindleError, match="it has 4 steps, 5, 20, 100, 300"):
        located(text)


def test_a_step_is_unpacked_when_it_is_asked_for(archive, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    own = shutil.copy(archive, tmp_path / "own.rk")
    first, *_, last = located(f"{own}@*")
    assert list(tmp_path.glob("rekindle-*")) == []
    assert last.path.is_dir()
    assert last.path == last.path
    assert len(list(tmp_path.glob("rekindle-*"))) == 1
    assert first.step == 5


def test_a_pattern_means_the_same_whoever_expands_it(run):
    """In the order of the steps, which is not the order in which a shell gives them."""
    shell = subprocess.run(["sh", "-c", "printf '%s\n' run/checkpoint-*"], capture_output=True, text=True, check=True)
    assert shell.stdout.split() == numbered(100, 20, 300, 5)
    quoted = located("run/checkpoint-*")
    assert names(quoted) == numbered(*STEPS)
    assert [one.step for one in quoted] == list(STEPS)
    assert located(typed(shell.stdout.split())) == quoted
    assert located("run") == located(run) == quoted
    assert located("run/checkpoint-?0") == located(["run/checkpoint-20"])
    assert located(typed(["other", *shell.stdout.split(), "last"]))[1:-1] == quoted


def test_what_was_typed_in_an_order_stays_in_it(run):
    for mine in (numbered(300, 100), numbered(5, 300, 20), [*numbered(20), "org/model", *numbered(5)]):
        assert names(located(typed(mine))) == mine
    checkpoint(Path("models/llama-13b"))
    checkpoint(Path("models/llama-7b"))
    two = ["models/llama-13b", "models/llama-7b"]  # numbers that are no steps
    assert names(located(typed(two))) == names(located("models/*")) == two
    for name, step in (("run-1", 900), ("run-2", 100)):  # whatever their trainers wrote into them
        (checkpoint(Path("others") / name) / "trainer_state.json").write_text(json.dumps({"global_step": step}))
    assert names(located("others/*")) == ["others/run-1", "others/run-2"]


@pytest.mark.parametrize(
    ("pattern", "name"),
    [("run/model*.pt", "run/model{}.pt"), ("run/checkpoint-*/ema.pt", "run/checkpoint-{}/ema.pt"),
     ("run/step-*/unet", "run/step-{}/unet"), ("run/step_*.safetensors", "run/step_{}.safetensors"),
     ("run/*", "run/{}"), ("run/iteration_*", "run/iteration_{}"), ("run/model_*_ema.pt", "run/model_{}_ema.pt"),
     ("run/model_*k.pt", "run/model_{}k.pt"), ("run/*.ckpt", "run/epoch=7-step={}.ckpt")],
)  # fmt: skip
def test_a_series_stands_in_the_order_of_its_numbers_wherever_they_are(tmp_path, monkeypatch, pattern, name):
    monkeypatch.chdir(tmp_path)
    for step in (100, 5, 20, 10):
        path = Path(name.format(step))
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.suffix:
            checkpoint(path)
        elif path.suffix in (".pt", ".ckpt"):
            path.touch()
        else:
            save_file({"w": np.zeros((2, 2), np.float32)}, path)
    own = [name.format(step) for step in (5, 10, 20, 100)]
    found = located(pattern)
    assert names(found) == own
    assert [one.step for one in found] == [5, 10, 20, 100]
    shell = sorted(own)
    assert shell != own
    assert located(typed(shell)) == found
    with pytest.raises(RekindleError, match=r"--weights goes by the order"):
        typed(shell, ["--weights"])
    assert typed(own, ["--weights"]) == own


def test_names_on_the_hub_are_taken_as_they_are(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    given = ["org/model", "org/model@step1000", "hf://org/model", "org/model@v1.0"]
    assert located(given) == [Located(name) for name in given]
    assert place("org/model@step1000") is None


def test_what_is_there_under_its_whole_name_is_that(run, archive):
    for name in ("run/checkpoint-*", f"{archive.name}@5:20"):
        checkpoint(Path(name))
        assert located(name) == [Located(name)]
        assert local(name) == Path(name)


def test_a_checkpoint_that_holds_numbered_ones_is_itself(run):
    """A trainer leaves its last weights around those that it saved."""
    save_file({"w": np.zeros((2, 2), np.float32)}, run / "model.safetensors")
    assert names(located("run")) == ["run"]
    assert local(run) == run
    with pytest.raises(RekindleError, match="a checkpoint of its own, and 4 numbered ones"):
        api.pack(run, "run.rk")


@pytest.mark.parametrize("source", ["run/checkpoint-*", "run", "run.rk@*", "run.rk@5:", "run.rk@:"])
def test_where_one_is_asked_for_a_series_is_refused_with_its_ends(run, archive, source):
    shutil.copy(archive, "run.rk")
    assert place(source) == {"run": run, "run/checkpoint-*": None}.get(source, Path("run.rk"))
    for open_it in (local, api.open):
        with pytest.raises(RekindleError, match="is a series of 4 checkpoints, from step 5 to step 300") as refused:
            open_it(source)
        assert refused.value.hint in ("run/checkpoint-300, the last", "run.rk@300, the last")


def test_a_series_of_one_is_one(run, archive):
    shutil.copy(archive, "run.rk")
    assert local("run/*-100") == place("run/*-100") == Path("run/checkpoint-100")
    assert local("run.rk@101:").name == "step-300"
    shutil.rmtree(run / "checkpoint-5")
    for step in (20, 100):
        shutil.rmtree(run / f"checkpoint-{step}")
    assert local("run") == place("run") == Path("run/checkpoint-300")


def test_what_a_pattern_found_is_not_written_over(tiny, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny("llama"), "run/checkpoint-5")
    with pytest.raises(RekindleError, match="would be replaced|is the source"):
        api.upcycle("run/check*", experts=2).save("run/checkpoint-5", overwrite=True)
    assert api.inspect("run/check*")["parameters"] == api.inspect("run/checkpoint-5")["parameters"]


@pytest.mark.parametrize(
    ("source", "what", "why"),
    [
        ("run/step-*", "Nothing is called run/step-*", "in run there is checkpoint-100, checkpoint-20"),
        ("none/step-*/x", "Nothing is called none/step-*/x", "there is no folder none"),
        ("empty/*", "Nothing is called empty/*", "in empty there is nothing"),
        ("run.rk@400:", "run.rk has no step from 400.", "it has 4 steps, 5, 20, 100, 300"),
        ("run.rk@30:20", "run.rk has no step from 30 to 20.", "it has 4 steps"),
        ("run.rk@x:3", "'x' is no step", None),
        ("run.rk@1:2:3", "'2:3' is no step", None),
        ("run.rk@**", "'**' is no step", None),
        ("run.rk@-1:5", "'-1' is no step", None),
        (f"run.rk@:{'9' * 19}", "is no step: a number of at most 18 digits", None),
        ("run.rk", "is an archive of 4 steps, not a checkpoint", None),
        ("*", "run.rk is an archive of 4 steps", None),
        ("mixed/*", "mixed/notes.txt is no checkpoint, but a file", None),
        (["mixed/checkpoint-1", "mixed/notes.txt"], "mixed/notes.txt is no checkpoint, but a file", None),
        ("logs/*", "logs/events is no checkpoint: in it there is tfevents.", None),
        (["logs/checkpoint-1", "logs/events"], "logs/events is no checkpoint: in it there is tfevents.", None),
    ],
)
def test_what_names_nothing_is_refused_with_what_is_there(run, archive, source, what, why):
    shutil.copy(archive, "run.rk")
    Path("empty").mkdir()
    for folder in ("mixed", "logs"):
        checkpoint(Path(folder) / "checkpoint-1")
    Path("mixed/notes.txt").write_text("x")
    Path("logs/events").mkdir()
    Path("logs/events/tfevents").write_text("x")
    with pytest.raises(RekindleError) as refused:
        located(source)
    assert what in refused.value.what
    assert (why or "") in (refused.value.why or "")


def test_any_file_is_packed(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("state_2.npz", "state_10.npz"):
        Path(name).write_bytes(name.encode() * 100)
    api.pack("state_*.npz", "run.rk")
    assert [x["step"] for x in api.archive_info("run.rk")["steps"]] == [2, 10]
    with pytest.raises(RekindleError, match="state_2.npz is no checkpoint, but a file"):
        located("state_*.npz")


def test_series_are_packed_and_added(run, archive, capsys):
    def steps(path: str) -> list[int]:
        return [x["step"] for x in api.archive_info(path)["steps"]]

    with pytest.raises(SystemExit) as stop:
        main(["pack", "run/checkpoint-?*", "new.rk"])
    assert (stop.value.code, steps("new.rk")) == (0, list(STEPS))
    api.pack(f"{archive}@:20", "half.rk")
    api.archive_add(f"{archive}@100:", "half.rk")
    assert steps("half.rk") == list(STEPS)
    api.unpack("half.rk@100", "out")
    assert (Path("out") / "model.safetensors").read_bytes() == (run / "checkpoint-100/model.safetensors").read_bytes()
    for words in (["unpack", "half.rk@*", "all"], ["archive", "info", "half.rk@5:20"], ["archive", "drop", "half.rk@*"],
                  ["inspect", "half.rk@*"]):  # fmt: skip
        with pytest.raises(SystemExit) as stop:
            main(words)
        assert stop.value.code == 2
        assert "and one is asked for" in capsys.readouterr().err
    assert steps("half.rk") == list(STEPS)
