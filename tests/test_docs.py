"""Documentation is code: every verb has help and a page, every example in help, README and docs runs."""

from __future__ import annotations

import json
import re
import shlex
import shutil
import sys
from glob import glob
from pathlib import Path

import numpy as np
import pytest
from click.testing import CliRunner
from methods.adapters_made import matrices, write_adapter
from music.tune_helpers import book
from safetensors.torch import load_file
from tiny_models import save_tiny

from rekindle import api
from rekindle.cli.verbs import GROUPS, rekindle
from rekindle.laws.law import published
from rekindle.methods import METHODS
from rekindle.train.text import source

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
sys.path.insert(0, str(ROOT / "docs"))
import generate  # noqa: E402

pytestmark = pytest.mark.xdist_group("docs")  # one desk for all

VERBS = generate.all_verbs(verb for verbs in GROUPS.values() for verb in verbs)
SHOWN = ("demo", "lab")  # run for minutes: tests/lab runs them at a smaller scale


def examples(text: str) -> list[str]:
    """Lines of shell blocks that call rekindle."""
    blocks = re.findall(r"```sh\n(.*?)```", text, re.DOTALL)
    return [line for block in blocks for line in block.splitlines() if line.startswith("rekindle ")]


def help_of(verb: str) -> str:
    shown = CliRunner().invoke(rekindle, [*verb.split(), "--help"], prog_name="rekindle", terminal_width=200)
    assert shown.exit_code == 0, shown.output
    return shown.output


def help_examples(verb: str) -> list[str]:
    return [line.strip() for line in help_of(verb).splitlines() if re.match(r"\s+rekindle ", line)]


EXAMPLES = [(f"{verb} --help", line) for verb in VERBS for line in help_examples(verb)]
EXAMPLES += [(str(page.relative_to(ROOT)), line) for page in PAGES for line in examples(page.read_text())]
EXAMPLES = list({line: (where, line) for where, line in EXAMPLES}.values())  # each once


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_has_help_and_an_example(verb):
    text = help_of(verb)
    assert len(text.split("\n\n")) >= 2
    assert verb == "env" or help_examples(verb), f"rekindle {verb} --help shows no example"


def test_every_verb_and_method_is_in_the_docs():
    reference = (ROOT / "docs" / "cli.md").read_text()
    for verb in VERBS:
        assert f"### rekindle {verb}\n" in reference
    for verb in METHODS:
        assert (ROOT / "docs" / "methods" / f"{verb}.md").exists()


