"""What an OUT must not be: the place of something that is read, or of what cannot be made again."""

from __future__ import annotations

import json
import os
import shutil
from pathlib import Path

import pytest
from apply_moments import write_moments
from click.testing import CliRunner
from store.folders import hashes, write_llama

from rekindle import api
from rekindle.apply.crew import JOURNAL
from rekindle.apply.join import RECORD
from rekindle.cli.verbs import rekindle
from rekindle.errors import RekindleError


@pytest.fixture
def parent(tmp_path):
    return write_llama(tmp_path / "parent", shards=2)


@pytest.fixture
def out(tmp_path):
    folder = tmp_path / "out"
    folder.mkdir()
    (folder / "notes").write_text("mine")
    return folder


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def refused(out: Path, *command: object) -> None:
    """Over the command line; nothing of OUT is touched."""
    before = contents(out)
    ran = CliRunner().invoke(rekindle, [*map(str, command), "--overwrite"], standalone_mode=False)
    assert isinstance(ran.exception, RekindleError), ran.output
    assert f"{out} holds " in str(ran.exception), ran.exception
    assert contents(out) == before


def test_what_is_read_is_not_deleted_by_methods(parent, out, tmp_path):
    archive = out / "run.rk"
    api.pack(parent, archive, step=5)
    shutil.copytree(parent, out / "inner")
    write_moments(out / "moments", parent)
    (out / "config.yaml").write_text("experts: 2\n")
    (out / "recipe.yaml").write_text(f"source: {parent}\nsteps:\n- upcycle: {{experts: 2}}\n")
    (out / "text.txt").write_text("text")
    (out / "scores.json").write_text("{}")
    measured = api.gqa(parent, kv_heads=1, pool="aligned").save(tmp_path / "measured")
    shutil.copytree(measured, out / "measured")
    refused(out, "upcycle", f"{archive}@5", out, "--experts", 2)
    refused(out, "rewrite", out / "inner", out)
    refused(out, "upcycle", parent, out, "--experts", 2, "--optimizer-state", out / "moments")
    refused(out, "upcycle", parent, out, "--config", out / "config.yaml")
    refused(out, "gqa", parent, out, "--kv-heads", 1, "--pool", "aligned", "--measurements", out / "measured")
    refused(out, "gqa", parent, out, "--kv-heads", 1, "--pool", "aligned", "--data", out / "text.txt")
    refused(out, "run", out / "recipe.yaml", out)
    with pytest.raises(RekindleError, match="holds the source"):
        api.upcycle(f"{archive}@5", experts=2).save(out, overwrite=True)
    with pytest.raises(RekindleError, match="which is read"):
        api.run(out / "recipe.yaml", out, overwrite=True)


def test_what_is_read_is_not_deleted_by_the_others(parent, out):
    api.pack(parent, out / "run.rk", step=5)
    shutil.copytree(parent, out / "s")
    (out / "c.jsonl").write_text('{"text": "a"}\n')
    (out / "config.yaml").write_text("hidden: 32\n")
    refused(out, "unpack", out / "run.rk", out)
    refused(out, "unpack", f"{out / 'run.rk'}@5", out)
    refused(out, "train", out / "s", out)
    refused(out, "train", f"{out / 'run.rk'}@5", out)
    refused(out, "train", parent, out, "--data", out / "c.jsonl")
    refused(out, "train", parent, out, "--optimizer-state", out / "s")
    sizes = ("--hidden", 32, "--layers", 1, "--heads", 2)
    refused(out, "init", out, *sizes, "--data", out / "c.jsonl")
    refused(out, "init", out, *sizes, "--tokenizer", out / "s")
    refused(out, "init", out, "--config", out / "config.yaml", *sizes)


def test_what_is_read_is_not_deleted_by_pages(out):
    (out / "runs.csv").write_text("params,tokens,loss\n")
    (out / "law.yaml").write_text("")
    (out / "run").mkdir()
    (out / "run" / "metrics.jsonl").write_text("")
    refused(out, "fit", out / "runs.csv", "--report", out)
    refused(
        out, "plan", "--law", out / "law.yaml", "--params", "1e9", "--sunk", "1e10", "--tokens", "1e10", "--out", out
    )


