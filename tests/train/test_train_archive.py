"""Saved states in an archive: the checkpoints of the run, whether it was interrupted or not."""

from __future__ import annotations

import errno
import os
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from safetensors.numpy import load_file
from test_train_resume import killed

from rekindle import api
from rekindle.cli.verbs import rekindle
from rekindle.codec.container import create
from rekindle.codec.pack import add_step
from rekindle.errors import RekindleError
from rekindle.store.lock import alone
from rekindle.store.system import explained
from rekindle.train import session

SIZE = {"save_every": 512}  # two of the twelve steps


@pytest.mark.parametrize("family", ["llama", "mixtral"])
def test_every_saved_state_is_a_checkpoint_in_the_archive(
    small: Callable, run: Callable, corpus: Path, tmp_path: Path, family: str
):
    out, _ = run(small(family), "out", archive=str(tmp_path / "run.rk"), **SIZE)
    steps = [x["step"] for x in api.archive_info(tmp_path / "run.rk")["steps"]]
    assert steps == [2, 4, 6, 8, 10, 12]
    assert api.archive_verify(tmp_path / "run.rk") == []
    last = tmp_path / "last"
    api.unpack(tmp_path / "run.rk", last)
    for name in ("model.safetensors", "optimizer/optimizer.safetensors"):
        ours, theirs = load_file(last / name), load_file(out / name)
        assert ours.keys() == theirs.keys()
        assert all(np.array_equal(ours[key], theirs[key]) for key in ours)
    assert (last / "optimizer" / "optimizer.json").read_bytes() == (out / "optimizer" / "optimizer.json").read_bytes()
    assert (last / "tokenizer.json").read_bytes() == (out / "tokenizer.json").read_bytes()
    middle = api.evaluate(f"{tmp_path / 'run.rk'}@6", data=str(corpus), tokens=2048)["loss"]
    end = api.evaluate(f"{tmp_path / 'run.rk'}@12", data=str(corpus), tokens=2048)["loss"]
    assert end < middle


