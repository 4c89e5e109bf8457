"""What `pack` is given: files, folders of them, links; what it says before it writes, and on a terminal."""

from __future__ import annotations

import json
import shlex

import numpy as np
import pytest
from safetensors.numpy import save_file

from rekindle import api
from rekindle.cli import main
from rekindle.cli.out import plain
from rekindle.errors import RekindleError


def checkpoint(folder, seed=0, name="model.safetensors"):
    folder.mkdir(parents=True, exist_ok=True)
    save_file({"w": np.random.default_rng(seed).normal(size=(64, 64)).astype(np.float32)}, folder / name)
    return folder


def cli(capsys, *words):
    with pytest.raises(SystemExit) as stop:
        main([str(word) for word in words])
    said = capsys.readouterr()
    return stop.value.code, said.out, said.err


def steps(archive):
    return [x["step"] for x in api.archive_info(archive)["steps"]]


def test_a_folder_of_numbered_checkpoints(tmp_path, capsys):
    for step in (100, 20, 3):
        checkpoint(tmp_path / "out" / f"checkpoint-{step}", step)
    (tmp_path / "out" / "runs").mkdir()
    code, _, err = cli(capsys, "pack", tmp_path / "out", tmp_path / "r.rk")
    assert code == 0
    assert steps(tmp_path / "r.rk") == [3, 20, 100]
    assert "3 numbered checkpoint(s)" in err
    assert "left out: runs" in err


def test_numbered_checkpoints_around_one_are_refused_with_what_to_type(tmp_path, capsys):
    for step in (1, 2):
        checkpoint(tmp_path / "out" / f"checkpoint-{step}", step)
    checkpoint(tmp_path / "out", 9)
    (tmp_path / "out" / "trainer_state.json").write_text(json.dumps({"global_step": 2}))
    with pytest.raises(RekindleError, match="a checkpoint of its own, and 2 numbered ones") as refused:
        api.pack(tmp_path / "out", tmp_path / "r.rk")
    assert refused.value.hint.startswith(f"{tmp_path}/out/checkpoint-*")
    assert not (tmp_path / "r.rk").exists()


