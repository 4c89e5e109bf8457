"""Merge as it is typed and called: what SRC may be, what is refused and how, what is said of the result."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml
from api.commands import ran, typed
from store.folders import TINY_LLAMA, hashes, llama_tensors, write_llama

import rekindle
from rekindle import api
from rekindle.errors import CheckFailed, RekindleError
from rekindle.store.header import build_header, read_header
from rekindle.store.manifest import read_manifest


def other(folder: Path, seed: int, **config) -> Path:
    """A llama that differs from the others in the last values of each tensor."""
    tensors = {
        name: (dtype, shape, data[:-8] + bytes([seed, 60, seed, 61, seed, 62, seed, 63]))
        for name, (dtype, shape, data) in llama_tensors(config=TINY_LLAMA | config).items()
    }
    return write_llama(folder, tensors=tensors, **config)


TOWER = {"switch_transformers": {"tower": "encoder"}}


@pytest.fixture
def desk(tmp_path, monkeypatch):
    """one, two, base; run/checkpoint-200, -1000 and -30."""
    monkeypatch.chdir(tmp_path)
    for seed, name in enumerate(
        ("one", "two", "base", "run/checkpoint-200", "run/checkpoint-1000", "run/checkpoint-30")
    ):
        other(tmp_path / name, seed + 1)
    return tmp_path


def priced(*words: object) -> dict:
    done = typed("merge", *words, "--dry-run", "--format", "json")
    assert done.exit_code == 0, (done.output, done.exception)
    return json.loads(done.stdout)


# -- what SRC may be -------------------------------------------------------------------------------------------------


def test_a_pattern_is_the_same_quoted_or_not(desk):
    ran("merge", "run/checkpoint-*", "quoted", "--how", "ema", "--decay", "0.5")
    by_the_shell = sorted(map(str, Path("run").iterdir()))
    assert by_the_shell == [f"run/checkpoint-{step}" for step in (1000, 200, 30)]
    ran("merge", *by_the_shell, "expanded", "--how", "ema", "--decay", "0.5")
    assert hashes(Path("quoted")) == hashes(Path("expanded"))
    assert Path("quoted/rekindle.yaml").read_text() == Path("expanded/rekindle.yaml").read_text()
    in_order = [f"run/checkpoint-{step}" for step in (30, 200, 1000)]
    rekindle.merge(in_order, weights=(0.25, 0.25, 0.5)).save("typed")
    assert hashes(Path("typed")) == hashes(Path("quoted"))
    rekindle.merge("run", how="mean", last=2).save("folder")
    rekindle.merge(in_order[1:]).save("two-of-them")
    assert hashes(Path("folder")) == hashes(Path("two-of-them"))


def test_the_last_of_a_series_are_all_that_is_read_and_said(desk):
    out = rekindle.merge("run/checkpoint-*", how="wsm", last=2).save("out")
    sources = yaml.safe_load((out / "rekindle.yaml").read_text())["sources"]
    assert sources == {"step-200": "run/checkpoint-200", "step-1000": "run/checkpoint-1000"}
    assert list(read_manifest(out).lineage[-1].sources) == list(sources)
    again = rekindle.run(out / "rekindle.yaml", "again")
    assert hashes(again) == hashes(out)
    with pytest.raises(RekindleError, match="The last 4 are asked for, and there are 3 checkpoints"):
        rekindle.merge("run/checkpoint-*", how="wsm", last=4)


def test_a_series_out_of_an_archive(desk):
    rekindle.pack([f"run/checkpoint-{step}" for step in (30, 200, 1000)], "run.rk")
    ran("merge", "run.rk@*", "packed", "--how", "mean")
    ran("merge", "run/checkpoint-*", "plain", "--how", "mean")
    assert hashes(Path("packed")) == hashes(Path("plain"))
    ran("merge", "run.rk@100:", "late", "--how", "mean")
    assert hashes(Path("late")) == hashes(rekindle.merge("run/checkpoint-*", how="mean", last=2).save("late-too"))
    assert hashes(rekindle.run("late/rekindle.yaml", "again")) == hashes(Path("late"))


def test_python_takes_lists_mappings_and_models(desk):
    by_list = rekindle.merge(["one", "two"], weights=(0.3, 0.7)).save("list")
    by_name = rekindle.merge({"a": "one", "b": Path("two")}, weights=["0.3", "0.7"]).save("names")
    by_model = rekindle.merge([rekindle.open("one"), "two"], weights=[0.3, 0.7]).save("models")
    assert hashes(by_list) == hashes(by_name) == hashes(by_model)
    assert yaml.safe_load((by_name / "rekindle.yaml").read_text())["sources"] == {"a": "one", "b": "two"}
    over = rekindle.merge({"a": "one", "b": "two"}, how="task", base="base").save("over")
    assert hashes(rekindle.run(over / "rekindle.yaml", "again")) == hashes(over)
    merged = rekindle.merge([rekindle.merge(["one", "two"]), "base"])
    assert merged.checkpoint.sources.keys() == {"s1/s1", "s1/s2", "s2"}
    assert hashes(merged.save("nested")) == hashes(
        rekindle.merge([rekindle.merge(["one", "two"]).save("half"), "base"]).save("by-disk")
    )
    assert hashes(rekindle.run("nested/rekindle.yaml", "nested-again")) == hashes(Path("nested"))


def test_a_recipe_that_was_printed_does_the_same(desk):
    words = ("merge", "one", "two", "out", "--how", "ties", "--base", "base", "--density", "0.3", "--weights", "2,1")
    Path("recipe.yaml").write_text(ran(*words, "--print-config"))
    ran(*words)
    ran("run", "recipe.yaml", "again")
    assert hashes(Path("out")) == hashes(Path("again"))
    assert Path("out/rekindle.yaml").read_text() == Path("again/rekindle.yaml").read_text()


def test_options_from_a_file_and_a_base_in_it(desk):
    Path("how.yaml").write_text(
        "how: task\nbase: base\nweights: [0.5, '1:0']\nby_role: {attn.q: [1, 0], ffn: [0, 1]}\n"
    )
    ran("merge", "one", "two", "out", "--config", "how.yaml")
    assert list(yaml.safe_load(Path("out/rekindle.yaml").read_text())["sources"]) == ["s1", "s2", "base"]
    by_role = {"attn.q": (1, 0), "ffn": (0, 1)}
    same = rekindle.merge(["one", "two"], how="task", base="base", weights=(0.5, "1:0"), by_role=by_role)
    assert hashes(same.save("same")) == hashes(Path("out"))


def test_a_recipe_need_not_list_the_base(desk):
    def recipe(base: str) -> str:
        merge = {"merge": {"how": "task", "base": base}, "of": ["one", "two"], "as": "both"}
        steps = [{"rewrite": {}, "of": "one"}, merge, {"gqa": {"kv_heads": 1}}]
        sources = {"one": "one", "two": "two", "base": "base"}
        Path("recipe.yaml").write_text(yaml.safe_dump({"sources": sources, "steps": steps}))
        return "recipe.yaml"

    ran("run", recipe("base"), "out")
    merged = rekindle.merge(["one", "two"], how="task", base="base")
    same = rekindle.gqa(merged, kv_heads=1).save("same")
    assert (same / "model.safetensors").read_bytes() == Path("out/model.safetensors").read_bytes()
    assert "No source is called bse, the base." in str(typed("run", recipe("bse"), "no").exception)


def test_a_series_in_a_recipe_is_all_of_it_until_something_is_made_of_it(desk):
    steps = [
        {"merge": {"how": "mean"}, "of": "run", "as": "run"},
        {"merge": {"weights": [0.25, 0.75]}, "of": ["one", "run"]},
    ]
    sources = {"one": "one", "run": "run/checkpoint-*"}
    Path("recipe.yaml").write_text(yaml.safe_dump({"sources": sources, "steps": steps}))
    ran("run", "recipe.yaml", "out")
    mean = rekindle.merge("run/checkpoint-*", how="mean").save("mean")
    assert hashes(rekindle.merge(["one", mean], weights=(0.25, 0.75)).save("same")) == hashes(Path("out"))
    assert hashes(rekindle.run("out/rekindle.yaml", "again")) == hashes(Path("out"))


# -- what is refused -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"how": "task"}, "--how task needs the model they were trained from"),
        ({"base": "base"}, "--base would have no effect with --how linear"),
        ({"weights": (1, -1)}, "sum to 0"),
        ({"weights": (1, -1), "any_sum": True}, "sum to 0"),
        ({"weights": (1, -1), "normalize": True}, "cannot be divided by it"),
        ({"weights": (1, 1)}, "sum to 2, not to 1"),
        ({"weights": ("0:1", 1)}, "of ffn.* of layer 1 sum to 2, not to 1|sum to 2, not to 1"),
        ({"weights": (1,)}, "weights has 1 weight for 2 sources"),
        ({"weights": (0.3, 0.3, 0.4)}, "weights has 3 weights for 2 sources"),
        ({"weights": ("a", 1)}, "which is no number"),
        ({"weights": ("nan", 1)}, "which is no number"),
        ({"how": "slerp", "weights": (1, 0)}, "--weights would have no effect with --how slerp"),
        ({"how": "slerp", "t": 1.5}, "t is beyond"),
        ({"how": "slerp", "by_role": {"attn": (-0.1,)}}, "t is beyond"),
        ({"how": "mean", "decay": 0.5}, "--decay would have no effect with --how mean"),
        ({"how": "ema", "decay": 1.0}, "decay is 1.0"),
        ({"how": "ties", "base": "base", "density": 0.0}, "density is 0.0"),
        ({"how": "breadcrumbs", "base": "base", "gamma": 0.6}, "gamma is 0.6"),
        ({"how": "ties", "base": "base", "weights": (1, -1)}, "ties takes weights from 0 on"),
        ({"how": "ties", "base": "base", "weights": (0, 0)}, "The weights of embed are all 0"),
        ({"how": "karcher", "normalize": True, "weights": (0, 0)}, "The weights of embed are all 0"),
        ({"how": "karcher", "weights": (1.5, -0.5)}, "karcher takes weights from 0 on"),
        ({"by_role": {"atn": (1, 0)}}, "by_role has 'atn'"),
        ({"how": "task", "base": "run"}, "The base is run, 3 checkpoints"),
        ({"how": "task", "base": "base", "lambda_": float("inf")}, "lambda is inf"),
    ],
    ids=str,
)
def test_options_that_cannot_be_are_refused(desk, options, words):
    with pytest.raises(RekindleError, match=words) as refused:
        rekindle.merge(["one", "two"], **options)
    assert refused.value.hint


@pytest.mark.parametrize(
    ("config", "words"),
    [
        ({"num_hidden_layers": 3}, "one has num_layers 2, the other has num_layers 3"),
        ({"hidden_size": 64}, "one has hidden_size 32, the other has hidden_size 64"),
        ({"vocab_size": 65}, "one has vocab_size 64, the other has vocab_size 65"),
        ({"rope_theta": 5e5}, "rope_theta"),
        ({"rms_norm_eps": 1e-6}, "norm_eps"),
        ({"tie_word_embeddings": True}, "tie_word_embeddings"),
    ],
    ids=str,
)
def test_models_that_are_not_alike_are_refused(desk, config, words):
    other(desk / "unlike", 9, **config)
    with pytest.raises(RekindleError, match=words) as refused:
        rekindle.merge(["one", "unlike"])
    assert "unlike" in str(refused.value.where)


def test_another_depth_is_one_difference(tiny, desk):
    """What each layer has follows from it."""
    for family in ("gemma3_text", "switch_transformers"):
        deeper = rekindle.grow_depth(tiny(family), layers=5, order="stack", **TOWER.get(family, {})).save(family)
        with pytest.raises(RekindleError) as refused:
            rekindle.merge([tiny(family), deeper])
        before, tower = (4, " in the encoder") if family in TOWER else (3, "")
        said = f"one has num_layers {before}, the other has num_layers 5{tower}"
        assert refused.value.what == f"These models differ: {said}."


def test_other_dtypes_families_and_numbers_of_sources(desk):
    rekindle.rewrite("two", dtype="float32").save("wide")
    with pytest.raises(RekindleError, match=r"Dtypes differ: BF16 and F32") as refused:
        rekindle.merge(["one", "wide"])
    assert "rewrite" in refused.value.hint
    (desk / "gpt2").mkdir()
    (desk / "gpt2" / "config.json").write_text('{"model_type": "gpt2", "n_embd": 32, "n_head": 4, "n_layer": 2}')
    with pytest.raises(RekindleError, match="A llama and a gpt2 cannot be merged"):
        rekindle.merge(["one", "gpt2"])
    with pytest.raises(RekindleError, match="linear needs 2 sources or more, not 1"):
        rekindle.merge("one")
    with pytest.raises(RekindleError, match="SLERP is between two models, not 3"):
        rekindle.merge("run", how="slerp")
    with pytest.raises(RekindleError, match="stock needs 2 sources or more"):
        rekindle.merge("one", how="stock", base="base")
    assert rekindle.merge("one", how="task", base="base").checkpoint.promise.exact
    with pytest.raises(RekindleError, match=r"Nothing is called nothing-\*"):
        rekindle.merge("nothing-*")
    with pytest.raises(RekindleError, match="is called base, and so is the base"):
        rekindle.merge({"base": "one", "b": "two"}, how="task", base="base")


def test_codes_are_not_added_up(tmp_path):
    for name in ("one", "two"):
        write_llama(tmp_path / name, tensors={"x": ("F8_E4M3", (2, 2), b"1234")}, model_type="unheard-of")
    with pytest.raises(RekindleError, match="These weights are F8_E4M3: codes cannot be added up"):
        rekindle.merge([tmp_path / "one", tmp_path / "two"])


def test_one_folder_twice_is_told(desk):
    assert "2 of the sources are one folder" in ran("merge", "one", "./one", "two", "out", "--dry-run")


def test_nothing_is_left_of_what_has_nan(desk):
    """In the pass that measures, or in what was written: neither OUT nor anything hidden beside it."""
    odd = {"model.norm.weight": b"\xc0\x7f"}  # NaN; all others infinity
    tensors = {n: (d, s, odd.get(n, b"\x80\x7f") + b[2:]) for n, (d, s, b) in llama_tensors().items()}
    write_llama(desk / "bad", tensors=tensors)
    before = sorted(os.listdir(desk))
    with pytest.raises(CheckFailed, match="are NaN or infinite") as failed:
        rekindle.merge(["one", "bad"]).save("out")
    assert "a source has such values" in failed.value.why
    assert "inspect bad --nan" in failed.value.hint
    for how in ({"how": "ties", "density": 1.0}, {"how": "dare", "density": 0.01}, {"how": "task", "lambda_": 0.5}):
        with pytest.raises(CheckFailed, match="are NaN or infinite"):
            rekindle.merge(["one", "bad"], base="base", **how).save("out")
    for how, over in (("slerp", {}), ("karcher", {}), ("ties", {"base": "base"}), ("stock", {"base": "base"})):
        with pytest.raises(RekindleError, match="has NaN or infinite values") as refused:
            rekindle.merge(["one", "bad"], how=how, **over).save("out")
        assert "inspect" in refused.value.hint
        assert str(refused.value.where).endswith(" of bad")
        assert refused.value.hint == "rekindle inspect bad --nan"
    with pytest.raises(RekindleError, match="where: .* of bad"):
        rekindle.merge(["one", "two"], how="breadcrumbs", base="bad").save("out")
    assert typed("merge", "bad", "one", "out", "--part", "1/2").exit_code == 1
    assert sorted(os.listdir(desk)) in (before, sorted([*before, "out"]))
    assert not list(desk.glob(".out*"))


def test_a_step_is_called_what_it_was_given_as(desk):
    """Not the folder where it lies until the command ends."""
    tensors = llama_tensors()
    dtype, shape, data = tensors["model.norm.weight"]
    write_llama(
        desk / "run/checkpoint-5", tensors=tensors | {"model.norm.weight": (dtype, shape, b"\xc0\x7f" + data[2:])}
    )
    rekindle.pack([f"run/checkpoint-{step}" for step in (5, 30)], "run.rk")
    with pytest.raises(RekindleError, match="has NaN") as refused:
        rekindle.merge(["run.rk@30", "run.rk@5"], how="slerp").save("out")
    assert refused.value.where == "model.norm.weight of run.rk@5"
    other(desk / "deep", 1, num_hidden_layers=3)
    with pytest.raises(RekindleError, match="where: run.rk@30 and deep"):
        rekindle.merge(["run.rk@30", "deep"])


@pytest.mark.parametrize("out", ["one", "two", "base", "run/..", "two/inner"])
def test_out_is_none_of_the_sources(desk, out):
    refused = typed("merge", "one", "two", out, "--how", "task", "--base", "base", "--overwrite")
    assert isinstance(refused.exception, RekindleError)
    for name in ("one", "two", "base"):
        assert (desk / name / "model.safetensors").exists()


@pytest.mark.parametrize("which", ["one", "two", "base"])
@pytest.mark.parametrize("how", ["task", "ties"])
def test_a_source_that_changes_meanwhile_is_refused(desk, which, how):
    def change(done, said=[]):  # noqa: B006
        if not said:
            path = desk / which / "model.safetensors"
            said.append(path.write_bytes(path.read_bytes()[:-8] + bytes(8)))

    with pytest.raises(RekindleError, match="The source was changed while it was read") as refused:
        rekindle.merge(["one", "two"], how=how, base="base").save("out", progress=change)
    assert Path(refused.value.where).parent.name == which
    assert not list(desk.glob("*out*"))


# -- how it is written and what is said -------------------------------------------------------------------------------


COMMAND = """
import signal
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell that runs pytest in the background ignores it
from rekindle.cli import main
main()
"""


@pytest.mark.slow
def test_ctrl_c_and_resume(desk):
    """Interrupted in the write, and finished by the same command with --resume."""
    big = {"hidden_size": 256, "intermediate_size": 1024, "num_hidden_layers": 4, "vocab_size": 4000}
    for seed, name in enumerate(("a", "b", "c")):
        other(desk / name, seed + 3, **big)
    words = [sys.executable, "-c", COMMAND, "merge", "a", "b", "out", "--how", "ties", "--base", "c"]
    words += ["--max-shard-size", "300kB", "--workers", "1", "--progress", "off", "--checksum"]
    process = subprocess.Popen(words, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    while process.poll() is None and not list(desk.glob(".out.partial/*.safetensors")):
        time.sleep(0.005)
    process.send_signal(signal.SIGINT)
    _, said = process.communicate(timeout=60)
    assert process.returncode == 130, said
    assert not (desk / "out").exists()
    subprocess.run([*words, "--resume"], check=True, capture_output=True)
    whole = rekindle.merge(["a", "b"], how="ties", base="c").save("whole", max_shard_size="300kB")
    assert hashes(whole) == hashes(desk / "out")
    assert len(list(api.checksums(desk / "out"))) > 9


def test_a_dry_run_prices_the_passes_and_names_what_is_not_read(desk):
    ties = priced("one", "two", "out", "--how", "ties", "--base", "base")
    stored = sum(x.nbytes for x in rekindle.open("one").checkpoint.folder.tensors.values())
    assert ties["measured"]["bytes"] == 2 * 2 * 2 * stored  # two tensors, of two sources, twice
    assert priced("one", "two", "out", "--how", "slerp")["measured"]["bytes"] == 2 * stored
    human = ran("merge", "one", "two", "out", "--weights", "1,0", "--dry-run")
    assert "dropped: s2:lm_head.weight" in human
    assert "exact: the child is one of the sources" in human


def test_nan_is_not_taken_for_agreement(desk):
    """TIES asks for signs, and NaN has none: it must not vanish into the base."""
    tensors = llama_tensors()
    dtype, shape, data = tensors["model.norm.weight"]
    write_llama(desk / "bad", tensors=tensors | {"model.norm.weight": (dtype, shape, b"\xc0\x7f" + data[2:])})
    with pytest.raises(CheckFailed, match=r"^1 computed value is NaN"):
        rekindle.merge(["one", "bad"], how="ties", base="base", density=1.0).save("out")


def test_a_copy_is_compared_with_what_it_is_a_copy_of(desk):
    assert "next:  rekindle verify out --against two\n" in ran("merge", "one", "two", "out", "--weights", "0,1")
    assert "next:  rekindle verify sum --against one\n" in ran("merge", "one", "two", "sum")
    base = ("--how", "task", "--base", "base", "--lambda", "0")
    assert "next:  rekindle verify none --against base\n" in ran("merge", "one", "two", "none", *base)
    pooled = rekindle.merge([rekindle.gqa("one", kv_heads=1), rekindle.gqa("two", kv_heads=1)], weights=(0, 1))
    assert not pooled.checkpoint.promise.exact


def test_measurements_are_those_of_the_same_sources(desk):
    """Tensors of several are known by the names of their sources in the plan: s1, s2."""
    out = rekindle.merge(["one", "two"], how="slerp").save("out")
    again = rekindle.merge(["one", "two"], how="slerp").save("again", measurements=str(out))
    assert hashes(again) == hashes(out)
    for others in (["two", "one"], ["one", "base"]):
        with pytest.raises(RekindleError, match="What was measured there is of one, two, not of") as refused:
            rekindle.merge(others, how="slerp").save("no", measurements=str(out))
        assert refused.value.hint


def test_measurements_are_of_the_files_that_were_measured(desk):
    """Other weights under the same name are none of theirs; a copy is, under whatever name."""
    out = rekindle.merge(["one", "two"], how="slerp").save("out")
    again = rekindle.merge([desk / "one", desk / "two"], how="slerp").save("again", measurements=str(out))
    assert hashes(again) == hashes(out)
    for name in ("one", "two"):
        shutil.copytree(name, f"elsewhere/{name}")
        for file in Path("elsewhere", name).iterdir():
            os.utime(file, (1, 1))
            file.chmod(0o600)
    moved = rekindle.merge(["elsewhere/one", "elsewhere/two"], how="slerp").save("moved", measurements=str(out))
    anew = rekindle.merge(["elsewhere/one", "elsewhere/two"], how="slerp").save("anew")
    for result in (moved, anew):
        assert hashes(result) == hashes(out)
        assert hashes(result / "measurements") == hashes(out / "measurements")
    parts = [rekindle.merge(["one", "two"], how="slerp").save("joined", part=f"{i}/2") for i in (1, 2)]
    api.join(parts[0])
    for measured in ("out", "joined"):
        file = Path("two/model.safetensors")
        before, times = file.read_bytes(), file.stat()
        file.write_bytes(before[:-8] + bytes(8))
        os.utime(file, ns=(times.st_atime_ns, times.st_mtime_ns))  # as if it had not been written
        with pytest.raises(RekindleError, match="two is not what it was when it was measured there") as refused:
            rekindle.merge(["one", "two"], how="slerp").save("no", measurements=measured)
        assert refused.value.hint == "without --measurements"
        file.write_bytes(before)


def test_measurements_of_one_source_are_of_no_other(desk):
    out = rekindle.gqa("one", kv_heads=1, pool="aligned").save("out")
    assert rekindle.gqa("one", kv_heads=1, pool="aligned").save("again", measurements=str(out))
    with pytest.raises(RekindleError, match="What was measured there is of one, not of two"):
        rekindle.gqa("two", kv_heads=1, pool="aligned").save("no", measurements=str(out))
    other(desk / "one", 9)
    with pytest.raises(RekindleError, match="one is not what it was when it was measured there"):
        rekindle.gqa("one", kv_heads=1, pool="aligned").save("no", measurements=str(out))
    other(desk / "base", 1)  # what a result of before said nothing of is taken as it was
    found = Path("out/measurements/found.safetensors")
    tensors, metadata = read_header(found)
    assert list(metadata) == ["source "]
    data = found.read_bytes()[-sum(x.nbytes for x in tensors.values()) :]
    found.write_bytes(build_header({name: (x.dtype, x.shape) for name, x in tensors.items()}, {})[0] + data)
    assert rekindle.gqa("base", kv_heads=1, pool="aligned").save("trusted", measurements=str(out))


def test_measurements_of_a_step_are_of_that_step(desk):
    """However often an archive is unpacked, and whatever was added to it since."""
    rekindle.pack([f"run/checkpoint-{step}" for step in (30, 200)], "run.rk")
    out = rekindle.merge(["run.rk@30", "run.rk@200"], how="slerp").save("out")
    api.archive_add("run/checkpoint-1000", "run.rk")
    again = rekindle.merge(["run.rk@30", "run.rk@200"], how="slerp").save("again", measurements=str(out))
    assert hashes(again) == hashes(out)
    other(desk / "run/checkpoint-200", 9)
    rekindle.pack([f"run/checkpoint-{step}" for step in (30, 200)], "run.rk", overwrite=True)
    with pytest.raises(RekindleError, match="run.rk@200 is not what it was"):
        rekindle.merge(["run.rk@30", "run.rk@200"], how="slerp").save("no", measurements=str(out))


def test_memory_does_not_grow_with_a_series(desk):
    needed = [rekindle.merge(["one"] * count, how="mean").job().memory(2) for count in (2, 40)]
    assert needed[0] == needed[1]


def test_card_report_and_lineage_name_every_source(desk, monkeypatch):
    shutil.move("one", "first")
    out = rekindle.merge({"a": "first", "b": "two"}, how="task", base="base").save("out")
    card = (out / "README.md").read_text()
    assert "base_model_relation" not in card  # folders here are no models of the hub
    for name in ("first", "two", "base"):
        assert name in card
    record = read_manifest(out).lineage[-1]
    assert [source.source for source in record.sources.values()] == ["first", "two", "base"]
    assert "--base base" in record.command
    assert record.command.split()[:5] == ["rekindle", "merge", "first", "two", "out"]
    again = rekindle.merge([out, "two"]).save("again")
    lineage = read_manifest(again).lineage
    assert [len(one.sources) for one in lineage] == [3, 2]
    cites = {out: ["2212.04089"], again: ["2203.05482"]}  # the way's own paper
    for folder, numbers in cites.items():
        assert re.findall(r"https://arxiv.org/abs/(\S+)", (folder / "README.md").read_text()) == numbers
    rekindle.verify(again, against="two")  # which writes the card anew, with all steps behind it
    assert re.findall(r"https://arxiv.org/abs/(\S+)", (again / "README.md").read_text()) == ["2212.04089", "2203.05482"]
    assert "merge" in ran("inspect", "again")