def test_a_source_may_be_replaced_by_the_same_model_alone(parent, tmp_path):
    """`verify` compares with the source: a result that is another model, or a rounded one, must not be all there is."""
    (tmp_path / "link").symlink_to(parent)
    before = contents(parent)
    for verb, *options in (
        ("upcycle", "--experts", 2),
        ("gqa", "--kv-heads", 1),
        ("grow-depth", "--factor", 2),
        ("rewrite", "--dtype", "float16"),
    ):
        for source in (parent, parent / ".." / parent.name, tmp_path / "link"):
            for dry in ((), ("--dry-run",)):
                code, text = said(verb, source, parent, *options, "--overwrite", *dry)
                assert code, (verb, source)
                assert "is the source, and would be replaced" in text
                assert contents(parent) == before
    whole = hashes(api.rewrite(parent).save(tmp_path / "whole"))
    code, text = said("rewrite", parent, parent, "--overwrite")
    assert code == 0
    assert "next:" not in text, "there is nothing to verify it against"
    assert hashes(parent) == whole


def test_nothing_is_written_into_the_source(parent, tmp_path, monkeypatch):
    (tmp_path / "recipe.yaml").write_text(f"source: {parent}\nsteps:\n- rewrite: {{}}\n")
    before = contents(tmp_path)
    monkeypatch.chdir(parent)
    for command in (
        ("rewrite", ".", "sub"),
        ("upcycle", parent, parent / "sub" / "sub", "--experts", 2),
        ("rewrite", parent, parent / "sub", "--part", "1/2"),
        ("run", tmp_path / "recipe.yaml", "sub"),
        ("train", ".", "sub", "--tokens", 100, "--lr", 1e-3),
    ):
        code, text = said(*command)
        assert code
        assert "lies in the source" in text
        assert contents(tmp_path) == before


def test_a_trained_parent_is_not_replaced_by_what_is_trained_of_it(parent, tmp_path):
    before = contents(parent)
    code, text = said("train", parent, parent, "--tokens", 100, "--lr", 1e-3, "--overwrite")
    assert code
    assert "is the source, and would be replaced" in text
    assert contents(parent) == before


def test_weights_that_are_links_into_out_are_not_deleted(parent, tmp_path):
    out = api.rewrite(parent).save(tmp_path / "out")
    source = tmp_path / "source"
    source.mkdir()
    for path in out.iterdir():
        if path.name.startswith("model"):
            (source / path.name).symlink_to(path)
    shutil.copy(out / "config.json", source)
    before = contents(out)
    with pytest.raises(RekindleError, match="which is read"):
        api.rewrite(source).save(out, overwrite=True)
    assert contents(out) == before


# -- what goes -------------------------------------------------------------------------------------------------


def said(*command: object) -> tuple[int, str]:
    ran = CliRunner().invoke(rekindle, [*map(str, command)], standalone_mode=False)
    return ran.exit_code, ran.stderr + (str(ran.exception) if ran.exception else "")


def test_a_trained_run_is_not_replaced_by_its_weights_alone(parent, tmp_path):
    """Adam's moments took the training to make."""
    write_moments(parent / "optimizer", parent)
    (parent / "metrics.jsonl").write_text("{}")
    before = contents(parent)
    code, text = said("rewrite", parent, parent, "--overwrite", "--dtype", "float32")
    assert code
    assert "would lose its optimizer state" in text
    assert contents(parent) == before
    assert said("rewrite", parent, tmp_path / "out", "--dtype", "float32")[0] == 0


def test_what_goes_with_an_out_that_is_replaced_is_said_before(parent, tmp_path):
    out = api.rewrite(parent).save(tmp_path / "out")
    for name in ("optimizer/optimizer.json", "metrics.jsonl", "my notes.md"):
        (out / name).parent.mkdir(exist_ok=True)
        (out / name).write_text("{}")
    code, text = said("upcycle", parent, out, "--experts", 2, "--overwrite")
    assert code == 0
    notes = [line for line in text.splitlines() if line.startswith("note: goes with")]
    assert len(notes) == 1
    assert notes[0].endswith(": metrics.jsonl, my notes.md, optimizer")
    assert text.index("note: goes with") < text.index("next:")
    _, again = said("upcycle", parent, out, "--experts", 2, "--overwrite")
    assert "note: goes with" not in again, "nothing of a model that was made alike"


def test_all_that_goes_in_place_is_said_and_by_a_dry_run_too(parent):
    """What is read is what goes on; beside it lie other weights, and none of them is read or kept."""
    (parent / "checkpoint-5").mkdir()
    for name in ("best.safetensors", "consolidated.00.pth"):
        shutil.copy(next(parent.glob("model-*.safetensors")), parent / name)
    goes = f"note: goes with the {parent} that is replaced, and is not in the new one: "
    for dry in (["--dry-run"], []):
        code, text = said("rewrite", parent, parent, "--overwrite", "--dtype", "float32", *dry)
        assert code == 0
        assert f"{goes}best.safetensors, checkpoint-5, consolidated.00.pth\n" in text
        assert "stays behind" not in text
        assert (parent / "best.safetensors").exists() == bool(dry)


