"""Studies: their steps hang together, run, go on after an interruption, and end in a page."""

from __future__ import annotations

import csv
import re
from html import unescape
from importlib import import_module, resources
from pathlib import Path

import pytest
from report.headless import overflowing

from rekindle import lab
from rekindle.config import resolve
from rekindle.errors import RekindleError
from rekindle.lab.study import Size, perform
from rekindle.laws.law import law_named
from rekindle.methods import METHODS, method_named
from rekindle.sweep.grid import Grid, steps_of
from rekindle.sweep.steps import Step
from rekindle.train.config import InitConfig, TrainConfig
from rekindle.train.text import open_source

ALL = {name: import_module(f"rekindle.lab.{name.replace('-', '_')}") for name in lab.STUDIES}
MODULES = {name: module for name, module in ALL.items() if hasattr(module, "CLAIMS")}


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("size", [Size(3), Size(1, lab.QUICK, quick=True)], ids=["full", "quick"])
def test_every_step_is_made_once_from_one_that_is_there(name, size):
    steps = MODULES[name].steps(0, size)
    names = [step.name for step in steps]
    assert len(names) == len(set(names))
    assert {step.source for step in steps if step.verb != "init"} <= set(names)
    for step in steps:  # options are checked before hours are spent
        if step.verb == "init":
            resolve(InitConfig, step.options)
        elif step.verb == "train":
            config = resolve(TrainConfig, step.options).config
            assert config.tokens >= config.batch_tokens  # at least one step, of whole sequences
            assert config.batch_tokens % config.seq_len == 0
        elif step.verb in METHODS:
            resolve(method_named(step.verb).config, step.options)
        else:
            module, _, function = step.verb.partition(":")
            assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize("name", MODULES)
def test_claims_name_arms_that_are_trained(name):
    module = MODULES[name]
    trained = {step.name for step in module.steps(0, Size(1)) if step.verb == "train"}
    for claim in module.CLAIMS:
        for arm in (claim.low, claim.high):
            found = {arm, f"{arm}-100", arm.removesuffix("-0") + "-1", arm.partition("+")[0] + "-40"} & trained
            assert found, arm


def test_another_study_in_the_folder_is_refused(tmp_path):
    def one(seed):
        return [Step("start", "init", options={"hidden": 32, "seed": seed})]

    (tmp_path / "start-0").mkdir()
    (tmp_path / "steps.json").write_text('{"start-0": ["init", "", {"hidden": 64}]}')
    with pytest.raises(RekindleError, match="step start-0 was made in another way"):
        perform(one, 1, tmp_path, print)
    (tmp_path / "steps.json").unlink()
    with pytest.raises(RekindleError, match="holds no steps"):
        perform(one, 1, tmp_path, print)


@pytest.mark.slow
@pytest.mark.parametrize("name", MODULES)
def test_a_tiny_study_ends_in_a_page_and_goes_on_where_it_was(name, tmp_path, monkeypatch):
    monkeypatch.setattr(lab, "QUICK", 1e-9)  # one step each
    module = MODULES[name]
    monkeypatch.setitem(module.TRAIN, "eval_tokens", 1024)
    if name == "checkpoint-compression":  # its steps are many whatever the tokens: smaller ones
        monkeypatch.setattr(module, "SHAPE", module.SHAPE | {"hidden": 32, "heads": 4, "ffn": 64, "layers": 1})
    if name == "gqa":  # speed is measured on a model of its own
        monkeypatch.setattr(module, "PROMPT", 16)
        monkeypatch.setattr(module, "NEW", 2)
    said: list[str] = []
    page, verdict = lab.run_study(name, tmp_path, said.append, seeds=1, quick=True)
    text = unescape(page.read_text())
    assert verdict.split(".")[0] in text
    assert all(claim.text in text for claim in module.CLAIMS)
    with (page.parent / "findings.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) >= len(module.CLAIMS)
    assert {row["judgement"] for row in rows} == {"direction only"}
    before = len(said)
    again, same = lab.run_study(name, tmp_path, said.append, seeds=1, quick=True)
    assert (again, same) == (page, verdict)
    assert len(said) == before + 1
    assert "are there already" in said[-1]


def test_every_study_claims_or_runs_a_grid():
    assert (
        {name for name, module in ALL.items() if hasattr(module, "run")} == {"upcycling-laws"} == ALL.keys() - MODULES
    )


def test_the_grid_of_the_law_reads_no_token_twice():
    whole = ALL["upcycling-laws"].grids(quick=False)[0]
    assert (len(whole.sizes), len(whole.sunk), len(whole.tokens)) >= (4, 5, 5)
    _, cells = steps_of(whole)
    assert len(cells) == 4 * (5 + 5 + 25)
    tokens = max(cell.sunk + cell.tokens for cell in cells)
    assert open_source(whole.train["data"]).size > 4 * tokens  # bytes, of which a token takes about three


@pytest.mark.slow
def test_a_tiny_grid_ends_in_a_law_file_and_a_page(tmp_path, monkeypatch):
    module = ALL["upcycling-laws"]
    sizes = tuple({"hidden": h, "layers": 1, "heads": 2, "ffn": 32} for h in (16, 32))
    train = {"seq_len": 32, "batch_tokens": 256, "eval_tokens": 1024, "data": "stdlib"}
    lengths = (2048, 4096, 8192)
    grid = Grid({"context": 64, "tokenizer": "bpe:300"}, sizes, train, lengths, lengths, module.WAYS, step=256)
    monkeypatch.setattr(module, "grids", lambda quick: [grid])
    monkeypatch.setattr(module, "BOOTSTRAP", 200)
    page, verdict = lab.run_study("upcycling-laws", tmp_path / "out", lambda text: None, seeds=1, quick=False)
    assert "alpha3" in verdict
    text = unescape(page.read_text())
    assert verdict in text
    assert "Held out" in text
    assert "of 18 cells" in text
    law = law_named(page.parent / "law.yaml")
    assert set(law.rows) == {"dense", "scratch", "upcycled"}
    rows = list(csv.DictReader((page.parent / "runs.csv").read_text().splitlines()))
    assert len(rows) == 2 * (3 + 3 + 9)


PAGES = sorted((Path(__file__).parents[2] / "docs" / "lab").glob("*/index.html"))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_pages_of_the_docs_have_today_s_style_and_labels(page):
    text = page.read_text()
    assert (resources.files("rekindle.report") / "page.css").read_text() in text
    tables = re.findall(r'<table class="claims">.*?</table>', text, re.DOTALL)
    assert all("data-label" in cell for table in tables for cell in re.findall(r"<td[^>]*>", table))


@pytest.mark.slow
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.parent.name)
def test_the_pages_of_the_docs_fit_a_phone(page, tmp_path):
    assert overflowing(page, tmp_path, 390) == []
