"""Grids: their cells, what they share, what they cost, and one run end to end."""

from __future__ import annotations

import csv
import json
import re

import numpy as np
import pytest
import yaml

from rekindle import api
from rekindle.anatomy.flops import training_flops
from rekindle.errors import RekindleError
from rekindle.laws.law import law_named
from rekindle.sweep.count import begun, cost_of, dense_parameters
from rekindle.sweep.grid import read_grid, steps_of
from rekindle.sweep.run import next_of, sweep
from rekindle.sweep.steps import same_steps

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


def test_each_step_costs_what_its_own_model_does(tmp_path, monkeypatch):
    """Mixtures and models of a further way too, by what `init` and the methods make of the sizes."""
    monkeypatch.chdir(tmp_path)
    corpus(tmp_path)
    found = read_grid(grid(tmp_path, experts=[4, 8], top_k=[1, 2], seeds=[0, 1]))
    steps, cells = steps_of(found)
    cost = cost_of(found, steps, cells)
    assert cost.work.keys() == {step.name for step in steps if step.verb == "train"}
    shape = GRID["model"] | GRID["sizes"][1]
    dense = api.open(api.init("dense", **shape))
    mixture = {"experts": 8, "top_k": 2}
    made = {
        "dense-4096": dense,
        "scratch-8x2-4096": api.open(api.init("scratch", family="mixtral", **shape, **mixture)),
        "upcycled-8x2-after7936-trunk3328": api.apply("upcycle", dense, **mixture),
        "grown-after4096-7936": api.apply("grow-depth", dense, factor=2),
    }
    for seed in (0, 1):
        for name, model in made.items():
            work, checkpoint = cost.work[f"size1-seed{seed}-{name}"], model.checkpoint
            assert work.active == checkpoint.parameters()["active"], name
            assert work.each == training_flops(checkpoint.family, checkpoint.settings, 1, 32), name


@pytest.mark.parametrize("family", ["qwen3", "olmo2", "mixtral", "qwen2_moe"])
def test_the_ways_of_other_families(tmp_path, family):
    """From scratch is trained what upcycling makes, and N1 is that of the family."""
    found = read_grid(grid(tmp_path, model=GRID["model"] | {"family": family}, ways=["dense", "scratch"]))
    options = {step.options["family"] for step in steps_of(found)[0] if step.verb == "init"}
    assert options == {family, {"qwen3": "qwen3_moe", "olmo2": "flex_olmo"}.get(family, family)}
    sizes = {dense_parameters({**found.model, **found.sizes[0], **more}) for more in ({}, {"experts": 4, "top_k": 1})
             if family not in ("qwen3", "olmo2") or not more}  # fmt: skip
    assert len(sizes) == 1
    assert sizes != {dense_parameters({**GRID["model"], **found.sizes[0]})} or family == "mixtral"


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
    said, lawless = next_of(rows, "runs.csv")
    before, after = map(float, re.findall(r"\d\.\d{4}", said))
    assert said.startswith("A next run: ")
    assert not lawless
    assert 0 < after < before


SHAPES = [{"hidden": h, "layers": n, "heads": 2} for h, n in ((32, 2), (64, 2), (96, 3))]


@pytest.mark.parametrize(
    ("sizes", "lengths", "ways", "said"),
    [
        (3, 3, ["dense", "scratch", "upcycled"], None),
        (3, 3, ["dense"], None),
        (2, 2, ["dense", "upcycled"], "4 points of dense cannot tell"),
        (2, 3, ["dense", "upcycled"], "say nothing of dense.B"),
        (3, 2, ["dense", "upcycled"], "alpha1"),
    ],
)
def test_a_dry_run_says_whether_the_cells_will_carry_a_law(tmp_path, sizes, lengths, ways, said):
    stages = ["1M", "2M", "4M"][:lengths]
    train = {"seq_len": 32, "batch_tokens": 4096, "data": "corpus"}
    path = grid(tmp_path, sizes=SHAPES[:sizes], sunk=stages, tokens=stages, ways=ways, train=train)
    found = sweep(path, tmp_path / "out", dry_run=True)
    assert (found.lawless == "") is (said is None)
    assert (said or "") in found.lawless
    assert not (tmp_path / "out").exists()


def finished(folder, active, tokens_per_s):
    folder.mkdir(parents=True)
    rows = [{"kind": "run", "parameters": {"active": active}},
            {"kind": "step", "step": 1, "tokens": 9, "flops": 9, "tokens_per_s": tokens_per_s},
            {"kind": "eval", "step": 1, "tokens": 9, "flops": 9, "val_loss": 3.0}]  # fmt: skip
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))