def test_an_interrupted_run_goes_on_in_its_archive(small: Callable, run: Callable, tmp_path: Path, monkeypatch):
    run(small(), "whole", archive=str(tmp_path / "whole.rk"), **SIZE)
    real = session.Session._step

    def interrupted(self, step, boundary, wanted):
        real(self, step, boundary, wanted)
        return step == 6

    monkeypatch.setattr(session.Session, "_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        run(small(), "cut", archive=str(tmp_path / "cut.rk"), **SIZE)
    monkeypatch.undo()
    assert [x["step"] for x in api.archive_info(tmp_path / "cut.rk")["steps"]] == [2, 4, 6, 7]
    run(small(), "cut", archive=str(tmp_path / "cut.rk"), resume=True, **SIZE)
    whole, cut = (api.archive_info(tmp_path / f"{name}.rk")["steps"] for name in ("whole", "cut"))
    assert {x["step"] for x in cut} == {x["step"] for x in whole} | {7}
    assert {x["digest"] for x in whole} <= {x["digest"] for x in cut}


def test_an_archive_that_is_there_is_not_written_over_unasked(small: Callable, run: Callable, tmp_path: Path):
    run(small(), "out", archive=str(tmp_path / "run.rk"), **SIZE)
    with pytest.raises(RekindleError, match=r"run\.rk exists"):
        run(small(), "again", archive=str(tmp_path / "run.rk"), **SIZE)
    (tmp_path / "letter").write_text("dear ")
    with pytest.raises(RekindleError, match="no archive"):
        run(small(), "again", archive=str(tmp_path / "letter"), overwrite=True, **SIZE)
    assert (tmp_path / "letter").read_text() == "dear "


def test_what_goes_wrong_behind_the_run_s_back_is_told(small: Callable, run: Callable, tmp_path: Path, monkeypatch):
    def full(*args, **options):
        raise RekindleError("The disc is full.")

    monkeypatch.setattr("rekindle.train.archive.add_step", full)
    with pytest.raises(RekindleError, match="disc is full"):
        run(small(), "out", archive=str(tmp_path / "run.rk"), **SIZE)
    run(small(), "out", resume=True, **SIZE)  # the run itself is not lost


def test_a_full_disc_of_the_archive_says_how_to_go_on(
    small: Callable, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    archive, calls = tmp_path / "run.rk", 0
    real = add_step

    def full(*args, **options):
        nonlocal calls
        calls += 1
        with explained(archive):
            if calls == 2:
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr("rekindle.train.archive.add_step", full)
        with pytest.raises(RekindleError, match=r"The disc is full: .*run\.rk could not") as caught:
            run(small(), "out", archive=str(archive), **SIZE)
    assert re.fullmatch(r"free some space, then --resume \(from step \d+\)", caught.value.hint)
    run(small(), "out", resume=True, archive=str(archive), **SIZE)
    assert list(steps_of(archive)) == [2, 4, 6, 8, 10, 12]


def steps_of(archive: Path) -> dict[int, str]:
    return {x["step"]: x["digest"] for x in api.archive_info(archive)["steps"]}


def cut_after(step: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Have the next run stop after that many steps."""
    real = session.Session._step

    def interrupted(self, number, boundary, wanted):
        real(self, number, boundary, wanted)
        return number == step - 1

    monkeypatch.setattr(session.Session, "_step", interrupted)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("module", "name", "count"),
    [
        ("labelled", "cross_entropy", "2"),  # before the first state
        ("archive", "add_step", "1"),  # the first state is there, its step is not
        ("archive", "add_step", "3"),
        ("state", "save_file", "5"),  # in the middle of the third state
        ("finish", "save_model", "1"),
    ],
)
def test_a_killed_run_goes_on_in_its_archive_as_if_nothing_had_been(
    small: Callable, run: Callable, corpus: Path, tmp_path: Path, module: str, name: str, count: str
):
    run(small(), "whole", archive=str(tmp_path / "whole.rk"), **SIZE)
    options = {"archive": str(tmp_path / "cut.rk"), **SIZE}
    killed(small(), tmp_path / "cut", corpus, module, name, count, **options)
    run(small(), "cut", resume=True, **options)
    assert steps_of(tmp_path / "cut.rk") == steps_of(tmp_path / "whole.rk")
    assert not list(tmp_path.glob(".*"))


def test_an_archive_begun_by_a_run_that_came_to_nothing_is_no_obstacle(small: Callable, run: Callable, tmp_path: Path):
    create(tmp_path / "run.rk")
    run(small(), "out", archive=str(tmp_path / "run.rk"), tokens=512, **SIZE)
    assert list(steps_of(tmp_path / "run.rk")) == [2]


@pytest.mark.parametrize("at", [2, 4, 5])
def test_another_run_s_archive_is_refused(
    small: Callable, run: Callable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
):
    ours, other = str(tmp_path / "ours.rk"), str(tmp_path / "other.rk")
    run(small(), "other", archive=other, seed=1, tokens=1024, **SIZE)
    before = steps_of(tmp_path / "other.rk")
    cut_after(at, monkeypatch)
    with pytest.raises(KeyboardInterrupt):
        run(small(), "out", archive=ours, **SIZE)
    monkeypatch.undo()
    with pytest.raises(RekindleError, match=r"other\.rk holds a step . that is not of this run"):
        run(small(), "out", archive=other, resume=True, **SIZE)
    assert steps_of(tmp_path / "other.rk") == before
    run(small(), "out", archive=ours, resume=True, **SIZE)


def test_two_runs_do_not_write_into_one_archive(small: Callable, run: Callable, tmp_path: Path):
    with alone(tmp_path / ".run.rk.training.lock", "training"), pytest.raises(RekindleError, match="Another process"):
        run(small(), "out", archive=str(tmp_path / "run.rk"), **SIZE)
    assert not list(tmp_path.iterdir())


def test_an_archive_is_the_run_s_alone_while_it_trains(small: Callable, run: Callable, tmp_path: Path, monkeypatch):
    real, tried = session.Session._step, []

    def meddled(self, *args):
        for change in (api.archive_add, lambda *words: api.pack(*words, overwrite=True)):
            with pytest.raises(RekindleError, match="Another process is writing run.rk"):
                change(small(), tmp_path / "run.rk")
            tried.append(change)
        return real(self, *args)

    (tmp_path / "link.rk").symlink_to(tmp_path / "run.rk")
    monkeypatch.setattr(session.Session, "_step", meddled)
    run(small(), "out", archive=str(tmp_path / "link.rk"), tokens=512, **SIZE)
    assert tried
    assert list(steps_of(tmp_path / "run.rk")) == [2]
    assert (tmp_path / "link.rk").is_symlink()


def test_a_name_that_no_archive_keeps_is_refused_before_the_first_step(small: Callable, run: Callable, tmp_path: Path):
    source = tmp_path / "source"
    shutil.copytree(small(), source)
    (source / "a\\b.txt").write_text("travels")
    with pytest.raises(RekindleError, match="it has a backslash in its name"):
        run(source, archive=str(tmp_path / "run.rk"))
    assert {path.name for path in tmp_path.iterdir()} == {"source"}
    run(source)


def test_what_is_read_is_not_written_over_by_the_archive(
    small: Callable, corpus: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    api.pack(small(), tmp_path / "run.rk")
    (tmp_path / "link.rk").symlink_to("run.rk")
    monkeypatch.setenv("HOME", str(tmp_path))
    before, text = (tmp_path / "run.rk").read_bytes(), corpus.read_bytes()
    options = {"data": str(corpus), "overwrite": True, "lr": 1e-3}
    for source, archive in (("link.rk@0", "~/run.rk"), ("run.rk@0", str(tmp_path / "link.rk"))):
        with pytest.raises(RekindleError, match="would be written over .*which is read"):
            api.train(tmp_path / source, tmp_path / "out", archive=archive, **options)
    with pytest.raises(RekindleError, match="would be written over .*stories"):
        api.train(small(), tmp_path / "out", archive=str(corpus), **options)
    words = ["train", str(tmp_path / "run.rk@0"), str(tmp_path / "out"), "--archive", str(tmp_path / "run.rk")]
    dry = CliRunner().invoke(rekindle, [*words, "--data", str(corpus), "--overwrite", "--dry-run"])
    assert "would be written over" in str(dry.exception)
    assert (tmp_path / "run.rk").read_bytes() == before
    assert corpus.read_bytes() == text
