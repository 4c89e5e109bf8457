"""Pages of an earlier bench say what is known to be off with them, until their study is run again."""

from __future__ import annotations

import shutil
import sys
from html import unescape
from pathlib import Path

import pytest

LAB = Path(__file__).parents[2] / "docs" / "lab"
sys.path.insert(0, str(LAB))
import known  # noqa: E402


@pytest.mark.parametrize("name", known.pages())
def test_a_page_has_the_box_that_belongs_to_it(name):
    text = (LAB / name / "index.html").read_text()
    assert text == known.page(name), "run `make docs`"
    assert ('<aside class="known"' in text) == (name in known.entries())


@pytest.mark.parametrize("name", known.entries())
def test_an_entry_speaks_of_results_that_are_there(name):
    entry = known.entries()[name]
    assert known.speaks_of(name, entry), f"{name} was run again: delete its entry in docs/lab/known.yaml"
    text = unescape((LAB / name / "index.html").read_text())
    assert all(" ".join(note.split()) in text for note in entry["notes"])


def test_a_page_that_is_run_again_gets_no_box(tmp_path, monkeypatch):
    shutil.copytree(LAB, tmp_path / "lab")
    monkeypatch.setattr(known, "LAB", tmp_path / "lab")
    assert "<aside" in known.page("gqa")
    with (tmp_path / "lab" / "gqa" / "findings.csv").open("a") as file:
        file.write("another,finding\n")
    assert "<aside" not in known.page("gqa")