def test_reference_is_what_help_says():
    assert generate.PAGE.read_text() == generate.page(), "run `make docs`"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)(?:#[^)]*)?\)", page.read_text()):
        if "://" not in target:
            assert (page.parent / target).exists(), f"{page.name} links to {target}"


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    """A folder with what examples speak of: SRC, CKPT, MOE, RUN, corpus, runs.csv, recipe.yaml, docs/configs, ..."""
    desk, stdlib = tmp_path_factory.mktemp("desk"), source._stdlib
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        patch.setattr(source, "_stdlib", lambda: stdlib()[::8])  # which examples without --data read
        (desk / "corpus").mkdir()
        text = "\n".join(f"Line {n} of the corpus says that {n} squared is {n * n}." for n in range(4000))
        for i in range(40):
            (desk / "corpus" / f"{i}.txt").write_text(text[i * 4000 : (i + 1) * 4000])
        (desk / "corpus.jsonl").write_text(
            "".join(f'{{"text": "document {i} {text[i * 900 : (i + 1) * 900]!r}"}}\n' for i in range(150)).replace(
                "'", ""
            )
        )
        size = {"hidden": 32, "layers": 2, "heads": 4, "ffn": 64, "tokenizer": "bpe:512", "data": "corpus"}
        api.init("CKPT", **size)
        api.rewrite("CKPT").save("SRC", checksum=True)
        api.upcycle("CKPT", experts=4).save("MOE")
        api.utility("MOE", "scores.json", data="corpus", batches=1, batch_tokens=1024, seq_len=64)
        api.train("CKPT", "RUN", data="corpus", tokens="4k", seq_len=64, batch_tokens=1024, eval_tokens="2k",
                  keep_averages=True)  # fmt: skip
        shutil.copytree(ROOT / "docs" / "configs", desk / "docs" / "configs")
        (desk / "recipe.yaml").write_text("source: SRC\nsteps:\n- upcycle: {experts: 4}\n")
        (desk / "runs.csv").write_text(runs())
        (desk / "grid.yaml").write_text(GRID)
        for step in (1200, 1400, 1600):
            shutil.copytree(desk / "SRC", desk / "run" / f"step-{step}")
        for seed, name in enumerate(("ADAPTER", "CODE", "MATHS", "lora/checkpoint-1", "lora/checkpoint-2")):
            ab = matrices(load_file("SRC/model.safetensors"), ["model.layers.0.self_attn.q_proj"], rank=2, seed=seed)
            write_adapter(desk / name, ab, r=2)
        for seed, name in enumerate(("SRC2", "SRC3", "run/checkpoint-500", "run/checkpoint-1000"), 1):
            api.init(name, **size, seed=seed)
        save_tiny(desk / "T5", "t5", "float32", False, {})
        save_tiny(desk / "VIT", "vit", "float32", False, {})
        pixels = np.random.default_rng(0).integers(0, 256, (120, 8, 8), dtype=np.uint8)
        np.savez(desk / "images.npz", images=pixels, labels=np.arange(120) % 5)
        size |= {"layers": 1}
        api.init("BERT", family="bert", set={"architectures": ["BertModel"]}, **size)
        api.init("GPT2", family="gpt2", **size)
        api.init("GEMMA2", family="gemma2", **size)
        api.init("GEMMA3", family="gemma3_text", **size)
        texts = [{"source": f"Line {n} says {n * n}.", "target": f"{n * n} is line {n}."} for n in range(400)]
        (desk / "pairs.jsonl").write_text("".join(f"{json.dumps(text)}\n" for text in texts))
        drawn = book(range(60))
        (desk / "tunes").mkdir()
        (desk / "tunes" / "book.abc").write_text(drawn)
        (desk / "tune.abc").write_text(drawn[: drawn.index("X:1\n")])
        rows = [{"source": f"tune {at}", "target": f"X:{text}"} for at, text in enumerate(drawn.split("X:")[1:])]
        (desk / "pairs_of_tunes.jsonl").write_text("".join(f"{json.dumps(row)}\n" for row in rows))
        api.music_data("TUNES", source="tunes", test=0.2, validation=0.2)
        api.music_train("TUNER", data="TUNES", hidden=32, layers=1, heads=2, tunes=64, pairs=64)
        (desk / "score.py").write_text(
            "def score(tensors):\n    return sum(x.abs().mean() for x in tensors.values())\n"
        )
        yield desk


GRID = """
model: {heads: 2, context: 64, tokenizer: "bpe:300", data: corpus}
sizes: [{hidden: 16, layers: 1, ffn: 32}]
train: {seq_len: 32, batch_tokens: 256, eval_tokens: 1024, data: corpus}
sunk: [3k]
tokens: [3k]
"""


def runs() -> str:
    """Ends of runs as the published upcycling law has them, with a little noise."""
    law, random = published()["upcycling-2025"], np.random.default_rng(0)
    lines = ["way,params,sunk,tokens,loss"]
    for n in np.geomspace(15e6, 1e9, 4):
        for d1 in np.geomspace(2e9, 74e9, 4):
            cells = [("dense", 0.0, d1), ("scratch", 0.0, d1)]
            cells += [("upcycled", d1, d2) for d2 in np.geomspace(1e9, 37e9, 4)]
            for way, sunk, tokens in cells:
                loss = law.row(way).loss(params=n, sunk=sunk, tokens=tokens) + random.normal(0, 0.003)
                lines.append(f"{way},{n},{sunk},{tokens},{loss}")
    return "\n".join(lines) + "\n"


@pytest.mark.slow
def test_every_example_runs(desk, monkeypatch):
    monkeypatch.chdir(desk)
    assert len(EXAMPLES) > 15
    for where, line in EXAMPLES:
        words = [x for word in shlex.split(line, comments=True)[1:] for x in sorted(glob(word)) or [word]]
        if words[0] in SHOWN or "--join" in words:  # of several machines: tests/recovery has them
            continue
        _prepare(desk, words)
        ran = CliRunner().invoke(rekindle, words, prog_name="rekindle", catch_exceptions=True)
        assert ran.exit_code == 0, f"{where}: {line}\n{ran.output}\n{ran.exception!r}"


def _prepare(desk: Path, words: list[str]) -> None:
    """What a verb writes is new to it; OUT is made from SRC for one that reads it."""
    for option in {"--out", "--html"} & {*words}:
        if (written := desk / words[words.index(option) + 1]).is_file():
            written.unlink()
    if words[0] == "pack" or any(word.startswith("run.rk") for word in words):
        for name in ("model.rk", "near.rk", "run.rk"):
            (desk / name).unlink(missing_ok=True)
        if words[0] != "pack":
            api.pack(["run/step-1200", "run/step-1400"], "run.rk")
    if words[0] == "join":
        shutil.rmtree(desk / "OUT", ignore_errors=True)
        for part in ("1/2", "2/2"):
            api.upcycle("SRC", experts=4).save("OUT", part=part, max_shard_size="200KB")
        return
    reads = words[0] in ("verify", "inspect") or any(word.startswith("OUT/") for word in words)
    for name in ("OUT", "AGAIN", "PAGE"):
        if name in words or f"{name}/rekindle.yaml" in words:
            if not (reads and name == "OUT"):
                shutil.rmtree(desk / name, ignore_errors=True)
            elif not (desk / name / "config.json").exists():
                shutil.rmtree(desk / name, ignore_errors=True)
                api.upcycle("SRC", experts=4).save(name)
