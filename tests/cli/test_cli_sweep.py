"""What sweep and fit say of one thing and of several, and what comes after `next:`."""

from __future__ import annotations

import pytest
from click.testing import CliRunner
from sweep.test_sweep_grid import GRID, grid

from rekindle.cli.verbs import rekindle
from rekindle.errors import counted


def test_counts_and_their_nouns():
    assert [counted(n, "run") for n in (0, 1, 2)] == ["0 runs", "1 run", "2 runs"]


def test_one_cell_is_one(tmp_path):
    path = grid(tmp_path, ways=["dense"], sizes=GRID["sizes"][:1], sunk=["4k"])
    said = CliRunner().invoke(rekindle, ["sweep", str(path), str(tmp_path / "out"), "--dry-run"]).output
    assert said.startswith("1 cell in 3 steps, "), said


@pytest.mark.slow
def test_next_is_a_command_alone(tmp_path, monkeypatch):
    """What else may come next is said in words, without the word that stands before commands."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "corpus").mkdir()
    for i in range(30):
        (tmp_path / "corpus" / f"{i}.txt").write_text(f"{i} is a number, and so is {i + 1}. " * 60)
    path = grid(tmp_path, ways=["dense"], sizes=GRID["sizes"][:1], sunk=["4k"])
    said = CliRunner().invoke(rekindle, ["sweep", str(path), "out", "--workers", "1"]).output
    after = [line.removeprefix("next:").strip() for line in said.splitlines() if line.startswith("next:")]
    assert len(after) == 1, said
    assert after[0].startswith("rekindle ")
