"""Grids: their cells, what they share, what they cost, and one run end to end."""

from __future__ import annotations

import csv
import re

import numpy as np
import pytest
import yaml

from rekindle import api
from rekindle.errors import RekindleError
from rekindle.laws.law import law_named
from rekindle.sweep.count import cost_of, dense_parameters
from rekindle.sweep.grid import read_grid, steps_of
from rekindle.sweep.run import next_of, sweep

GRID = {
    "model": {"heads": 2, "context": 64, "tokenizer": "bpe:300", "data": "corpus"},
    "sizes": [{"hidden": 16, "layers": 1, "ffn": 32}, {"hidden": 32, "layers": 2, "ffn": 64}],
    "train": {"seq_len": 32, "batch_tokens": 256, "lr": 3e-3, "eval_tokens": 2048, "data": "corpus"},
    "sunk": ["4k", "8k"],
    "tokens": ["4k", "8k"],
    "ways": ["dense", "scratch", "upcycled", {"grown": {"grow-depth": {"factor": 2}}}],
    "experts": [4],
}


def grid(tmp_path, **changes):
    path = tmp_path / "grid.yaml"
    path.write_text(yaml.safe_dump({**GRID, **changes}))
    return path


def test_every_cell_is_there_once_and_reads_text_that_no_earlier_step_read(tmp_path):
    found = read_grid(grid(tmp_path, seeds=[0, 1]))
    steps, cells = steps_of(found)
    assert len(cells) == 2 * 2 * (2 + 2 + 4 + 4)
    by_name = {step.name: step for step in steps}
    assert len(by_name) == len(steps)
    for step in steps:
        seen, at = [], step
        while at.verb != "init":
            if at.verb == "train":
                seen.append((at.options["skip"], at.options["skip"] + at.options["tokens"]))
            at = by_name[at.source]
        for (start, _), (_, end) in zip(seen, seen[1:]):
            assert start >= end
    for cell in cells:
        lengths = [by_name[cell.step].options[key] for key in ("skip", "tokens")]
        assert sum(lengths) == cell.sunk + cell.tokens
        assert cell.tokens % 256 == 0


def test_shared_trunks_cost_a_fraction(tmp_path):
    lengths = [f"{n}k" for n in (8, 16, 32, 64, 128)]
    found = read_grid(grid(tmp_path, sunk=lengths, tokens=lengths, ways=["dense", "scratch", "upcycled"]))
    steps, cells = steps_of(found)
    cost = cost_of(found, steps, cells)
    trunk, branches = 0.8 * 128_000, 0.2 * (8 + 16 + 32 + 64 + 128) * 1000
    assert cost.tokens == pytest.approx(2 * 7 * (trunk + branches), rel=0.02)
    assert cost.saved > 0.5
    assert cost.naive_tokens == sum(c.sunk + c.tokens for c in cells)


@pytest.mark.parametrize("size", GRID["sizes"])
def test_parameters_are_counted_as_init_makes_them(tmp_path, monkeypatch, size):
    monkeypatch.chdir(tmp_path)
    corpus(tmp_path)
    made = api.init("model", **GRID["model"], **size)
    assert dense_parameters({**GRID["model"], **size}) == api.inspect(made)["parameters"]["total"]


def corpus(folder):
    (folder / "corpus").mkdir()
    for i in range(30):
        lines = (f"Line {n} of text {i} says that {n} squared is {n * n}." for n in range(i * 70, i * 70 + 70))
        (folder / "corpus" / f"{i}.txt").write_text("\n".join(lines))


def test_the_next_run_is_told_where_the_table_carries_a_law(tmp_path):
    law, noise = law_named("upcycling-2025"), np.random.default_rng(0)
    rows = [
        {"way": way, "params": n, "sunk": d1, "tokens": d2, "run": f"{way}-{n}-{d1}-{d2}",
         "loss": float(law.row(way).loss(params=n, sunk=d1, tokens=d2)) + 0.005 * noise.standard_normal()}
        for n in (1e8, 2e8, 4e8, 8e8)
        for d2 in (1e9, 4e9, 16e9, 64e9)
        for way, d1 in (("dense", 0), ("scratch", 0), ("upcycled", 1e9), ("upcycled", 8e9), ("upcycled", 64e9))
    ]  # fmt: skip
    said = next_of(rows, "runs.csv")
    before, after = map(float, re.findall(r"\d\.\d{4}", said))
    assert said.startswith("next: ")
    assert 0 < after < before


@pytest.mark.slow
def test_a_grid_ends_in_a_table_that_fit_reads(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    corpus(tmp_path)
    path = grid(tmp_path, ways=["dense", "upcycled"])
    said: list[str] = []
    found = sweep(path, "out", said.append, workers=2)
    assert not found.failed
    rows = list(csv.DictReader(found.table.read_text().splitlines()))
    assert [row["way"] for row in rows].count("upcycled") == 2 * 4
    for row in rows:
        moe = api.inspect(tmp_path / "out" / "runs" / row["run"])["parameters"]
        assert {k: int(row[k]) for k in ("total", "active")} == moe
    longest = [float(r["loss"]) for r in rows if r["way"] == "upcycled" and int(r["sunk"]) > 5000]
    shortest = [float(r["loss"]) for r in rows if r["way"] == "upcycled" and int(r["sunk"]) < 5000]
    assert sum(longest) < sum(shortest)
    again = sweep(path, "out", said.append, workers=2)
    assert again.rows == found.rows
    assert again.next.startswith("next: 12 cells carry no law yet")
    assert "are there already" in said[-1]
    with pytest.raises(RekindleError, match="4 points of dense cannot tell"):
        api.fit(found.table, bootstrap=100)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"sunks": [1]}, "no key 'sunks'"),
        ({"sunk": None}, "needs sunk"),
        ({"sunk": ["many"]}, "whole number"),
        ({"sunk": [-5]}, "must be positive"),
        ({"sunk": [300]}, "has no step"),
        ({"ways": ["upcycle"]}, "no way 'upcycle'"),
        ({"ways": [{"grown": {"grow": {}}}]}, "The way grown"),
        ({"sizes": [{"hidden": 16}]}, "Size 0"),
        ({"sizes": [{"hiden": 16, "layers": 1}]}, "Size 0"),
        ({"train": {"lrr": 1}}, "train: "),
        ({"decay": 2}, "decay is 2"),
        ({"top_k": [8]}, "No top_k"),
        ({"seeds": 3}, "seeds is 3"),
        ({"seeds": ["a"]}, "A seed is 'a'"),
        ({"decay": "fast"}, "decay is 'fast'"),
        ({"model": 5}, "model is 5"),
        ({"train": 3}, "train is 3"),
        ({"sizes": [5]}, "A size is 5"),
        ({"ways": [{"grown": {"grow-depth": {"facto": 2}}}]}, "no option 'facto'"),
        ({"ways": [{"a/b": {"grow-depth": {"factor": 2}}}]}, "cannot be called 'a/b'"),
        ({"ways": [{"scratch": {"grow-depth": {"factor": 2}}}]}, "cannot be called 'scratch'"),
    ],
)
def test_a_wrong_grid_is_refused_before_anything_is_trained(tmp_path, changes, said):
    with pytest.raises(RekindleError, match=said):
        sweep(grid(tmp_path, **changes), tmp_path / "out")
    assert not (tmp_path / "out").exists()
