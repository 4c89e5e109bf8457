"""What a verb says comes next can be typed: each `next:` line is, on a desk whose names have blanks."""

from __future__ import annotations

import re
import shlex
import shutil
from pathlib import Path

import click
import pytest
from click.testing import CliRunner
from test_docs import GRID, runs

from rekindle import api
from rekindle.cli.verbs import rekindle
from rekindle.errors import RekindleError

SMALL = "--data corpus --seq-len 32 --batch-tokens 256"
QUICK = {
    "upcycle": "upcycle SRC made --experts 4",
    "rewrite": "rewrite SRC made",
    "gqa": "gqa SRC made --kv-heads 1",
    "grow-depth": "grow-depth SRC made --factor 2",
    "grow-experts": "grow-experts MOE made",
    "run": "run recipe.yaml made",
    "a part": "upcycle SRC made --experts 4 --max-shard-size 200KB --part 1/2",
    "the last part": "upcycle SRC made --experts 4 --max-shard-size 200KB --part 2/2",
    "join": "join made",
    "init": "init made --hidden 32 --layers 1 --heads 2 --ffn 64 --tokenizer bpe:300 --data corpus",
    "fit": "fit runs.csv --out made",
    "pack": "pack SRC MOE made",
}
SLOW = {
    "verify": "verify MOE --against SRC --tokens 64",
    "train": f"train SRC made {SMALL} --tokens 1k --eval-tokens 512 --lr 1e-3",
    "utility": f"utility MOE --out made {SMALL} --batches 1",
    "sweep": "sweep grid.yaml made",
}
SILENT = {"init", "pack", "verify"}  # say nothing of what comes next, or do so in words
BLANKS = {"SRC": "my SRC", "MOE": "my MOE", "made": "what I made"}
PLAIN = {"SRC": "SRC", "MOE": "MOE", "made": "made"}


@pytest.fixture(scope="module")
def desk(tmp_path_factory):
    desk = tmp_path_factory.mktemp("a desk")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(desk)
        (desk / "corpus").mkdir()
        text = "\n".join(f"Line {n} says that {n} squared is {n * n}." for n in range(1500))
        for i in range(30):
            (desk / "corpus" / f"{i}.txt").write_text(text[i * 1500 : (i + 1) * 1500])
        api.init("my SRC", hidden=32, layers=2, heads=4, ffn=64, tokenizer="bpe:300", data="corpus")
        api.upcycle("my SRC", experts=4).save("my MOE")
        shutil.copytree("my SRC", "SRC")
        api.upcycle("SRC", experts=4).save("MOE")
        (desk / "recipe.yaml").write_text("source: my SRC\nsteps:\n- upcycle: {experts: 4}\n")
        (desk / "runs.csv").write_text(runs())
        (desk / "grid.yaml").write_text(GRID)
        yield desk


def typed(words, refused=None):
    """`refused`: words of the one refusal that is an answer too."""
    ran = CliRunner().invoke(rekindle, words, prog_name="rekindle")
    answered = ran.exit_code == 0 or (refused and isinstance(ran.exception, RekindleError))
    assert answered, f"rekindle {shlex.join(words)}\n{ran.output}\n{ran.exception!r}"
    assert ran.exit_code == 0 or refused in str(ran.exception)
    return ran


def type_each(name, line, names, monkeypatch, desk):
    """Run a verb, and then what it says comes next: dry where that can be, else for real."""
    monkeypatch.chdir(desk)
    made = Path(names["made"])
    shutil.rmtree(made) if made.is_dir() else made.unlink(missing_ok=True)
    words = [names.get(word, word) for word in shlex.split(line)]
    others = {"a part": (), "the last part": ("1/2",), "join": ("1/2", "2/2")}.get(name, ())
    for part in others:
        api.upcycle(names["SRC"], experts=4).save(made, part=part, max_shard_size="200KB")
    found = re.findall(r"^next: +(.*)$", typed(words).stderr, re.MULTILINE)
    assert found or name in SILENT, f"{name} does not say what comes next"
    if name == "a part":
        typed([*words[:-1], "2/2"])
    for following in found:
        program, *words = shlex.split(following, comments=True)
        assert program == "rekindle"
        command = rekindle.get_command(click.Context(rekindle), words[0])
        dry = any(parameter.name == "dry_run" for parameter in command.params)
        more = ["--dry-run"] if dry else ["--tokens", "64"] if words[0] == "verify" else []
        typed([*words, *more], refused="more runs" if name == "sweep" else None)  # of three cells: what is missing


@pytest.mark.parametrize("name", QUICK)
def test_what_comes_next_can_be_typed(desk, name, monkeypatch):
    type_each(name, QUICK[name], PLAIN if name == "fit" else BLANKS, monkeypatch, desk)


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_what_comes_next_can_be_typed_after_long_work_too(desk, name, monkeypatch):
    type_each(name, SLOW[name], PLAIN, monkeypatch, desk)
