"""Studies: their steps hang together, run, go on after an interruption, and end in a page."""

from __future__ import annotations

import csv
import json
import re
import shutil
from concurrent.futures import Future
from html import unescape
from importlib import import_module, resources
from pathlib import Path

import numpy as np
import pytest
from music.tune_helpers import book
from report.headless import overflowing
from safetensors.numpy import load_file

from rekindle import api, lab
from rekindle.config import resolve
from rekindle.errors import RekindleError
from rekindle.lab import study, tunes
from rekindle.lab.claims import planned
from rekindle.lab.cost import times
from rekindle.lab.margin import margins_of
from rekindle.lab.study import Size, perform
from rekindle.lab.text import carried_on, reads_of
from rekindle.laws.law import law_named
from rekindle.methods import METHODS, method_named
from rekindle.report.metrics import read_metrics
from rekindle.sweep.grid import Grid, steps_of
from rekindle.sweep.steps import Step
from rekindle.train.config import InitConfig, TrainConfig
from rekindle.train.model import load_tokenizer
from rekindle.train.text import open_source, source
from rekindle.train.tokens import open_corpus

ALL = {name: import_module(f"rekindle.lab.{name.replace('-', '_')}") for name in lab.STUDIES}
OWN_PAGES = {"lcsc", "checkfree", "warm-start", "text-to-music"}  # whose tiny pages have tests of their own
MODULES = {name: module for name, module in ALL.items() if module.STUDY.claims}


@pytest.fixture
def few_sources(monkeypatch):
    """A file in eight of Python's library stands for all that studies read, most of which tiny ones never come to."""
    whole = source._stdlib
    monkeypatch.setattr(source, "_stdlib", lambda: whole()[::8])
    monkeypatch.setattr(source, "_packages", list)


class Here:
    """Steps run in this process, which has all imported that new ones would: see tests/sweep for those."""

    workers = 1

    def __init__(self, workers=None):
        pass

    def __enter__(self):
        return self

    def __exit__(self, *error):
        pass

    def stop(self):
        pass

    def submit(self, function, *arguments):
        job: Future[str] = Future()
        job.set_result(function(*arguments))
        return job


@pytest.fixture
def one_process(monkeypatch):
    monkeypatch.setattr(study, "Local", Here)


@pytest.mark.parametrize("name", MODULES)
@pytest.mark.parametrize("size", [Size(3), Size(1, study.QUICK, quick=True)], ids=["full", "quick"])
def test_every_step_is_made_once_from_one_that_is_there(name, size):
    steps = MODULES[name].steps(0, size)
    names = [step.name for step in steps]
    assert len(names) == len(set(names))
    assert {step.source for step in steps if step.source} <= set(names)
    assert all(step.source for step in steps if step.verb in ("train", *METHODS))
    for step in steps:  # options are checked before hours are spent
        if step.verb == "init":
            resolve(InitConfig, step.options)
        elif step.verb == "train":
            config = resolve(TrainConfig, step.options).config
            assert config.tokens >= config.batch_tokens  # at least one step, of whole sequences,
            left = (
                config.tokens % config.batch_tokens
            )  # and hardly a token that no step takes: images are no power of 2
            assert left == 0 or (name == "vision-moe" and left < 0.005 * config.tokens)
            assert config.batch_tokens % config.seq_len == 0
        elif step.verb in METHODS:
            own = {name: value for name, value in step.options.items() if name != "tower"}
            resolve(method_named(step.verb).config, own)
        else:
            module, _, function = step.verb.partition(":")
            assert callable(getattr(import_module(module), function))


@pytest.mark.parametrize("name", MODULES)
def test_claims_name_arms_that_are_trained(name):
    of = MODULES[name].STUDY
    trained = {step.name for step in of.steps(Size(1)) if step.verb == "train"}
    assert {end.run for end in of.arms().values()} <= trained
    assert len({claim.key for claim in of.claims}) == len(of.claims)


@pytest.mark.parametrize("name", MODULES)
def test_every_claim_is_settled_before_it_is_run(name):
    claims = MODULES[name].STUDY.claims
    margins = margins_of(name, claims)
    assert set(margins.rows) == {claim.key for claim in claims}
    assert 5 <= planned(claims, margins) <= 20


