"""The package as somebody meets it at a prompt: names, signatures, help, what is printed, what is raised."""

from __future__ import annotations

import inspect
import pickle
import subprocess
import sys
from dataclasses import MISSING, fields

import pytest
from click.testing import CliRunner

import rekindle
from rekindle import api
from rekindle.apply.save import SaveConfig
from rekindle.cli.verbs import rekindle as command
from rekindle.errors import RekindleError
from rekindle.laws.config import FitConfig, PlanConfig
from rekindle.methods import METHODS
from rekindle.recovery.config import SimulateConfig
from rekindle.report.config import ReportConfig
from rekindle.train.config import EvaluateConfig, InitConfig, TrainConfig, UtilityConfig

NAMES = {verb.replace("-", "_"): method for verb, method in METHODS.items()}
CONFIGS = {name: method.config for name, method in NAMES.items()} | {
    "init": InitConfig,
    "train": TrainConfig,
    "evaluate": EvaluateConfig,
    "utility": UtilityConfig,
    "report": ReportConfig,
    "plan": PlanConfig,
    "fit": FitConfig,
    "simulate": SimulateConfig,
}


def test_importing_it_costs_nothing_and_dir_lists_the_verbs():
    code = "import sys, rekindle; print(*dir(rekindle)); print(*{'torch', 'numpy', 'yaml', 'click'} & set(sys.modules))"
    ran = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    names, heavy = ran.stdout.split("\n")[:2]
    assert {*NAMES, "open", "verify", "train", "report", "laws", "Model", "RekindleError"} <= set(names.split())
    assert heavy == ""


def test_each_method_of_the_table_has_a_function():
    for module in (api, rekindle):
        assert set(NAMES) <= set(module.__all__)
        assert all(callable(getattr(module, name)) for name in module.__all__ if name != "__version__")


def test_a_verb_is_not_taken_away_by_the_room_of_its_name():
    code = (
        "import rekindle; from rekindle.train import loop; import rekindle.laws.forms, rekindle.report.page; "
        "assert len(rekindle.laws()) > 3 and callable(rekindle.train) and callable(rekindle.report); "
        "assert rekindle.train.loop is loop"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("name", CONFIGS)
def test_signature_and_help_are_the_configs(name):
    function = getattr(rekindle, name)
    taken, text = inspect.signature(function).parameters, inspect.getdoc(function)
    assert not any(p.kind is inspect.Parameter.VAR_KEYWORD for p in taken.values())
    for f in fields(CONFIGS[name]):
        parameter = taken[f.name]
        assert parameter.default is (inspect.Parameter.empty if f.default is MISSING else f.default)
        assert f"{f.name}: {f.metadata['help'].split()[0]}" in text
    assert text.splitlines()[0][-1] in ".?"


def test_saving_says_what_it_takes():
    assert {f.name for f in fields(SaveConfig)} < set(inspect.signature(api.Model.save).parameters)


@pytest.mark.parametrize("name", NAMES)
def test_an_unknown_keyword_is_named_with_the_nearest(tiny, name):
    known = fields(CONFIGS[name])[0].name
    with pytest.raises(RekindleError, match=f"no option '{known}z'") as error:
        getattr(rekindle, name)(tiny("mixtral"), **{known + "z": 1}, **NAMES[name].trial)
    assert known in str(error.value)


def test_a_model_is_a_line_and_printed_it_is_what_inspect_shows(tiny, tmp_path):
    parent = tiny("llama")
    model = rekindle.open(parent)
    assert repr(model) == f"<Model {str(parent)!r}: llama, dense, 3 layers>"
    assert str(model) + "\n" == CliRunner().invoke(command, ["inspect", str(parent)]).stdout
    child = rekindle.upcycle(rekindle.grow_depth(model, factor=2), experts=4)
    assert repr(child) == f"<Model {str(parent)!r}, grow-depth, upcycle: mixtral, 4 experts, top-2 in 6 of 6 layers>"
    saved = rekindle.open(child.save(tmp_path / "out"))
    before, after = ({line.split("  ")[0]: line for line in str(m).splitlines()} for m in (child, saved))
    for row in ("family", "parameters", "layers", "experts", "promise"):
        assert before[row] == after[row]
    assert before["stored"].split(" kB")[0] == after["stored"].split(" kB")[0]
    assert "once saved" in before["stored"]


def test_an_exception_carries_what_the_command_line_prints(tiny, tmp_path):
    words = ["upcycle", str(tiny("qwen2")), str(tmp_path / "out"), "--experts", "4", "--target", "mixtral"]
    ran = subprocess.run([sys.executable, "-m", "rekindle", *words], capture_output=True, text=True)
    with pytest.raises(RekindleError) as raised:
        rekindle.upcycle(tiny("qwen2"), experts=4, target="mixtral")
    error = raised.value
    assert ran.stderr.endswith(f"Error: {error}\n")
    assert (error.what, error.where) == ("This qwen2 cannot become mixtral.", None)
    assert "biases on q, k and v" in error.why
    assert error.hint == "--target qwen2_moe, or auto"
    again = pickle.loads(pickle.dumps(error))
    assert (str(again), again.what, again.why, again.hint) == (str(error), error.what, error.why, error.hint)


def test_counts_are_written_as_on_the_command_line(tiny):
    assert rekindle.verify(tiny("llama"), against=tiny("llama"), tokens="1e2").tokens < 128
    with pytest.raises(RekindleError, match="--tokens is 'many', but it must be a whole number"):
        rekindle.verify(tiny("llama"), against=tiny("llama"), tokens="many")
