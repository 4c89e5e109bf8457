"""combine as it is typed and called: what is written, resumed, refused and said."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from api.commands import ran, refused, typed
from safetensors.torch import load_file, save_file
from search.run_made import Loss, run, save
from store.folders import hashes

import rekindle
from rekindle.api.combining import priced
from rekindle.api.given import models_of
from rekindle.config import Count
from rekindle.errors import RekindleError
from rekindle.search.config import CombineConfig
from rekindle.search.draw import Draw
from rekindle.search.losses import loss_of
from rekindle.search.text import Reading, reading_of
from rekindle.store.folder import open_folder
from rekindle.store.manifest import read_manifest

OBJECTIVE = """
import sys
sys.path.insert(0, {tests!r})
from search.run_made import Loss
drawn = Loss()
class Draw: split, seed, share = "search", 0, 1.0
class Other: split, seed, share = "report", 0, 1.0
def plain(tensors):
    return float(drawn(tensors, Draw)["loss"].detach())
def other(tensors):
    return float(drawn(tensors, Other)["loss"].detach())
def broken(tensors):
    raise ValueError("no such column")
def nan(tensors):
    return float("nan")
def slow(tensors, draw):
    import time
    time.sleep(0.02)
    return drawn(tensors, draw)
"""


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return run(tmp_path_factory.mktemp("made"))


@pytest.fixture
def desk(made, tmp_path, monkeypatch):
    """run/checkpoint-*, and f.py with objectives."""
    shutil.copytree(made, tmp_path / "run")
    (tmp_path / "f.py").write_text(OBJECTIVE.format(tests=str(Path(__file__).parents[1])))
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_what_is_written_is_the_combination_and_a_recipe_repeats_it(desk):
    said = ran("combine", "run/checkpoint-*", "out", "--objective", "f.py:drawn", "--budget", 60)
    found = json.loads(Path("out/combine.json").read_text())
    row = next(row for row in found["rows"] if row["kind"] == found["result"])
    parts = [
        load_file(f"run/checkpoint-{name.removeprefix('step-')}/model.safetensors") for name in found["checkpoints"]
    ]
    out = load_file("out/model.safetensors")
    for name, x in out.items():
        if "running" in name or "tracked" in name or name == "scale":
            assert torch.equal(x, parts[-1][name])
        else:
            wanted = sum(a * part[name].double() for a, part in zip(row["coefficients"], parts, strict=True))
            assert (x - wanted).abs().max() < 1e-6
    assert "combination" in said
    assert found["held_out"]
    assert not list(desk.glob(".out*"))
    ran("run", "out/rekindle.yaml", "again")
    assert hashes(Path("again"))["model.safetensors"] == hashes(Path("out"))["model.safetensors"]
    assert read_manifest(Path("out")).lineage[-1].verb == "merge"


def test_the_command_and_the_call_find_the_same(desk):
    ran(
        "combine",
        "run/checkpoint-*",
        "out",
        "--objective",
        "f.py:plain",
        "--budget",
        40,
        "--search",
        "cma",
        "--seed",
        3,
    )
    found = rekindle.combine("run/checkpoint-*", "f.py:plain", budget=40, search="cma", seed=3)
    written = json.loads(Path("out/combine.json").read_text())
    assert written == json.loads(json.dumps(found.data))
    assert list(found.coefficients) == [f"step-{step}" for step in range(20, 241, 20)]
    found.save("again")
    assert hashes(Path("again"))["model.safetensors"] == hashes(Path("out"))["model.safetensors"]
    assert "not held out" in str(found)
    assert "Combination of 12" in repr(found)


def test_a_function_of_tensors_and_another_that_was_not_searched(desk):
    loss = Loss()
    held_out = rekindle.combine("run/checkpoint-*", "f.py:plain", held_out="f.py:other", budget=40)
    assert held_out.data["held_out"]
    assert list(held_out.data["rows"][-1]["reported"]) == ["score"]
    searched = rekindle.combine("run/checkpoint-*", "f.py:other", budget=40)
    last, own = ({row["kind"]: row for row in found.data["rows"]}["last"] for found in (held_out, searched))
    assert last["reported"]["score"] == own["reported"]["score"]  # what the other function says
    assert last["reported"]["score"] != [last["searched"]]
    several = rekindle.combine([f"run/checkpoint-{step}" for step in (240, 20, 120)], loss, budget=30, seeds=2)
    assert several.data["checkpoints"] == ["step-20", "step-120", "step-240"]  # as they were trained
    assert len(several.data["seeds"]) == 2
    assert several.data["search"] == "gradient"


def test_statistics_that_a_model_changes_are_no_part_of_the_next_candidate(desk):
    """Of a model in training mode, whatever the order in which candidates are scored."""

    def training(tensors, draw):
        loss = Loss()  # a module of its own for each thread
        loss.net.train()
        return loss(tensors, draw)

    found = [rekindle.combine("run/checkpoint-*", training, budget=30, search="evolution", workers=n) for n in (1, 3)]
    assert found[0].data == found[1].data


def test_what_is_told_of_bfloat16_is_of_what_is_written(desk):
    narrow, loss = run(desk / "narrow", torch.bfloat16), Loss()
    found = rekindle.combine(f"{narrow}/checkpoint-*", loss, budget=40)
    out = {name: x.float() for name, x in load_file(found.save("out") / "model.safetensors").items()}
    row = next(row for row in found.data["rows"] if row["kind"] == found.data["result"])
    told = float(loss(out, Draw("report", 0))["loss"])
    assert told == pytest.approx(row["reported"]["loss"][0], rel=1e-5)


def test_names_that_are_patterns_and_floats_of_every_size(desk):
    for step in (10, 20, 30):
        g = torch.Generator().manual_seed(step)
        tensors = {"a[0].running_mean": torch.zeros(2), "b": torch.randn(3, generator=g).double(),
                   "c": torch.ones(2).double(), "d": torch.randn(2, generator=g)}  # fmt: skip
        save(Path(f"odd/checkpoint-{step}"), tensors, None)
    kinds = set()

    def score(tensors, draw=None):
        kinds.update(x.dtype for x in tensors.values())
        assert draw is not None
        return sum(x.square().sum() for x in tensors.values())

    found = rekindle.combine("odd/checkpoint-*", score, budget=20)
    assert kinds == {torch.float32}
    assert found.data["held_out"]
    out = load_file(found.save("out") / "model.safetensors")
    assert out["b"].dtype == torch.float64


def test_coefficients_that_are_free_keep_what_never_moved(desk):
    found = rekindle.combine("run/checkpoint-*", Loss(), budget=40, sum="free")
    if found.data["result"] in ("combination", "random search", "scaled EMA"):
        found.save("out")
        out, last = load_file("out/model.safetensors"), load_file("run/checkpoint-240/model.safetensors")
        assert torch.equal(out["scale"], last["scale"])
        assert abs(sum(found.coefficients.values()) - 1) > 1e-6
        assert yaml.safe_load(Path("out/rekindle.yaml").read_text())["steps"][0]["merge"]["any_sum"]


@pytest.fixture
def alone(desk):
    """The same weights without a config: files/model20.pt, files/model20.safetensors, and folders of one."""
    Path("files").mkdir()
    for step in range(20, 241, 20):
        source = Path(f"run/checkpoint-{step}/model.safetensors")
        shutil.copy(source, f"files/model{step}.safetensors")
        torch.save(load_file(source), f"files/model{step}.pt")
        Path(f"folders/checkpoint-{step}").mkdir(parents=True)
        shutil.copy(f"files/model{step}.pt", f"folders/checkpoint-{step}/ema.pt")
        torch.save({"state": {}}, f"folders/checkpoint-{step}/optimizer.pt")  # which is no model's
        shards = Path(f"shards/checkpoint-{step}")
        shards.mkdir(parents=True)
        tensors = [*load_file(source).items()]
        for i in (1, 2):
            save_file(dict(tensors[:3] if i == 1 else tensors[3:]), shards / f"model-0000{i}-of-00002.safetensors")
    rekindle.pack("files/*.pt", "pickles.rk")
    rekindle.pack("files/*.safetensors", "tensors.rk")
    return desk


@pytest.mark.parametrize(
    "series",
    ["files/*.pt", "files/*.safetensors", "folders/checkpoint-*", "folders/checkpoint-*/ema.pt", "shards/checkpoint-*",
     "pickles.rk@*", "tensors.rk@*"],
)  # fmt: skip
def test_weights_without_a_config_are_a_series(alone, series):
    wanted = rekindle.combine("run/checkpoint-*", Loss(), budget=20)
    found = rekindle.combine(series, Loss(), budget=20)
    assert found.coefficients == wanted.coefficients  # by their numbers: 20, 40, ..., 240
    out, named_ = (
        load_file(found.save("out") / "model.safetensors"),
        load_file(wanted.save("named") / "model.safetensors"),
    )
    assert all(torch.equal(x, named_[name]) for name, x in out.items())
    ran("run", "out/rekindle.yaml", "again")
    assert hashes(Path("again"))["model.safetensors"] == hashes(Path("out"))["model.safetensors"]


def test_a_series_is_the_same_one_by_one(alone):
    for pattern in ("files/*.pt", "folders/checkpoint-*/ema.pt"):
        quoted, _ = models_of(pattern)
        listed, _ = models_of(sorted(map(str, Path().glob(pattern))))
        assert [*quoted] == [*listed] == [f"step-{step}" for step in range(20, 241, 20)]


def test_what_weights_without_a_config_are_not(alone):
    assert "not a checkpoint folder" in refused("upcycle", "files/model20.pt", "new", "--experts", 4)
    assert "has no config.json" in refused("rewrite", "folders/checkpoint-20", "new")
    assert "a model without a config.json" in refused("combine", "files/*.pt", "new", "--objective", "loss")
    for step in (1, 2):
        torch.save({"model": load_file("run/checkpoint-20/model.safetensors"), "step": step}, f"state_{step}.pt")
    assert "a training's state around the weights" in refused(
        "combine", "state_*.pt", "new", "--objective", "f.py:drawn"
    )
    Path("files/model300.pt").write_bytes(Path("files/model20.pt").read_bytes()[:500])
    assert "cannot be read" in refused("combine", "files/*.pt", "new", "--objective", "f.py:drawn")
    roles = refused("combine", "folders/*", "new", "--objective", "f.py:drawn", "--groups", "role")
    assert "of a model without a config.json is, no table says" in roles
    shutil.copy("files/model20.pt", "folders/checkpoint-20/other.pt")
    several = refused("merge", "folders/checkpoint-20", "folders/checkpoint-40", "new", "--how", "mean")
    assert "Which of ema.pt, other.pt is the model, no config.json says" in several
    save_file({}, "none.safetensors")
    assert "none.safetensors holds no tensors" in refused("merge", "none.safetensors", "none.safetensors", "new")
    Path("two").mkdir()
    for name in ("model", "ema"):
        shutil.copy("files/model20.safetensors", f"two/{name}.safetensors")
    two = rekindle.merge(["two", "files/model40.safetensors"], how="mean")
    assert "ema.safetensors beside it is not" in " ".join(two.checkpoint.notes)
    assert not Path("new").exists()


def of_groups(found, folder) -> dict[str, torch.Tensor]:
    """What the coefficients of groups of names give, by another library."""
    parts = {name: load_file(f"run/checkpoint-{name.removeprefix('step-')}/model.safetensors") for name in found.models}
    summed = {}
    for name in load_file(folder / "model.safetensors"):
        group = next((own for own in found.coefficients if name.startswith(f"{own}.")), None)
        if group is not None and "running" not in name and "tracked" not in name:
            summed[name] = sum(a * parts[step][name].double() for step, a in found.coefficients[group].items())
    return summed


@pytest.mark.parametrize("kind", ["one", "free"])
def test_groups_of_names_have_coefficients_of_their_own(desk, kind):
    rows = rekindle.combine("run/checkpoint-*", Loss(), budget=40, groups="layer", sum=kind)
    rows.data["result"] = "combination"
    assert rows.data["groups"] == ["0", "1", "3"]
    out = rows.save("out")
    written = load_file(out / "model.safetensors")
    for name, x in of_groups(rows, out).items():
        assert (written[name] - x).abs().max() < 1e-5, name
    last = load_file("run/checkpoint-240/model.safetensors")
    assert torch.equal(written["scale"], last["scale"])
    ran("run", "out/rekindle.yaml", "again")
    assert hashes(Path("again"))["model.safetensors"] == hashes(out)["model.safetensors"]


@pytest.mark.parametrize("kind", ["one", "free"])
@pytest.mark.parametrize("by", ["layer", "role"])
@pytest.mark.parametrize(
    ("family", "changes"),
    [("llama", {"tie_word_embeddings": True}), ("mixtral", {}), ("t5", {"num_decoder_layers": 2})],
)
def test_what_groups_of_a_family_are_told_of_is_what_is_written(tiny, tmp_path, family, changes, by, kind):
    g = torch.Generator().manual_seed(0)
    for step in (1, 2, 3):
        shutil.copytree(tiny(family, **changes), tmp_path / f"checkpoint-{step}")
        (file,) = (tmp_path / f"checkpoint-{step}").glob("*.safetensors")
        tensors = {name: x + 0.05 * torch.randn(x.shape, generator=g) for name, x in load_file(file).items()}
        save_file(tensors, file, {"format": "pt"})

    def score(tensors):
        return sum((x - 0.3).square().mean() for x in tensors.values())

    found = rekindle.combine(f"{tmp_path}/checkpoint-*", score, budget=20, groups=by, sum=kind)
    found.data["result"] = "combination"
    written = load_file(next(found.save(tmp_path / "out").glob("*.safetensors")))
    told = found.data["rows"][-1]["reported"]["score"][0]
    assert isinstance(found.data["rows"][-1]["coefficients"][0], list)
    assert float(score(written)) == pytest.approx(told, rel=1e-5)


def test_an_archive_and_a_range_of_its_steps(desk):
    rekindle.pack("run/checkpoint-*", "run.rk")
    packed = rekindle.combine("run.rk@100:200", Loss(), budget=30)
    plain = rekindle.combine([f"run/checkpoint-{step}" for step in range(100, 201, 20)], Loss(), budget=30)
    assert packed.coefficients == plain.coefficients
    packed.save("out")
    plain.save("again")
    assert hashes(Path("again"))["model.safetensors"] == hashes(Path("out"))["model.safetensors"]


@pytest.mark.slow
def test_a_search_that_is_killed_goes_on(desk):
    words = ["combine", "run/checkpoint-*", "out", "--objective", "f.py:slow", "--budget", "40"]
    ran("combine", "run/checkpoint-*", "whole", "--objective", "f.py:slow", "--budget", "40")
    for _ in range(2):
        process = subprocess.Popen(
            [sys.executable, "-m", "rekindle", *words, "--resume"], env=os.environ, stderr=subprocess.DEVNULL
        )
        journal, before = Path(".out.search.jsonl"), lines(".out.search.jsonl")
        until = time.monotonic() + 60
        while lines(journal) < before + 30 and time.monotonic() < until:
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
        assert lines(journal) >= before + 30
        assert not Path("out").exists()
    assert "goes on" in ran(*words, "--resume")
    assert Path("out/combine.json").read_bytes() == Path("whole/combine.json").read_bytes()
    assert not Path(".out.search.jsonl").exists()


def lines(path: str | Path) -> int:
    return Path(path).read_text().count("\n") if Path(path).exists() else 0


def test_scores_of_another_file_are_not_gone_on_with(desk):
    text = Path("f.py").read_text()
    Path("f.py").write_text(text.replace('raise ValueError("no such column")', "raise KeyboardInterrupt"))
    assert isinstance(
        typed("combine", "run/checkpoint-*", "out", "--objective", "f.py:broken").exception,
        SystemExit | KeyboardInterrupt,
    )
    Path("f.py").write_text(text)
    assert Path(".out.search.jsonl").exists()
    assert "another search" in refused("combine", "run/checkpoint-*", "out", "--objective", "f.py:broken", "--resume")


def test_json_is_json(desk):
    ran("combine", "run/checkpoint-*", "out", "--objective", "f.py:plain", "--budget", 30)

    def strict(constant):
        raise AssertionError(constant)

    json.loads(Path("out/combine.json").read_text(), parse_constant=strict)


def test_a_page_replaces_nothing_that_is_read_or_written(desk):
    words = ["combine", "run/checkpoint-*", "out", "--objective", "f.py:drawn", "--budget", "30", "--overwrite"]
    assert "would replace OUT" in refused(*words, "--page", "out")
    assert "is the source" in refused(*words, "--page", "run/checkpoint-20")
    assert Path("run/checkpoint-20/model.safetensors").exists()


def test_a_dry_run_reads_and_writes_nothing(desk):
    said = ran("combine", "run/checkpoint-*", "out", "--objective", "f.py:plain", "--dry-run")
    assert "checkpoints" in said
    assert "12" in said
    assert not Path("out").exists()
    assert not list(desk.glob(".out*"))
    few = refused("combine", "run/checkpoint-*", "out", "--objective", "f.py:plain", "--dry-run", "--groups", "layer",
                  "--search", "cma", "--budget", 20)  # fmt: skip
    assert "A budget of 20 evaluations cannot search 36 coefficients" in few
    assert "or no --groups" in few


def test_a_learning_rate_that_rises_again_is_told(desk):
    log = [{"step": step, "learning_rate": 0.3 * (1 - (step % 120) / 120)} for step in range(1, 241)]
    Path("run/checkpoint-240/trainer_state.json").write_text(json.dumps({"global_step": 240, "log_history": log}))
    said = ran("combine", "run/checkpoint-*", "out", "--objective", "f.py:drawn", "--budget", 30)
    assert "note: the learning rate rises again at step 120" in said
    falling = [{"step": step, "learning_rate": min(step / 20, 1) * (1 - step / 300)} for step in range(1, 241)]
    Path("run/checkpoint-240/trainer_state.json").write_text(json.dumps({"global_step": 240, "log_history": falling}))
    assert "note" not in ran("combine", "run/checkpoint-*", "new", "--objective", "f.py:drawn", "--budget", 30)


def test_what_is_refused(desk):
    def said(*words):
        return refused("combine", *words)

    assert "there is 1 checkpoint" in said("run/checkpoint-20", "out", "--objective", "f.py:plain")
    assert "How a toy is called" in said("run/checkpoint-*", "out", "--objective", "loss")
    assert "is no objective" in said("run/checkpoint-*", "out", "--objective", "lost")
    assert "There is no file g.py" in said("run/checkpoint-*", "out", "--objective", "g.py:f")
    assert "has no function 'plan'" in (text := said("run/checkpoint-*", "out", "--objective", "f.py:plan"))
    assert "plain" in text
    assert "raised ValueError: no such column" in (
        text := said("run/checkpoint-*", "out", "--objective", "f.py:broken")
    )
    assert "f.py:" in text
    assert "no finite number" in said("run/checkpoint-*", "out", "--objective", "f.py:nan")
    assert "objective is not given" in said("run/checkpoint-*", "out")
    for flag, value in (("--seeds", 0), ("--budget", 0), ("--workers", 0), ("--samples", 1)):
        text = said("run/checkpoint-*", "out", "--objective", "f.py:plain", flag, value)
        assert flag.strip("-") in text
    with pytest.raises(RekindleError, match="series is empty"):
        rekindle.combine([], Loss())
    assert "cannot search 12 coefficients" in said(
        "run/checkpoint-*", "out", "--objective", "f.py:plain", "--budget", "5"
    )
    assert "is none" in said("run/checkpoint-*", "out", "--objective", "fd", "--data", "x.npz")
    assert "is the source" in said("run/checkpoint-*", "run/checkpoint-20", "--objective", "f.py:plain", "--overwrite")
    Path("bad.py").write_text("import nothing_of_that_name\n")
    assert "bad.py cannot be run: ModuleNotFoundError" in said("run/checkpoint-*", "out", "--objective", "bad.py:f")
    Path("out").mkdir()
    Path("out/mine").touch()
    assert "not empty" in said("run/checkpoint-*", "out", "--objective", "f.py:plain")
    shutil.copytree("run/checkpoint-240", "run/checkpoint-260")
    assert "step-240 and step-260 are the same" in said("run/checkpoint-*", "new", "--objective", "f.py:plain")
    sick = load_file("run/checkpoint-240/model.safetensors")
    sick["0.weight"][0, 0] = float("nan")
    shutil.rmtree("run/checkpoint-260")
    save(Path("run/checkpoint-260"), sick)
    assert "0.weight of step-260 holds NaN" in said("run/checkpoint-*", "new", "--objective", "f.py:plain")


def test_the_loss_of_a_language_model_s_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    ran("init", "base", "--hidden", 16, "--layers", 2, "--heads", 2, "--tokenizer", "bpe:300", "-q")
    how = ["--seq-len", 32, "--batch-tokens", 512, "--schedule", "constant", "--lr", "1e-2", "-q"]
    ran(
        "train",
        "base",
        "trained",
        "--tokens",
        "20k",
        "--save-every",
        "2k",
        "--archive",
        "run.rk",
        *how,
        "--keep-averages",
    )
    ran("combine", "run.rk@*", "out", "--objective", "loss", "--seq-len", 32, "--batch-tokens", 1024, "--budget", 40,
        "--held-out-tokens", 16384)  # fmt: skip
    found = json.loads(Path("out/combine.json").read_text())
    row = next(row for row in found["rows"] if row["kind"] == found["result"])
    told = rekindle.evaluate("out", seq_len=32, tokens=16384)["loss"]
    assert told == pytest.approx(np.mean(row["reported"]["loss"]), rel=1e-3)
    last = next(row for row in found["rows"] if row["kind"] == "last")
    assert np.mean(row["reported"]["loss"]) < np.mean(last["reported"]["loss"])
    with pytest.raises(RekindleError, match="held-out text is"):
        rekindle.combine("run.rk@*", "loss", held_out_tokens=64, seq_len=32)
    how = {"seq_len": 32, "batch_tokens": 1024, "budget": 40, "held_out_tokens": 16384}
    kept = rekindle.combine("run.rk@*", "loss", averages="trained-averages", **how)
    row = next(row for row in kept.data["rows"] if row["kind"] == "kept EMA")
    kept.data["result"] = "kept EMA"
    assert {name for name, a in kept.coefficients.items() if a} == {row["name"]}
    told = rekindle.evaluate(kept.save("kept"), seq_len=32, tokens=16384)["loss"]
    assert told == pytest.approx(np.mean(row["reported"]["loss"]), rel=1e-3)
    rekindle.average("trained-averages", sigma=float(row["name"].split()[1])).save("average")
    assert hashes(Path("kept"))["model.safetensors"] == hashes(Path("average"))["model.safetensors"]
    assert kept.page("page").is_file()
    shutil.copytree("trained-averages/sigma-0.05/checkpoint-4", "early/sigma-0.05/checkpoint-4")
    early = refused("combine", "run.rk@*", "n", "--objective", "loss", "--averages", "early")
    assert "No average after step 39 can be made: kept were those of 4 to 4" in early
    assert "One average alone" in refused("average", "early", "n", "--sigma", 0.07)
    for kept_at in ("sigma-0.05/checkpoint-39", "sigma-0.10/checkpoint-4", "sigma-0.10/checkpoint-39"):
        shutil.copytree(f"trained-averages/{kept_at}", f"early/{kept_at}")
    between = ["combine", "run.rk@:19", "n", "--objective", "loss", "--averages", "early"]
    for words in (between, [*between, "--dry-run"]):
        what = refused(*words)
        assert "ends at step 16, and what the run kept comes near to no average of that step" in what
        assert "a series that ends at one of the steps 4, 39" in what
    models, _ = models_of("run.rk@*")
    costs = [priced(models, CombineConfig(objective="loss", averages=folder)) for folder in (None, "trained-averages")]
    assert [cost["bytes"] // (4 * cost["values"]) for cost in costs] == [10, 10 + len(kept.averages)]
    assert kept.averages
    words = ["combine", "run.rk@*", "trained-averages", "--objective", "loss", "--averages", "trained-averages"]
    assert "holds trained-averages, which is read" in refused(*words, "--overwrite")
    for by, groups in (("layer", ["0", "1"]), ("role", ["embed", "attn", "ffn", "norm", "head"])):
        found = rekindle.combine("run.rk@*", "loss", seq_len=32, batch_tokens=1024, budget=40, groups=by)
        assert sorted(found.coefficients) == sorted(groups)
        row = next(row for row in found.data["rows"] if row["kind"] == found.data["result"] == "combination")
        told = rekindle.evaluate(found.save(by), seq_len=32, tokens=65536)["loss"]  # what is written is what was told
        assert told == pytest.approx(np.mean(row["reported"]["loss"]), rel=1e-3)


def trained(tmp_path, monkeypatch, *, data: str, tokens: str = "4k") -> Path:
    """run.rk and trained, of a model that read so much of `data` in rows of 32 tokens, in the order of seed 5."""
    monkeypatch.chdir(tmp_path)
    said = [{"text": f"Sentence {i} is about {i * i} and nothing else."} for i in range(1500)]
    Path("text.jsonl").write_text("\n".join(map(json.dumps, said)))
    ran("init", "base", "--hidden", 16, "--layers", 1, "--heads", 2, "--tokenizer", "bpe:300", "--data", data, "-q")
    how = ["--seq-len", 32, "--batch-tokens", 512, "--schedule", "constant", "--lr", "1e-2", "--seed", 5, "-q"]
    ran("train", "base", "trained", "--data", data, "--tokens", tokens, "--archive", "run.rk", *how)
    return tmp_path / "trained"


def test_a_search_reads_text_behind_that_of_the_run(tmp_path, monkeypatch):
    folder = open_folder(trained(tmp_path, monkeypatch, data="text.jsonl"))

    def reading(objective="next-token", **options):
        config = CombineConfig(objective="loss", **{"data": "text.jsonl", **options})
        return reading_of(folder, config, objective, 512)

    read = read_manifest(folder.path).lineage[-1].tokens // 32
    assert reading() == Reading(32, 5, read)
    assert reading(data=str(tmp_path / "text.jsonl")).passed == read  # however it is named
    assert reading(skip=Count(100)) == Reading(32, 5, 3, asked=True)
    other = reading(data="stdlib")  # of a text that it has not read
    assert (other.seq_len, other.passed) == (512, 0)
    assert "knows of training on text.jsonl alone" in other.notes[0]
    assert reading(data="/elsewhere/text.jsonl").passed == read  # it is named from where a command was typed
    for other in (reading(seq_len=64), reading("span-corruption"), reading(text_column="said")):
        assert (other.passed, other.seed) == (0, 5)
        assert f"in other rows than of {other.seq_len}, or in another order" in other.notes[0]
    sizes = {"data": "text.jsonl", "batch_tokens": Count(512), "held_out_tokens": Count(1024)}
    loss = loss_of(folder, CombineConfig(objective="loss", **sizes)).function
    seen = {row.numpy().tobytes() for row in loss.objective.batch(0, read)["windows"]}
    for draw in (Draw(split, n, key=key) for split in ("search", "rerank") for n in range(50) for key in range(4)):
        assert seen.isdisjoint(row.numpy().tobytes() for row in loss.batch(draw)["windows"])
    ran("train", "trained", "further", "--data", "text.jsonl", "--tokens", "2k", "--archive", "further.rk",
        "--seq-len", 32, "--batch-tokens", 512, "--schedule", "constant", "--lr", "1e-2", "-q")  # fmt: skip
    models, _ = models_of(["further.rk@*", "run.rk@*"])  # which counts from 0 again
    archives = [model.given[""].partition("@")[0] for model in models.values()]
    assert archives == sorted(archives, reverse=True)
    assert len(set(archives)) == 2
    found = rekindle.combine("run.rk@*", "loss", **sizes, budget=8, skip=loss.objective.rows * 32)
    assert "--skip passes over" in found.data["notes"][0]
    assert "skip is -1: 0 is the least" in refused("combine", "run.rk@*", "n", "--objective", "loss", "--skip", -1)


def test_another_loss_than_the_family_s_own(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"en": f"the number {i}", "de": f"die Zahl {i}"} for i in range(900)]
    Path("pairs.jsonl").write_text("\n".join(map(json.dumps, rows)))
    ran("init", "base", "--family", "t5", "--hidden", 16, "--layers", 1, "--heads", 2, "--tokenizer", "bpe:300", "-q")
    of = ["--data", "pairs.jsonl", "--source-column", "en", "--target-column", "de", "--objective", "seq2seq"]
    how = ["--seq-len", 16, "--batch-tokens", 512, "--schedule", "constant", "--lr", "1e-2", "--tokens", "8k", "-q"]
    ran("train", "base", "trained", *of, *how, "--save-every", "2k", "--archive", "run.rk")
    ran("combine", "run.rk@*", "out", *of, "--budget", 10, "--batch-tokens", 512)
    found = json.loads(Path("out/combine.json").read_text())
    row = next(row for row in found["rows"] if row["kind"] == found["result"])
    of_pairs = {"data": "pairs.jsonl", "source_column": "en", "target_column": "de", "objective": "seq2seq"}
    told = rekindle.evaluate("out", **of_pairs, seq_len=16, tokens=65536)["loss"]
    assert found["objective"] == "seq2seq"
    assert told == pytest.approx(np.mean(row["reported"]["loss"]), rel=0.02)  # targets of parts are not equally many
    with pytest.raises(RekindleError, match="source_column is an option of seq2seq"):
        rekindle.combine("run.rk@*", "span-corruption", data="pairs.jsonl", source_column="en", budget=10)


def test_a_page_and_a_card_of_what_was_found(desk):
    said = ran("combine", "run/checkpoint-*", "out", "--objective", "f.py:drawn", "--budget", 40, "--page", "page",
               "--seeds", 2)  # fmt: skip
    assert "page: page/index.html" in said
    html, found = Path("page/index.html").read_text(), json.loads(Path("out/combine.json").read_text())
    assert {path.name for path in Path("page/figures").iterdir()} == {
        f"{name}.{kind}" for name in ("coefficients", "seeds") for kind in ("png", "svg", "csv")
    }
    for row in found["rows"]:
        assert f"{np.mean(row['reported']['loss']):.4g}" in html
        assert f"{np.mean(row['reported']['loss']):.4g}" in Path("out/README.md").read_text()
    drawn = Path("page/figures/coefficients.csv").read_text().splitlines()
    assert len(drawn) == 1 + 12 * (1 + len({"EMA", "combination", found["result"]}))
    ran("combine", "run/checkpoint-*", "own", "--objective", "f.py:drawn", "--budget", 40, "--page", "grouped",
        "--groups", "layer")  # fmt: skip
    assert "in each of 3 groups" in Path("grouped/index.html").read_text()
    assert len(Path("grouped/figures/groups.csv").read_text().splitlines()) == 1 + 12 * 3
    assert "not empty" in refused("combine", "run/checkpoint-*", "new", "--objective", "f.py:drawn", "--page", "page")
    ran("rewrite", "out", "copy")  # what was searched for is said of this model alone
    assert not Path("copy/combine.json").exists()