@pytest.mark.parametrize("name", ALL)
def test_no_training_reads_what_its_line_has_read(name):
    """From one training to the next the order of the text goes on; 24 million tokens last for all of it."""
    steps = carried_on(ALL[name].STUDY.steps(Size(2)))
    by_name, reads = {step.name: step for step in steps}, reads_of(steps)
    behind = 0
    for step in steps:
        line = [step] if step.verb == "train" else []
        while line and line[-1].source in by_name and line[-1].verb != "init":
            line.append(by_name[line[-1].source])
        spans = [reads[s.name] for s in reversed(line) if s.verb == "train"]
        pairs = list(zip(spans, spans[1:], strict=False))
        assert all(a.stop <= b.start for a, b in pairs if a.data == b.data)
        assert all(a.data == b.data for a, b in pairs) or name == "adapted-decoder"  # first sources, then pairs
        assert all(int(s.options["skip"]) == reads[s.name].start for s in line if s.verb == "train")
        behind += len(spans) > 1
    own = (
        "checkpoint-compression",
        "lcsc",
        "warm-start",
        "text-to-music",
    )  # whose own steps train, and say where they begin
    assert behind or name in (*own, "checkfree")  # whose trainings are all from scratch
    assert max((span.stop for span in reads.values()), default=0) < 20_000_000


@pytest.mark.slow
def test_equal_budgets_are_equal_by_every_flop(tmp_path):
    """What a token of each mixture costs, by which studies share out tokens, is what the checkpoints say."""
    sparse, growth = ALL["sparse-upcycling"], ALL["orthogonal-growth"]
    api.init(tmp_path / "dense", **sparse.SHAPE, tokenizer="bpe:1024")
    api.upcycle(tmp_path / "dense", **sparse.EXPERTS).save(tmp_path / "mixture")
    assert times(tmp_path / "mixture", tmp_path / "dense", 128) == pytest.approx(sparse.COST, rel=2e-3)
    vision = ALL["vision-moe"]
    api.init(tmp_path / "vit", family="vit", **vision.SHAPE)
    api.upcycle(tmp_path / "vit", **vision.EXPERTS).save(tmp_path / "vmoe")
    assert times(tmp_path / "vmoe", tmp_path / "vit", vision.TOKENS) == pytest.approx(vision.COST, rel=2e-3)
    experts = {"experts": growth.EXPERTS, "top_k": growth.TOP_K, "layers": growth.LAYERS}
    api.init(tmp_path / "base", **growth.SHAPE, **experts)
    api.apply("grow-experts", tmp_path / "base", factor=2, top_k="scale").save(tmp_path / "wide")
    assert times(tmp_path / "wide", tmp_path / "base", 128) == pytest.approx(growth.COST, rel=2e-3)


def test_another_study_in_the_folder_is_refused(tmp_path):
    steps = [Step("start-0", "init", options={"hidden": 32, "seed": 0})]
    (tmp_path / "start-0").mkdir()
    (tmp_path / "steps.json").write_text('{"start-0": ["init", "", {"hidden": 64}]}')
    with pytest.raises(RekindleError, match="step start-0 was made in another way"):
        perform(steps, tmp_path, print)
    (tmp_path / "steps.json").unlink()
    with pytest.raises(RekindleError, match="holds no steps"):
        perform(steps, tmp_path, print)


