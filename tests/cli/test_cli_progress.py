"""Long work speaks: a bar on a terminal, lines elsewhere, nothing where that is asked for."""

from __future__ import annotations

import fcntl
import os
import pty
import re
import shlex
import struct
import subprocess
import sys
import termios
from pathlib import Path

import pytest
from click.testing import CliRunner

from rekindle import api, progress
from rekindle.cli.out import echo, note_default_data
from rekindle.cli.verbs import rekindle
from rekindle.config import resolve
from rekindle.train.config import TrainConfig

SHORT = ["--tokens", "2048", "--batch-tokens", "256", "--seq-len", "32", "--eval-tokens", "256"]


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a corpus and an untrained model."""
    desk = tmp_path_factory.mktemp("desk")
    (desk / "corpus").mkdir()
    for i in range(40):
        (desk / "corpus" / f"{i}.txt").write_text("".join(f"{n} times {i} is {n * i}.\n" for n in range(80)))
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("REKINDLE_CACHE", str(desk / "cache"))
        api.init(desk / "start", hidden=16, layers=1, heads=2, tokenizer="bpe:300", data=str(desk / "corpus"))
        yield desk


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress, "FIRST", 0.0)
    monkeypatch.setattr(progress, "EVERY", 0.0)


def train(desk: Path, out: Path, *flags: str):
    words = ["train", desk / "start", out, "--data", desk / "corpus", *SHORT, *flags]
    ran = CliRunner().invoke(rekindle, list(map(str, words)))
    assert ran.exit_code == 0, ran.exception
    return ran


def test_training_says_where_it_is_without_a_terminal(desk: Path, tmp_path: Path, at_once: None):
    said = train(desk, tmp_path / "out").stderr.splitlines()
    lines = [line for line in said if line.startswith("train: ")]
    assert len(lines) == 8
    numbers = r"loss \d\.\d+, validation \d\.\d+, \S+ tokens/s, 00:\d\d left"
    assert re.fullmatch(r"train: 1.54k of 2.05k tokens \(75 %\), step 6 of 8, " + numbers, lines[5])
    assert "\ntrain: " not in train(desk, tmp_path / "again", "--progress", "off").stderr


def test_the_validation_loss_shown_is_the_last_one(desk: Path, tmp_path: Path, at_once: None):
    said = train(desk, tmp_path / "out", "--eval-every", "1024").stderr
    shown = re.findall(r"validation (\S+),", said)
    assert len(shown) == 8
    assert len(set(shown[:4])) == len(set(shown[4:])) == 1
    assert shown[3] != shown[4]


def test_lines_come_a_while_apart(desk: Path, tmp_path: Path):
    assert "\ntrain: " not in train(desk, tmp_path / "out").stderr  # it was over before the first was due


def test_quiet_says_results_notes_and_errors(
    desk: Path, tmp_path: Path, at_once: None, monkeypatch: pytest.MonkeyPatch
):
    loud = train(desk, tmp_path / "out")
    quiet = train(desk, tmp_path / "quiet", "-q")
    assert quiet.stderr == ""
    assert [line.split()[0] for line in quiet.stdout.splitlines()] == [x.split()[0] for x in loud.stdout.splitlines()]
    assert "next:" in train(desk, tmp_path / "loud").stderr  # the next verb is not quiet for that
    ran = CliRunner().invoke(
        rekindle, ["init", str(tmp_path / "init"), "-q", "--hidden", "16", "--layers", "1", "--heads", "2"]
    )
    assert ran.stderr == "note: no --data: the tokenizer is trained on the standard library of this Python\n"


def test_python_hears_nothing_unasked(desk: Path, tmp_path: Path, at_once: None, capsys: pytest.CaptureFixture):
    how = {"tokens": 512, "batch_tokens": 256, "seq_len": 32, "eval_tokens": 256}
    api.train(desk / "start", tmp_path / "out", data=str(desk / "corpus"), **how)
    assert capsys.readouterr() == ("", "")


def test_a_terminal_gets_a_bar(desk: Path, tmp_path: Path):
    master, slave = pty.openpty()
    fcntl.ioctl(slave, termios.TIOCSWINSZ, struct.pack("HHHH", 40, 200, 0, 0))
    words = ["train", desk / "start", tmp_path / "out", "--data", desk / "corpus", *SHORT]
    command = [sys.executable, "-m", "rekindle", *map(str, words)]
    running = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=slave)
    os.close(slave)
    said = b""
    while True:
        try:
            said += os.read(master, 1 << 16)
        except OSError:  # the other end is closed
            break
    assert running.wait() == 0
    assert re.search(r"train:\s+\d+%\|", said.decode())


@pytest.mark.parametrize(
    "verb", ["inspect", "verify", "run", "join", "upcycle", "pack", "plan", "fit", "sweep", "demo", "lab"]
)
def test_every_verb_has_both_flags(verb: str):
    said = CliRunner().invoke(rekindle, [verb, "--help"]).output
    assert "--progress" in said
    assert "-q, --quiet" in said


def test_of_several_ranks_one_speaks(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture):
    options = resolve(TrainConfig, {"tokens": "1k"})
    monkeypatch.setenv("RANK", "1")
    monkeypatch.setenv("LOCAL_RANK", "1")
    echo("rekindle train", options)
    note_default_data(options, "trains on")
    assert capsys.readouterr() == ("", "")
    monkeypatch.setenv("RANK", "0")
    note_default_data(options, "trains on")
    assert "note: no --data: trains on the standard library of this Python" in capsys.readouterr().err


def test_a_machine_with_a_rank_speaks(monkeypatch: pytest.MonkeyPatch):
    """Kubernetes numbers its machines by RANK, and nothing was started by torchrun there."""
    monkeypatch.delenv("LOCAL_RANK", raising=False)
    monkeypatch.setenv("RANK", "1")
    assert "torch" in CliRunner().invoke(rekindle, ["env"]).stdout


def test_what_comes_next_works(desk: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Typed as it is said, twice, in a folder whose name the shell would take apart."""
    monkeypatch.chdir(tmp_path)
    for flags in ([], ["--overwrite"]):
        said = train(desk, tmp_path / "my run", *flags).stderr.splitlines()[-1]
        assert said.startswith("next:  rekindle report")
        ran = CliRunner().invoke(rekindle, shlex.split(said)[2:])
        assert ran.exit_code == 0, ran.exception