@pytest.mark.parametrize(
    "name",
    ["optimizer.pt", "checkpoint-5/optimizer.pt", "checkpoint-5/global_step5/bf16_zero_pp_rank_0_optim_states.pt",
     "global_step7/zero_pp_rank_0_mp_rank_00_optim_states.pt", "optimizer_0/__0_0.distcp", "optimizer/optimizer.json"],
)  # fmt: skip
def test_optimizer_state_goes_with_no_rewrite_in_place_wherever_it_lies(parent, tmp_path, name):
    (parent / name).parent.mkdir(parents=True, exist_ok=True)
    (parent / name).write_bytes(b"moments")
    for dry in (["--dry-run"], []):
        code, text = said("rewrite", parent, parent, "--overwrite", "--dtype", "float32", *dry)
        assert code
        assert "would lose its optimizer state" in text
    assert (parent / name).exists()
    assert said("rewrite", parent, tmp_path / "out", "--dtype", "float32")[0] == 0


# -- files that travel -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("part", [None, "1/1"])
def test_files_named_like_ours_travel_too(parent, tmp_path, part):
    names = ("journal.json", "part.json", "found.json", "optimizer.json")
    for name in names:
        (parent / name).write_text(json.dumps(name))
    out = api.upcycle(parent, experts=2).save(tmp_path / "out", part=part, max_shard_size="20kB")
    if part:
        api.join(out)
    assert {name: json.loads((out / name).read_text()) for name in names} == {name: name for name in names}
    assert not [path for path in out.rglob("*") if path.name in (JOURNAL, RECORD)]


# -- numbers and names that are none ---------------------------------------------------------------------------


@pytest.mark.parametrize("workers", [-1, 0, 10**9])
def test_a_number_of_workers_that_is_none(parent, tmp_path, workers):
    with pytest.raises(RekindleError, match=f"workers is {workers}"):
        api.rewrite(parent).save(tmp_path / "out", workers=workers)
    code, text = said("rewrite", parent, tmp_path / "out", "--workers", workers)
    assert code
    assert f"workers is {workers}" in text
    assert not list(tmp_path.glob("*out*"))


def test_names_that_are_not_utf_8(parent, tmp_path):
    """No recipe, card or manifest could hold them."""
    name = os.fsdecode(b"caf\xe9")
    with pytest.raises(RekindleError, match="is not UTF-8"):
        api.rewrite(parent).save(tmp_path / name)
    source = shutil.copytree(parent, tmp_path / name)
    with pytest.raises(RekindleError, match="is not UTF-8"):
        api.rewrite(source).save(tmp_path / "out")
    with pytest.raises(RekindleError, match="is not UTF-8"):
        api.init(tmp_path / f"{name}2", hidden=32, layers=1, heads=2)
    assert {path.name for path in tmp_path.iterdir()} == {"parent", name}


def test_a_file_that_is_written_is_none_that_is_read(tiny, tmp_path, monkeypatch):
    """Scores, pages and laws are files: none goes over a weight, a config, the text or the options it is made of."""
    monkeypatch.chdir(tmp_path)
    shutil.copytree(tiny("mixtral"), "moe")
    Path("text.txt").write_text("One line of text.\n" * 400)
    Path("options.yaml").write_text("batches: 1\n")
    Path("fit.yaml").write_text("bootstrap: 200\n")
    Path("runs.csv").write_text("params,tokens,loss\n1e6,1e7,3.0\n2e6,1e7,2.9\n1e6,2e7,2.8\n2e6,2e7,2.7\n4e6,2e7,2.6\n")
    before = contents(tmp_path)
    score = ["utility", "moe", "--data", "text.txt", "--batch-tokens", "64", "--seq-len", "16"]
    for words in (
        [*score, "--out", "text.txt"],
        [*score, "--out", "moe/model.safetensors"],
        [*score, "--out", "moe/config.json"],
        [*score, "--config", "options.yaml", "--out", "options.yaml"],
        ["plan", "--ckpt", "moe", "--sunk", "1M", "--tokens", "1M", "--html", "moe/model.safetensors"],
        ["plan", "--config", "fit.yaml", "--html", "fit.yaml"],
        ["fit", "runs.csv", "--config", "fit.yaml", "--out", "fit.yaml"],
    ):
        ran = CliRunner().invoke(rekindle, [*words, "--overwrite"], standalone_mode=False)
        assert isinstance(ran.exception, RekindleError), (words, ran.output)
        assert contents(tmp_path) == before, words