@pytest.mark.slow
def test_a_tiny_study_of_combinations_ends_in_a_page(tmp_path, monkeypatch, few_sources, one_process):
    module = ALL["lcsc"]
    for name, value in (("LENGTHS", ((60, 3),) * 2), ("SAMPLES", 40), ("LEAST", 8), ("TOKENS", 8 * 4 * 2048)):
        monkeypatch.setattr(module, name, value)
    monkeypatch.setattr(module, "BUDGETS", dict.fromkeys(module.BUDGETS, 32))
    monkeypatch.setattr(module, "TEXT_BUDGETS", dict.fromkeys(module.TEXT_BUDGETS, 8))
    monkeypatch.setitem(module.TEXT_SEARCH, "batch_tokens", 512)
    page, verdict = lab.run_study("lcsc", tmp_path, lambda text: None, seeds=1, quick=True)
    text = unescape(page.read_text())
    assert verdict.split(".")[0] in text
    assert all(claim.text in text for claim in module.CLAIMS)
    with (page.parent / "findings.csv").open() as file:
        assert [row["of"] for row in csv.DictReader(file)] == [claim.of for claim in module.CLAIMS]
    assert all(f"{short.lower()}-fd" in text for short in module.KINDS)


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(MODULES.keys() - OWN_PAGES))
def test_a_tiny_study_ends_in_a_page_and_goes_on_where_it_was(name, tmp_path, monkeypatch, few_sources, one_process):
    monkeypatch.setattr(study, "QUICK", 1e-9)  # one step each
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
    assert [(row["of"], row["judged_with"]) for row in rows] == [(claim.of, "1") for claim in module.CLAIMS]
    assert {row["judgement"] for row in rows} == {"direction only"}
    assert all(0 < float(row["epochs_arm"]) < 1 and float(row["margin"]) > 0 for row in rows)
    assert len({(row["text"], row["margins"]) for row in rows}) == 1
    assert f"digest {rows[0]['text'][:12]}" in text
    assert f"margins/{name}.yaml" in text
    assert rows[0]["margins"] in text
    before = len(said)
    again, same = lab.run_study(name, tmp_path, said.append, seeds=1, quick=True)
    assert (again, same) == (page, verdict)
    assert len(said) == before + 1
    assert "are there already" in said[-1]


@pytest.mark.slow
def test_the_page_of_text_to_music(tmp_path, monkeypatch, few_sources, one_process):
    """Of drawn tunes, and a tiny BERT in the place of the real one."""
    module, bert, abc = MODULES["text-to-music"], tmp_path / "bert", tmp_path / "tunes.abc"
    api.init(bert, family="bert", hidden=32, layers=2, heads=4, ffn=64, context=64, tokenizer="bpe:600", data="stdlib")
    abc.write_text(book(range(60)))

    def make_data(source, out, seed):
        api.music_data(out, source=str(abc), validation=0.2, test=0.2, seed=seed)

    monkeypatch.setattr(tunes, "make_data", make_data)
    monkeypatch.setattr(tunes, "minilm", lambda: bert)
    monkeypatch.setattr(tunes, "SHAPE", tunes.SHAPE | {"hidden": 16, "heads": 2, "layers": 1})
    monkeypatch.setitem(tunes.OTHER, "eval_tokens", 1024)
    monkeypatch.setattr(study, "QUICK", 1e-9)
    page, verdict = lab.run_study("text-to-music", tmp_path / "lab", lambda said: None, seeds=1, quick=True)
    text = unescape(page.read_text())
    assert verdict.split(".")[0] in text
    assert all(claim.text in text for claim in module.CLAIMS)
    runs = tmp_path / "lab" / "runs"

    def tunes_in(path):
        return {json.loads(line)["tune"] for line in path.read_text().splitlines()}

    all_, few = (tunes_in(runs / f"drawn-{share}-0" / "pairs" / "train.jsonl") for share in (100, 10))
    assert few < all_
    assert len(few) == len(all_) // 10
    seen = tunes_in(runs / "tunes-10-0" / "tunes" / "train.jsonl")
    assert seen == few  # the control
    code, drawn = (load_file(next((runs / name).glob("*.safetensors"))) for name in ("code-0/end", "tunes-0/drawn"))
    assert np.array_equal(code["transformer.wte.weight"], drawn["transformer.wte.weight"])
    assert not np.array_equal(code["transformer.wpe.weight"], drawn["transformer.wpe.weight"])
    scores = json.loads((runs / "both-100-0" / "scores.json").read_text())
    assert len(scores["values"]["BLEU"]) == 12


