"""A config.json alone is enough to price a plan, whatever its size, and for nothing else."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from tiny_models import FAMILIES

from rekindle import api
from rekindle.anatomy import FAMILIES as TABLES
from rekindle.cli.verbs import rekindle
from rekindle.errors import RekindleError
from rekindle.methods import METHODS

CONFIGS = Path(__file__).parents[2] / "docs" / "configs"


@pytest.fixture
def bare(tiny, tmp_path):
    """The config of a tiny llama, without its weights."""
    (tmp_path / "bare").mkdir()
    shutil.copy(tiny("llama", dtype="bfloat16") / "config.json", tmp_path / "bare")
    return tmp_path / "bare"


def said(*words) -> dict:
    ran = CliRunner().invoke(rekindle, [*map(str, words), "--format", "json"])
    assert ran.exit_code == 0, ran.exception
    return json.loads(ran.stdout)


# -- as with the weights ---------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "family", [name for name in FAMILIES if not TABLES[name].opaque]
)  # of which a config says nothing
def test_a_config_prices_what_the_weights_would(tiny, tmp_path, family):
    whole, bare = tiny(family), tmp_path / "bare"
    bare.mkdir()
    shutil.copy(whole / "config.json", bare)
    tried = 0
    for verb, method in METHODS.items():
        flags = [word for name, value in method.trial.items() for word in (f"--{name.replace('_', '-')}", value)]
        with_weights = CliRunner().invoke(
            rekindle, [verb, str(whole), "O", *map(str, flags), "--dry-run", "--format", "json"]
        )
        without = CliRunner().invoke(
            rekindle, [verb, str(bare), "O", *map(str, flags), "--dry-run", "--format", "json"]
        )
        assert type(without.exception) is type(with_weights.exception), verb
        if with_weights.exit_code == 0:
            expected, found = json.loads(with_weights.stdout), json.loads(without.stdout)
            assert "only a config.json" in found["notes"][0]
            assert {**found, "notes": found["notes"][1:]} == expected, verb
            tried += 1
    assert tried


def test_a_file_of_any_name_will_do(bare):
    (bare / "config.json").rename(bare / "llama-1t.json")
    by_file = said("upcycle", bare / "llama-1t.json", "OUT", "--experts", 4, "--dry-run")
    (bare / "llama-1t.json").rename(bare / "config.json")
    by_folder = said("upcycle", bare, "OUT", "--experts", 4, "--dry-run")
    assert by_file == by_folder
    assert by_file == said("upcycle", bare / "config.json", "OUT", "--experts", 4, "--dry-run")


@pytest.mark.parametrize(("dtype", "bits"), [("bfloat16", 16), ("float32", 32), (None, 32)])
def test_every_tensor_has_the_configs_dtype(bare, dtype, bits):
    config = json.loads((bare / "config.json").read_text())
    config = {key: value for key, value in config.items() if key not in ("dtype", "torch_dtype")}
    (bare / "config.json").write_text(json.dumps(config | ({"dtype": dtype} if dtype else {})))
    plan = said("rewrite", bare, "OUT", "--dry-run")
    assert plan["bytes"] == plan["parameters"]["total"] * bits // 8


def test_a_dtype_that_is_none(bare):
    config = json.loads((bare / "config.json").read_text())
    (bare / "config.json").write_text(json.dumps(config | {"torch_dtype": "float7", "dtype": "float7"}))
    with pytest.raises(RekindleError, match="torch_dtype is 'float7', which is no dtype of torch"):
        api.open(bare)


def test_inspect_shows_it(bare):
    data = said("inspect", bare)
    assert data["shards"] == []
    assert "only a config.json" in data["notes"][0]
    assert data["can"]["upcycle"].startswith("yes")


# -- and for nothing else --------------------------------------------------------------------------------------


def test_nothing_is_written_of_a_config(bare, tiny):
    recipe = bare / "recipe.yaml"
    recipe.write_text(f"source: {bare}\nsteps:\n- upcycle: {{experts: 4}}\n")
    for words in (
        ["upcycle", bare, bare.parent / "out", "--experts", "4"],
        ["upcycle", bare, bare.parent / "out", "--experts", "4", "--part", "1/2"],
        ["run", recipe, bare.parent / "out"],
        ["verify", bare, "--against", tiny("llama")],
        ["verify", tiny("llama"), "--against", bare],
    ):
        ran = CliRunner().invoke(rekindle, list(map(str, words)))
        assert isinstance(ran.exception, RekindleError), words
        assert ran.exception.what == f"{bare} is only a config.json: there are no weights to read."
        assert "--dry-run" in ran.exception.hint
    assert {path.name for path in bare.parent.iterdir()} == {"bare"}


@pytest.mark.parametrize("words", [["inspect", "SRC", "--nan"], ["evaluate", "SRC"], ["train", "SRC", "OUT"]])
def test_what_needs_weights_says_that_there_are_none(bare, words):
    ran = CliRunner().invoke(rekindle, [word.replace("SRC", str(bare)) for word in words])
    assert isinstance(ran.exception, RekindleError), words


def test_a_json_file_that_is_no_config(tmp_path):
    (tmp_path / "x.json").write_text("[]")
    with pytest.raises(RekindleError, match="must hold a JSON object"):
        api.open(tmp_path / "x.json")
    (tmp_path / "x.json").write_text("{}")
    with pytest.raises(RekindleError, match="no model_type"):
        api.open(tmp_path / "x.json")
    with pytest.raises(RekindleError, match="does not exist"):
        api.open(tmp_path / "y.json")


# -- at full size ----------------------------------------------------------------------------------------------

PUBLISHED = {"llama-3-70b": (70.6e9, 70.6e9), "deepseek-v3": (671e9, 37e9)}  # as their reports say


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_configs_of_the_docs_have_the_published_size(name):
    found = api.inspect(CONFIGS / f"{name}.json")["parameters"]
    total, active = PUBLISHED[name]
    assert found["total"] == pytest.approx(total, rel=1e-3)
    assert found["active"] == pytest.approx(active, rel=0.02)


@pytest.mark.slow
def test_a_plan_of_90_000_tensors_takes_seconds_and_little_memory():
    """671B parameters, every expert twice."""
    code = (
        "import resource; from rekindle.cli import main\n"
        "try: main()\nexcept SystemExit: pass\n"
        "use = resource.getrusage(resource.RUSAGE_SELF)\n"
        "print(use.ru_utime + use.ru_stime, use.ru_maxrss / 1000)"
    )
    words = ["grow-experts", str(CONFIGS / "deepseek-v3.json"), "OUT", "--factor", "2", "--dry-run"]
    # what pytest forks counts pytest's memory as its own; what a shell forks counts the shell's
    command = ["/bin/sh", "-c", '"$@"; exit $?', "sh", sys.executable, "-c", code, *words]
    ran = subprocess.run(command, capture_output=True, text=True, check=True)
    seconds, megabytes = map(float, ran.stdout.splitlines()[-1].split())
    assert "1.33T parameters" in ran.stdout
    assert seconds < 10
    assert megabytes < 400
