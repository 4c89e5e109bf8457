"""The command line as a new user meets it: results on stdout, all else on stderr, exit codes, sentences."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import time

import pytest
from click.testing import CliRunner
from safetensors.torch import load_file, save_file

from rekindle import api
from rekindle.cli.verbs import rekindle as verbs


def rekindle(*words, cwd=None, **environment):
    command = [sys.executable, "-m", "rekindle", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=os.environ | environment)


def refused(*words, **how):
    ran = rekindle(*words, **how)
    assert ran.returncode == 2, ran.stderr
    assert ran.stdout == ""
    assert "Traceback" not in ran.stderr
    return ran.stderr


def test_results_go_to_stdout_and_the_rest_to_stderr(tiny, tmp_path):
    ran = rekindle("upcycle", tiny("llama"), tmp_path / "out", "--experts", 4)
    assert ran.returncode == 0
    assert ran.stdout.splitlines()[0].startswith(f"{tmp_path / 'out'}: mixtral, 4 experts, top-2")
    assert "next:  rekindle verify" in ran.stderr
    assert "\x1b" not in ran.stdout + ran.stderr
    assert "%|" not in ran.stderr  # no progress bar where nobody watches


def test_json_is_json(tiny, tmp_path):
    out = tmp_path / "out"
    dry = rekindle("upcycle", tiny("llama"), out, "--experts", 4, "--dry-run", "--format", "json")
    plan = json.loads(dry.stdout)
    assert plan["fates"]["copied"]["tensors"] == 57
    assert plan["promise"]["kind"] == "exact"
    assert plan["config"]["num_local_experts"] == 4
    assert not out.exists()
    done = json.loads(rekindle("upcycle", tiny("llama"), out, "--experts", 4, "--format", "json").stdout)
    assert done["bytes"] == plan["bytes"]
    assert json.loads(rekindle("inspect", out, "--format", "json").stdout)["experts"]["count"] == 4
    verdict = json.loads(rekindle("verify", out, "--against", tiny("llama"), "--tokens", 64, "--format", "json").stdout)
    assert verdict["held"] is True
    assert json.loads(rekindle("env", "--format", "json").stdout)["torch"].startswith("2.")


def test_a_measurement_does_not_sound_like_a_promise_kept(tiny, tmp_path):
    """What is lossy first tells what it cost."""
    parent, said = tiny("llama"), {}
    for name, model in {
        "exact": api.rewrite(parent),
        "lossy": api.gqa(parent, kv_heads=1),
    }.items():
        words = ["verify", str(model.save(tmp_path / name)), "--against", str(parent), "--tokens", "64"]
        said[name] = CliRunner().invoke(verbs, words).stdout.splitlines()
    for lines in said.values():
        assert re.match(r"loss +[\d.]+ before, [\d.]+ after", lines[0])
    assert said["exact"][1].split() == ["promise", "exact,", "held"]
    assert said["lossy"][1].split(maxsplit=1) == ["promise", "lossy: measured, nothing promised to hold"]


def test_every_value_that_is_no_default_is_echoed_with_its_origin(tiny, tmp_path):
    (tmp_path / "c.yaml").write_text("experts: 4\nseed: 7\n")
    ran = rekindle("upcycle", tiny("llama"), tmp_path / "o", "--config", tmp_path / "c.yaml", "--seed", 3, "--dry-run")
    lines = {line.split()[0]: line.split()[1:] for line in ran.stderr.splitlines() if line.startswith("  ")}
    assert lines["experts"] == ["4", "file"]
    assert lines["seed"] == ["3", "flag"]  # flags win over the file
    assert lines.keys() == {"experts", "seed", "..."}
    assert lines["..."][0] == "and"
    assert " ".join(lines["..."][2:]) == "defaults: --help shows them"


def test_print_config_is_a_recipe(tiny, tmp_path):
    ran = rekindle("upcycle", tiny("llama"), tmp_path / "out", "--experts", 4, "--print-config")
    (tmp_path / "recipe.yaml").write_text(ran.stdout)
    assert rekindle("run", tmp_path / "recipe.yaml", tmp_path / "out").returncode == 0
    assert str(tmp_path / "out") not in ran.stdout


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["upcycle", "SRC", "OUT"], "--experts ..."),
        (["upcycle", "SRC", "OUT", "--expert", "4"], "No such option '--expert'"),
        (["upcycle", "SRC", "OUT", "--experts", "many"], "experts is 'many', but it must be a whole number"),
        (["upcycle", "SRC", "OUT", "--experts", "4", "--target", "gpt"], "it must be one of auto, mixtral"),
        (["upcycle", "SRC", "OUT", "--experts", "4", "--max-shard-size", "big"], "a size such as 500MB"),
        (["upcycle", "SRC", "OUT", "--experts", "4", "--config", "gone.yaml"], "No such file"),
        (["upcycle", "SRX", "OUT", "--experts", "4"], "SRX does not exist"),
        (["upcycle", "SRC", "OUT", "--experts", "4", "--optimizer-state", "SRC"], "holds no optimizer state"),
        (["upcyle", "SRC", "OUT"], "Did you mean upcycle?"),
        (["run", "gone.yaml", "OUT"], "No such file"),
        (["verify", "SRC"], "--against SRC"),
        (["verify", "SRC", "--against", "SRC", "--tokens", "some"], "a whole number such as 1000"),
        (["inspect", "SRC", "--checksum"], "No checksums were recorded"),
        (["inspect", "nobody/nothing"], "the hub cannot be reached"),
        (["init", "OUT", "--hidden", "30", "--layers", "1", "--heads", "4"], "30"),
        (["report", "SRC", "--out", "OUT"], "metrics.jsonl"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, list) else "",
)
def test_wrong_requests_get_a_sentence_and_exit_2(tiny, tmp_path, words, says):
    (tmp_path / "SRC").symlink_to(tiny("llama"))
    assert says in refused(*words, cwd=tmp_path, HF_HUB_OFFLINE="1")
    assert not (tmp_path / "OUT").exists()


def test_all_problems_at_once(tiny, tmp_path):
    said = refused("upcycle", tiny("llama"), tmp_path / "o", "--experts", 4, "--top-k", 9, "--layers", 7)
    assert "9 of 4 experts" in said
    assert "no layer 7" in said


def test_broken_promise_exits_1(tiny, tmp_path):
    out = api.upcycle(tiny("llama"), experts=4).save(tmp_path / "out")
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | {"rope_theta": 50.0}))
    ran = rekindle("verify", out, "--against", tiny("llama"), "--tokens", 64)
    assert ran.returncode == 1
    assert "BROKEN" in ran.stdout
    assert "does not keep its promise (exact)" in ran.stderr


def test_recipes_with_mistakes(tiny, tmp_path):
    recipe = tmp_path / "recipe.yaml"
    for text, says in (
        ("source: SRC\nstep: []\n", "There is no option 'step'"),
        ("source: SRC\nsteps:\n- upcycl: {experts: 4}\n", "no method 'upcycl'"),
        ("source: SRC\nsteps:\n- upcycle: {expert: 4}\n", "no option 'expert'"),
        ("source: SRC\nsteps: [a, b\n", "line 3"),
        ("steps:\n- upcycle: {experts: 4}\n", "names no source"),
        (
            "source: SRC\nsteps:\n- upcycle: {experts: 4}\n- train: {tokens: 1k}\n",
            "train cannot be one of several steps",
        ),
        ("source: SRC\nsteps:\n- upcycle: {experts: 4}\nsave: {fuse: true}\n", "no option 'fuse'"),
    ):
        recipe.write_text(text.replace("SRC", str(tiny("llama"))))
        assert says in refused("run", recipe, tmp_path / "out"), text


def test_steps_compose_in_one_pass(tiny, tmp_path):
    (tmp_path / "r.yaml").write_text(
        f"source: {tiny('llama', dtype='bfloat16')}\nsteps:\n- upcycle: {{experts: 4}}\n- rewrite: {{dtype: float32}}\n"
    )
    assert rekindle("run", tmp_path / "r.yaml", tmp_path / "out").returncode == 0
    assert [record["verb"] for record in api.inspect(tmp_path / "out")["lineage"]] == ["upcycle", "rewrite"]
    assert api.inspect(tmp_path / "out")["dtypes"].keys() == {"F32"}
    assert api.verify(tmp_path / "out", against=tiny("llama", dtype="bfloat16"), tokens=64).held


def test_a_closed_pipe_is_no_error(tiny):
    command = f"{sys.executable} -m rekindle inspect {tiny('llama')} | head -c 1"
    ran = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True)
    assert "Traceback" not in ran.stderr
    assert "Error" not in ran.stderr


def test_a_bug_says_so_and_debug_shows_it(tiny, tmp_path):
    code = (
        "import sys; from rekindle import api; from rekindle.cli import main\n"
        "def broken(*a): raise ZeroDivisionError('seven')\n"
        "api.inspect = broken; main(sys.argv[1:])"
    )
    ran = subprocess.run([sys.executable, "-c", code, "inspect", "x"], capture_output=True, text=True)
    assert ran.returncode == 1
    assert "This is a bug in rekindle" in ran.stderr
    assert "Traceback" not in ran.stderr
    ran = subprocess.run([sys.executable, "-c", code, "inspect", "x", "--debug"], capture_output=True, text=True)
    assert "Traceback" in ran.stderr


@pytest.mark.slow
def test_ctrl_c_exits_130_and_leaves_nothing_that_looks_finished(tiny, tmp_path):
    code = (
        "import signal, sys, time; from rekindle.apply import write; from rekindle.cli import main\n"
        "signal.signal(signal.SIGINT, signal.default_int_handler)\n"  # a shell has what it starts with & ignore it
        "slow = write._write_tensor\n"
        "def waiting(*a):\n    time.sleep(0.2); yield from slow(*a)\n"
        "write._write_tensor = waiting; main(sys.argv[1:])"
    )
    command = [sys.executable, "-c", code, "upcycle", str(tiny("llama")), str(tmp_path / "out"), "--experts", "4"]
    running = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    while not (tmp_path / ".out.partial").exists():
        time.sleep(0.05)
    time.sleep(0.5)
    running.send_signal(signal.SIGINT)
    _, said = running.communicate(timeout=30)
    assert running.returncode == 130
    assert "--resume" in said
    assert not (tmp_path / "out").exists()
    assert rekindle("upcycle", tiny("llama"), tmp_path / "out", "--experts", 4, "--resume").returncode == 0
    assert api.verify(tmp_path / "out", against=tiny("llama"), tokens=64).held


def test_overwriting_the_folder_around_the_source_is_refused(tiny, tmp_path):
    shutil.copytree(tiny("llama"), tmp_path / "models" / "a")
    (tmp_path / "models" / "b.txt").write_text("precious")
    said = refused("rewrite", tmp_path / "models" / "a", tmp_path / "models", "--overwrite")
    assert "holds the source" in said
    assert (tmp_path / "models" / "b.txt").exists()
    assert rekindle("rewrite", tmp_path / "models" / "a", tmp_path / "models" / "a", "--overwrite").returncode == 0


@pytest.mark.parametrize(
    ("words", "way_on"),
    [
        (["upcycle", "SRC", "OUT"], "with --resume goes on"),
        (["lab", "gqa"], "The same command goes on"),
        (["demo"], "The same command goes on"),
        (["sweep", "grid.yaml", "OUT"], "The same command goes on"),
        (["inspect", "SRC"], ""),
        (["nonsense"], ""),
        ([], ""),
    ],
)
def test_interruption_says_how_to_go_on(words, way_on):
    from rekindle.cli import _way_on

    assert way_on in _way_on(words)
    assert bool(way_on) == bool(_way_on(words))


def test_json_has_no_nan(tiny, tmp_path):
    """RFC 8259 knows no NaN and no Infinity; null stands for both."""
    shutil.copytree(tiny("llama"), tmp_path / "zero")
    tensors = load_file(tmp_path / "zero" / "model.safetensors")
    tensors["lm_head.weight"].zero_()
    save_file(tensors, tmp_path / "zero" / "model.safetensors", {"format": "pt"})
    ran = rekindle("verify", tiny("llama"), "--against", tmp_path / "zero", "--tokens", 64, "--format", "json")

    def never(word):
        raise AssertionError(word)

    assert json.loads(ran.stdout, parse_constant=never)["relative_difference"] is None