@pytest.mark.slow
def test_the_page_of_warm_starts(tmp_path, monkeypatch, few_sources, one_process):
    """Of a tiny BERT in the place of the real one."""
    module, bert = MODULES["warm-start"], tmp_path / "bert"
    api.init(bert, family="bert", hidden=32, layers=2, heads=4, ffn=64, context=64, tokenizer="bpe:600", data="stdlib")
    monkeypatch.setattr(module, "minilm", lambda: bert)
    monkeypatch.setattr(module, "GPT", module.GPT | {"hidden": 32, "heads": 4, "layers": 1, "tokenizer": "bpe:700"})
    monkeypatch.setitem(module.TRAIN, "eval_tokens", 1024)
    monkeypatch.setattr(study, "QUICK", 1e-9)
    page, verdict = lab.run_study("warm-start", tmp_path / "lab", lambda said: None, seeds=1, quick=True)
    text = unescape(page.read_text())
    assert verdict.split(".")[0] in text
    assert all(claim.text in text for claim in module.CLAIMS)
    with (page.parent / "findings.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {row["judgement"] for row in rows} == {"direction only"}
    assert [float(row["epochs_arm"]) < 1 for row in rows if row["epochs_arm"]] == [True] * 4
    assert len({row["text"] for row in rows if row["text"]}) == 1
    runs = tmp_path / "lab" / "runs"
    whole, few = read_metrics(runs / "bert2bert-0"), read_metrics(runs / "bert2bert-10-0" / "end")
    assert few.header["val_set"] == whole.header["val_set"]  # the same pairs are held out
    assert few.header["epochs"] == pytest.approx(128 / 12)  # 4,096 tokens are 128 rows, of which a tenth is 12


@pytest.mark.slow
def test_the_page_of_lost_stages(tmp_path, monkeypatch, few_sources):
    """Of two of its runs, with failures and without, each in the place of all that are like it."""
    module = MODULES["checkfree"]

    def perform(steps: list[Step], runs: Path, say, **how) -> None:
        assert how["alone"]  # since time is measured
        start, none, *others = steps
        api.init(runs / start.name, **start.options)
        few = {"eval_every": 4096, "eval_tokens": 1024, "seed": 0}
        for step in (none, next(one for one in others if one.name == "uniform-0")):
            own = dict(step.options) | few | ({"inject": "1:2:begin,1:1:commit"} if "inject" in step.options else {})
            api.train(runs / start.name, runs / step.name, **own)
        for step in others:
            if step.name != "uniform-0":
                like = "uniform-0" if "inject" in step.options else none.name
                shutil.copytree(runs / like, runs / step.name)

    monkeypatch.setattr(study, "perform", perform)
    monkeypatch.setattr(study, "QUICK", 0.013)  # four steps
    page, verdict = lab.run_study("checkfree", tmp_path, lambda said: None, seeds=1, quick=True)
    text = unescape(page.read_text())
    assert all(claim.text in text for claim in module.CLAIMS)
    with (page.parent / "findings.csv").open() as file:
        rows = {row["claim"]: row for row in csv.DictReader(file)}
    assert float(rows["Weighing neighbours by their gradients ends below a plain average"]["gain"]) == 0
    assert float(rows["Shadows end as low as no failures, ends spared"]["gain"]) != 0
    assert "direction only" in text
    table = text[text.index("As systems") :]
    assert re.search(r"uniform.*?2.*?0.*?1\.4", table, re.DOTALL)  # deaths, none back to a checkpoint, distance


def test_the_grid_of_the_law_reads_no_token_twice():
    whole = ALL["upcycling-laws"].grids(quick=False)[0]
    assert (len(whole.sizes), len(whole.sunk), len(whole.tokens)) >= (4, 5, 5)
    _, cells = steps_of(whole)
    assert len(cells) == 4 * (5 + 5 + 25)
    tokens = max(cell.sunk + cell.tokens for cell in cells)
    assert open_source(whole.train["data"]).size > 4 * tokens  # bytes, of which a token takes about three


@pytest.mark.slow
def test_the_libraries_hold_twenty_million_tokens(tmp_path):
    """In the tokens of the studies, whatever versions are installed: no study has to read any twice."""
    api.init(tmp_path / "start", hidden=16, layers=1, heads=2, tokenizer="bpe:1024")
    corpus = open_corpus("python", load_tokenizer(tmp_path / "start"))
    assert len(corpus.train) > 20_000_000
    others = ("vision-moe", "text-to-music")  # of images and tunes
    assert all(module.TRAIN["data"] == "python" for name, module in ALL.items() if name not in others)


@pytest.mark.slow
def test_a_tiny_grid_ends_in_a_law_file_and_a_page(tmp_path, monkeypatch, few_sources, one_process):
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