def test_what_is_in_a_numbered_checkpoint_belongs_to_it(tmp_path):
    folder = checkpoint(tmp_path / "checkpoint-7")
    for name in ("global_step7/mp_rank_00_model_states.pt", "rng_state_0.pth", "rng_state_1.pth"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    api.pack(folder, tmp_path / "r.rk")
    assert steps(tmp_path / "r.rk") == [7]
    assert len(api.archive_contents(f"{tmp_path / 'r.rk'}@7")["files"]) == 4
    folder.rename(tmp_path / "last")  # DeepSpeed's half is no step of its own there either
    api.pack(tmp_path / "last", tmp_path / "l.rk")
    assert len(api.archive_contents(tmp_path / "l.rk")["files"]) == 4


@pytest.mark.parametrize("name", ["ckpt_{}.safetensors", "model{}.safetensors", "step-{}.safetensors"])
def test_numbered_files_are_steps_each_coded_against_the_last(tmp_path, name):
    for step in (20, 100, 3):
        checkpoint(tmp_path / "files", 1, name.format(step))
    given = list((tmp_path / "files").iterdir())
    info = api.pack(given, tmp_path / "r.rk")
    assert steps(tmp_path / "r.rk") == [3, 20, 100]
    assert all(x["ratio"] > 20 for x in info["steps"][1:])  # the same values
    api.unpack(f"{tmp_path / 'r.rk'}@20", tmp_path / "out")
    file = name.format(20)
    assert (tmp_path / "out" / file).read_bytes() == (tmp_path / "files" / file).read_bytes()
    if "model" not in name:
        api.pack(tmp_path / "files", tmp_path / "folder.rk")
        assert steps(tmp_path / "folder.rk") == [3, 20, 100]


def test_shards_are_no_series(tmp_path):
    for name in ("consolidated.00.safetensors", "consolidated.01.safetensors"):
        checkpoint(tmp_path / "llama", 1, name)
    for name in ("model-00001-of-00002.safetensors", "model-00002-of-00002.safetensors"):
        checkpoint(tmp_path / "hf", 1, name)
    for folder in ("llama", "hf"):
        api.pack(tmp_path / folder, tmp_path / f"{folder}.rk")
        assert len(steps(tmp_path / f"{folder}.rk")) == 1


def test_a_link_out_of_the_checkpoint_is_refused(tmp_path):
    folder = checkpoint(tmp_path / "step-1")
    (tmp_path / "secret").write_text("outside")
    (folder / "inside.txt").symlink_to("model.safetensors")
    (folder / "notes.txt").symlink_to(tmp_path / "secret")
    with pytest.raises(RekindleError, match="a link to a file outside"):
        api.pack(folder, tmp_path / "r.rk")
    (folder / "notes.txt").unlink()
    api.pack(folder, tmp_path / "r.rk")


def test_a_snapshot_of_the_hubs_cache_is_packed_with_its_blobs(tmp_path):
    blobs, snapshot = tmp_path / "models--a--b" / "blobs", tmp_path / "models--a--b" / "snapshots" / "abc"
    checkpoint(blobs, name="blob")
    snapshot.mkdir(parents=True)
    (snapshot / "model.safetensors").symlink_to("../../blobs/blob")
    api.pack(snapshot, tmp_path / "r.rk")
    api.unpack(tmp_path / "r.rk", tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").read_bytes() == (blobs / "blob").read_bytes()


def test_a_dry_run_says_what_there_is_and_writes_nothing(tmp_path, capsys):
    for step in (1, 2):
        folder = checkpoint(tmp_path / f"step-{step}", step)
        save_file(
            {f"w.{m}": np.ones((64, 64), np.float32) for m in ("exp_avg", "exp_avg_sq")}, folder / "o.safetensors"
        )
    before = sorted(tmp_path.rglob("*"))
    given = ("pack", tmp_path / "step-1", tmp_path / "step-2", tmp_path / "r.rk", "--dry-run")
    code, out, _ = cli(capsys, *given, "--format", "json")
    data = json.loads(out)
    assert code == 0
    assert [(x["step"], x["files"], x["tensors"], x["moments"]) for x in data["steps"]] == [(1, 2, 3, 1), (2, 2, 3, 1)]
    code, out, err = cli(capsys, *given)
    assert (code, out.startswith("[dry-run]"), "next:" in err) == (0, True, False)
    assert sorted(tmp_path.rglob("*")) == before

    api.pack(tmp_path / "step-1", tmp_path / "r.rk")
    packed = (tmp_path / "r.rk").read_bytes()
    assert cli(capsys, *given)[0] == 2  # as without --dry-run
    assert cli(capsys, "archive", "add", tmp_path / "step-1", tmp_path / "r.rk", "--dry-run")[0] == 2
    code, out, _ = cli(capsys, "archive", "add", tmp_path / "step-2", tmp_path / "r.rk", "--dry-run")
    assert (code, "[dry-run]" in out) == (0, True)
    code, out, _ = cli(capsys, "unpack", f"{tmp_path / 'r.rk'}@1", tmp_path / "out", "--dry-run")
    assert (code, "2 file(s)" in out, (tmp_path / "out").exists()) == (0, True, False)
    assert cli(capsys, "unpack", f"{tmp_path / 'r.rk'}@1", tmp_path / "step-1", "--dry-run")[0] == 2
    assert (tmp_path / "r.rk").read_bytes() == packed


def test_a_dry_run_of_a_mode_says_what_it_would_leave(tmp_path, capsys):
    checkpoint(tmp_path / "step-1")
    code, _, err = cli(capsys, "pack", tmp_path / "step-1", tmp_path / "r.rk", "--mode", "strong", "--dry-run")
    assert (code, "note: strong, 1 of 1 checkpoint(s): no moments" in err) == (0, True)
    code, out, err = cli(capsys, "pack", tmp_path / "step-1", tmp_path / "r.rk", "--mode", "strong")
    assert (code, "note: strong, 1 of 1 checkpoint(s): no moments" in err) == (0, True)
    assert "strong" not in out


def test_next_is_a_command_that_works(tmp_path, capsys):
    folder = checkpoint(tmp_path / "step-1")
    (folder / "config.json").write_text('{"model_type": "none"}')
    _, _, err = cli(capsys, "pack", folder, tmp_path / "a run.rk")
    line = next(line for line in err.splitlines() if line.startswith("next:"))
    assert cli(capsys, *shlex.split(line.removeprefix("next:"))[1:])[0] == 0
    _, _, err = cli(capsys, "unpack", tmp_path / "a run.rk", tmp_path / "an out")
    line = next(line for line in err.splitlines() if line.startswith("next:"))
    assert shlex.split(line.removeprefix("next:")) == ["rekindle", "inspect", str(tmp_path / "an out")]


@pytest.mark.parametrize("step", ["1" * 25, "1" * 5000, "x", "-1", "1.5", "²"])
def test_what_is_no_step_is_refused_everywhere(tmp_path, capsys, step):
    api.pack(checkpoint(tmp_path / "step-1"), tmp_path / "r.rk")
    before = (tmp_path / "r.rk").read_bytes()
    for words in (["archive", "drop"], ["archive", "info"], ["archive", "ls"], ["inspect"], ["pack"], ["unpack"]):
        out = [tmp_path / "out"] if words[0] in ("pack", "unpack") else []
        code, _, err = cli(capsys, *words, f"{tmp_path / 'r.rk'}@{step}", *out)
        assert (code, "is no step" in err) == (2, True), words
    assert (tmp_path / "r.rk").read_bytes() == before


def test_text_from_files_does_not_steer_the_terminal(tmp_path, capsys):
    evil = "w\x1b[2J\x9b31m\r\n\u202eok"
    folder = tmp_path / "step-1"
    folder.mkdir()
    save_file({evil: np.ones((20, 20), np.float32)}, folder / "model.safetensors")
    (folder / "a\x1b]0;title\x07b").write_text("x")
    archive = tmp_path / "r\x1b[31m.rk"
    said = "".join("".join(cli(capsys, *words)[1:]) for words in (
        ["pack", folder, archive], ["archive", "ls", archive], ["archive", "info", archive],
        ["archive", "verify", archive], ["unpack", f"{archive}@1", tmp_path / "out"],
        ["archive", "drop", f"{archive}@7"], ["unpack", archive, tmp_path / "out"],
    ))  # fmt: skip
    assert "\\x1b[2J\\x9b31m\\r\\n\\u202eok" in said
    assert "\\x1b]0;title\\x07" in said
    assert not set(said) & set("\x1b\x9b\x07\r\u202e")
    assert plain("tab\there é 模型") == "tab\\there é 模型"