def test_hours_are_those_of_the_steps_that_are_there(tmp_path):
    path = grid(tmp_path, ways=["dense"])
    steps, cells = steps_of(read_grid(path))
    out, sizes = tmp_path / "out", [dense_parameters({**GRID["model"], **size}) for size in GRID["sizes"]]
    before = sweep(path, out, dry_run=True, workers=2)
    assert not before.by_measure
    trained = [step for step in steps if step.verb == "train"]
    tokens = {step.name: step.options["tokens"] + 2 * 2048 // 3 for step in trained}
    models = [begun({**GRID["model"], **size}) for size in GRID["sizes"]]
    each = [training_flops(model.family, model.settings, 1, GRID["train"]["seq_len"]) for model in models]
    flops = {name: each[int(name[4])] * count for name, count in tokens.items()}
    assert before.hours == pytest.approx(sum(flops.values()) / 4e10 / 2 / 3600)
    same_steps({step.name: step for step in steps}, out / "runs")
    for i in range(2):  # the small one is slow
        finished(out / "runs" / f"size{i}-seed0-dense-4096", sizes[i], (100.0, 5000.0)[i])
    after = sweep(path, out, dry_run=True)
    left = {name: count for name, count in tokens.items() if not name.endswith("dense-4096")}
    assert (after.by_measure, after.done) == (True, 2)
    assert after.hours == pytest.approx(sum(n / (100.0, 5000.0)[int(name[4])] for name, n in left.items()) / 3600)
    assert not sweep(path, out, dry_run=True, speed=1e9).by_measure


def test_the_table_is_whole_after_each_cell(tmp_path, monkeypatch):
    """Cells that end at once: at the end of each the table holds all that ended, and no half of one is left."""
    path, out = grid(tmp_path, ways=["dense"]), tmp_path / "out"
    steps, cells = steps_of(read_grid(path))
    seen = []

    def perform(steps, folder, engine, say, *, go_on, ended):
        for step in steps:
            if step.verb == "train":
                finished(folder / step.name, 1000, 10.0)
                ended(step.name)
                seen.append(len((out / "runs.csv").read_text().splitlines()) - 1 if (out / "runs.csv").exists() else 0)
        return {}

    monkeypatch.setattr("rekindle.sweep.steps.perform", perform)
    found = sweep(path, out, workers=1)
    assert seen == [0, 1, 1, 2, 2, 3, 3, 4]
    assert [row["run"] for row in found.rows] == [cell.step for cell in cells]
    assert not list(out.glob(".*"))
    assert found.lawless
    assert [run.name for run in found.runs] == ["size1-seed0-dense-7936"]


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
    assert again.next.startswith("12 cells carry no law yet")
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
        ({"sizes": [{"hidden": 16}]}, "Size 0 does not say layers"),
        ({"model": {**GRID["model"], "family": "gpt2"}, "ways": ["scratch"]}, "a gpt2, of which no family with exp"),
        ({"model": {**GRID["model"], "family": "gtp2"}}, "'gtp2' is not known"),
        ({"model": {**GRID["model"], "set": {"hiden_act": "gelu"}}}, "no key 'hiden_act'"),
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
        ({"ways": [{"soup": {"merge": {"how": "linear"}}}]}, "The way soup is merge, which takes several models"),
        ({"sizes": [{"hidden": 18, "layers": 1}]}, "2 heads do not divide a hidden size of 18"),
        ({"model": {**GRID["model"], "tokenizer": "bpe:200"}}, "at least 257 entries"),
        ({"ways": [{"grown": {"grow-depth": {"layers": 1}}}]}, "size1.*grown.* layers"),
        ({"ways": [{"pooled": {"gqa": {"kv_heads": 3}}}]}, "step size0-seed0-pooled"),
        ({"train": {**GRID["train"], "seq_len": 128}}, "128"),
        ({"train": {**GRID["train"], "data": "./nowhere"}}, "no such file or folder"),
        ({"train": {**GRID["train"], "beta2": 2}}, "beta2"),
    ],
)
@pytest.mark.parametrize("how", [{}, {"dry_run": True}])
def test_a_wrong_grid_is_refused_before_anything_is_trained(tmp_path, changes, said, how):
    with pytest.raises(RekindleError, match=said):
        sweep(grid(tmp_path, **changes), tmp_path / "out", **how)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("how", [{"workers": 0}, {"engine": "lokal"}, {"speed": 0.0}])
def test_a_dry_run_refuses_what_the_run_would(tmp_path, how):
    (tmp_path / "out" / "runs").mkdir(parents=True)
    with pytest.raises(RekindleError):
        sweep(grid(tmp_path), tmp_path / "out", dry_run=True, **how)
    (tmp_path / "out" / "runs" / "steps.json").write_text('{"size0-seed0-start": ["init", "", {}]}')
    with pytest.raises(RekindleError, match="holds other work"):
        sweep(grid(tmp_path), tmp_path / "out", dry_run=True)
