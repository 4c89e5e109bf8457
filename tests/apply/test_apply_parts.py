"""A result written in parts, on one disc or several, is the result of a single write; anything else is a sentence."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from apply_moments import write_moments
from click.testing import CliRunner
from hypothesis import given
from hypothesis import strategies as st
from store.folders import llama_tensors, write_llama

from rekindle import api
from rekindle.apply.crew import JOURNAL
from rekindle.apply.parts import owners, parse_part
from rekindle.apply.shards import Shard
from rekindle.cli.verbs import rekindle
from rekindle.edit.arithmetic import Fill, Normal
from rekindle.edit.measure import Statistics
from rekindle.errors import CheckFailed, RekindleError
from rekindle.store.lock import alone

OUT = "out"  # the same name everywhere: what is written names it
SMALL = {"max_shard_size": "20kB"}


@pytest.fixture
def parent(tmp_path, monkeypatch):
    folder = write_llama(tmp_path / "parent", shards=2)
    (folder / "tokenizer.json").write_text("{}")
    for name in ("whole", "here", "there"):
        (tmp_path / name).mkdir()
    monkeypatch.chdir(tmp_path / "here")
    return folder


@pytest.fixture
def model(parent):
    return api.upcycle(parent, experts=4)


def contents(folder: str | Path) -> dict[str, bytes]:
    """Every file."""
    files = sorted(path for path in Path(folder).rglob("*") if path.is_file())
    return {str(path.relative_to(folder)): path.read_bytes() for path in files}


def whole(model, monkeypatch, **options) -> dict[str, bytes]:
    """What a single write makes, under the same name in another folder."""
    with monkeypatch.context() as patch:
        patch.chdir(Path.cwd().parent / "whole")
        shutil.rmtree(OUT, ignore_errors=True)
        return contents(model.save(OUT, **(SMALL | options)))


def write(model, *parts: str, **options) -> None:
    for part in parts:
        model.save(OUT, part=part, **(SMALL | options))


def refused(match: str, action, *arguments, **options) -> RekindleError:
    """The sentence; nothing in OUT or beside it has changed."""
    before = contents(".")
    with pytest.raises(RekindleError, match=match) as error:
        action(*arguments, **options)
    assert contents(".") == before
    return error.value


# -- whose is what ---------------------------------------------------------------------------------------------


@given(st.lists(st.integers(0, 1000), min_size=1, max_size=30), st.integers(1, 12))
def test_every_shard_has_one_owner_and_the_bytes_are_balanced(sizes, of):
    shards = [Shard(f"{i}.safetensors", {"x": Fill("U8", (size,), 0.0)}) for i, size in enumerate(sizes)]
    shares = [parse_part(f"{i}/{of}").share(shards) for i in range(1, of + 1)]
    assert sorted(shard.file for share in shares for shard in share) == sorted(shard.file for shard in shards)
    loads = [sum(shard.nbytes for shard in share) for share in shares]
    assert max(loads) - min(loads) <= max(sizes)
    assert owners(shards, of) == {shard.file: i for i, share in enumerate(shares, 1) for shard in share} | {}


@pytest.mark.parametrize("text", ["", "2", "0/2", "3/2", "1/0", "-1/2", "1/2/3", "a/b", "1 /2", "1.0/2"])
def test_a_part_that_is_none(model, text):
    if text:
        refused("must be such as 2/8", model.save, OUT, part=text)
    ran = CliRunner().invoke(rekindle, ["rewrite", str(model.source), OUT, "--part", text, "--dry-run"])
    assert bool(ran.exit_code) == bool(text)


# -- all parts are the whole -----------------------------------------------------------------------------------


@pytest.mark.parametrize("n", [1, 2, 3, 7])
def test_parts_in_any_order_are_the_whole(model, monkeypatch, n):
    write(model, *(f"{i}/{n}" for i in sorted(range(1, n + 1), key=lambda i: i * 5 % 8)))
    assert api.join(OUT) == Path(OUT)
    assert contents(OUT) == whole(model, monkeypatch)
    assert [path.name for path in Path.cwd().iterdir()] == [OUT]


@pytest.mark.parametrize(
    "options",
    [{"checksum": True}, {"fused": True}, {"max_shard_size": "1", "workers": 3}, {"max_shard_size": "5GB"}],
    ids=str,
)
def test_in_any_layout(model, monkeypatch, options):
    write(model, "1/3", "2/3", "3/3", **options)
    api.join(OUT)
    assert contents(OUT) == whole(model, monkeypatch, **options)


@pytest.mark.parametrize("init", ["noise", "drop", "virtual-group"])
def test_whatever_the_method_computes(parent, monkeypatch, init):
    model = api.upcycle(parent, experts=4, init=init)
    write(model, "2/3", "3/3", "1/3")
    api.join(OUT)
    assert contents(OUT) == whole(model, monkeypatch)


def test_moments_too(parent, tmp_path, monkeypatch):
    state = str(write_moments(tmp_path / "state", parent))
    model = api.upcycle(parent, experts=2)
    write(model, "3/3", "1/3", "2/3", optimizer_state=state)
    assert not (Path(OUT) / "optimizer" / "optimizer.json").exists()
    records = [json.loads(path.read_text())["written"] for path in Path(OUT, "parts").glob("*.json")]
    assert all(any("optimizer/" in file for file in record) for record in records), "each has its share of both"
    api.join(OUT)
    assert contents(OUT) == whole(model, monkeypatch, optimizer_state=state)


def test_parts_written_elsewhere_and_copied_together(model, tmp_path, monkeypatch):
    write(model, "1/2")
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "there")
        write(model, "2/2")
    shutil.copytree(tmp_path / "there" / OUT, OUT, dirs_exist_ok=True)
    api.join(OUT)
    assert contents(OUT) == whole(model, monkeypatch)


def test_machines_whose_copies_differ_in_place_and_time(parent, tmp_path, monkeypatch):
    """Only the names in the card and the manifest tell which copy was read."""
    write(api.upcycle(parent, experts=4), "1/2")
    shutil.copytree(parent, tmp_path / "mirror", copy_function=shutil.copyfile)
    write(api.upcycle(tmp_path / "mirror", experts=4), "2/2")
    api.join(OUT)
    made, expected = contents(OUT), whole(api.upcycle(parent, experts=4), monkeypatch)
    assert {f: data for f, data in made.items() if "safetensors" in f} == {
        f: data for f, data in expected.items() if "safetensors" in f
    }


def test_parts_written_at_the_same_time(parent, monkeypatch):
    command = [sys.executable, "-m", "rekindle", "upcycle", str(parent), OUT, "--experts", "4"]
    options = ["--max-shard-size", "20kB", "--part"]
    running = [subprocess.Popen([*command, *options, f"{i}/3"], stderr=subprocess.PIPE) for i in (1, 2, 3)]
    assert [(process.wait(60), process.stderr.close())[0] for process in running] == [0, 0, 0]
    api.join(OUT)
    expected = whole(api.upcycle(parent, experts=4), monkeypatch)
    assert {f: d for f, d in contents(OUT).items() if f.endswith("safetensors")} == {
        f: d for f, d in expected.items() if f.endswith("safetensors")
    }


def test_a_recipe_has_parts_too(parent, tmp_path, monkeypatch):
    (tmp_path / "r.yaml").write_text(f"source: {parent}\nsteps:\n- upcycle: {{experts: 4}}\nsave: {SMALL}\n")
    for part in ("1/2", "2/2"):
        api.run(tmp_path / "r.yaml", OUT, part=part)
    joined = contents(api.join(OUT))
    monkeypatch.chdir(tmp_path / "whole")
    assert joined == contents(api.run(tmp_path / "r.yaml", OUT))


# -- until then ------------------------------------------------------------------------------------------------


def test_nothing_takes_unfinished_parts_for_a_model(model):
    from transformers import AutoConfig

    write(model, "1/2")
    names = {path.name for path in Path(OUT).iterdir()}
    assert "config.json" not in names
    assert not {name for name in names if name.endswith(".index.json")}
    with pytest.raises(RekindleError, match="its parts are not joined") as error:
        api.open(OUT)
    assert error.value.hint == "rekindle join out"
    with pytest.raises((OSError, ValueError)):
        AutoConfig.from_pretrained(OUT)


def test_one_shard_is_one_part_and_the_others_say_so(parent, monkeypatch):
    """Parts do not change the shards: the hashes are the whole's."""
    command = ["upcycle", str(parent), OUT, "--experts", "4", "--part"]
    said = [CliRunner().invoke(rekindle, [*command, f"{i}/3"]) for i in (1, 2, 3)]
    assert [ran.exit_code for ran in said] == [0, 0, 0]
    assert "nothing to write" not in said[0].stderr
    assert "next:  rekindle join out\n" in said[0].stderr
    assert all("nothing to write: there is 1 shard; a smaller --max-shard-size" in ran.stderr for ran in said[1:])
    assert [path.name for path in Path(OUT).glob("*.safetensors")] == ["model.safetensors"]
    api.join(OUT)
    expected = whole(api.upcycle(parent, experts=4), monkeypatch, max_shard_size="5GB")
    assert contents(OUT)["model.safetensors"] == expected["model.safetensors"]


def test_the_command_line_says_how_to_go_on(parent):
    command = ["upcycle", str(parent), OUT, "--experts", "4", "--max-shard-size", "20kB", "--part"]
    first = CliRunner().invoke(rekindle, [*command, "2/3"])
    assert "part 2/3: " in first.stdout
    assert "next:  rekindle join out  # once part 1, 3 of 3 is here too" in first.stderr
    CliRunner().invoke(rekindle, [*command, "1/3"])
    last = json.loads(CliRunner().invoke(rekindle, [*command, "3/3", "--format", "json"]).stdout)
    assert last["part"] == "3/3"
    assert all((Path(OUT) / file).exists() for file in last["shards"])
    joined = CliRunner().invoke(rekindle, ["join", OUT])
    assert joined.exit_code == 0
    assert joined.stdout.startswith("out: mixtral, 4 experts")


def test_a_dry_run_says_what_a_part_costs(parent):
    command = ["upcycle", str(parent), OUT, "--experts", "4", "--max-shard-size", "20kB", "--dry-run"]
    parts = [
        json.loads(CliRunner().invoke(rekindle, [*command, "--part", f"{i}/3", "--format", "json"]).stdout)
        for i in (1, 2, 3)
    ]
    assert sum(plan["part"]["bytes"] for plan in parts) == parts[0]["bytes"]
    assert sum(plan["part"]["shards"] for plan in parts) == parts[0]["shards"]
    assert "of which part 2/3 writes" in CliRunner().invoke(rekindle, [*command, "--part", "2/3"]).stdout
    assert not Path(OUT).exists()


# -- again -----------------------------------------------------------------------------------------------------


def stamps(part: str) -> dict[str, tuple[int, int]]:
    record = json.loads((Path(OUT) / "parts" / f"{part.replace('/', '-of-')}.json").read_text())
    return {file: (stat.st_ino, stat.st_mtime_ns) for file in record["written"] if (stat := (Path(OUT) / file).stat())}


def test_a_part_that_is_there(model):
    write(model, "1/2")
    before = stamps("1/2")
    error = refused("Part 1/2 of out is there already", write, model, "1/2")
    assert "--resume" in error.hint
    assert "--overwrite" in error.hint
    write(model, "1/2", resume=True)
    assert stamps("1/2") == before
    write(model, "1/2", overwrite=True)
    assert not set(stamps("1/2").values()) & set(before.values())


def test_resume_writes_a_part_that_lost_a_shard(model, monkeypatch):
    write(model, "1/2", "2/2")
    next(Path(OUT).glob("*.safetensors")).unlink()
    write(model, "1/2", "2/2", resume=True)
    api.join(OUT)
    assert contents(OUT) == whole(model, monkeypatch)


def test_resume_goes_on_where_a_part_was_cut_short(model, monkeypatch):
    calls = []

    def stop(done):
        calls.append(done)
        if len(calls) > 15:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write(model, "1/2", progress=stop, workers=1)
    assert not Path(OUT).exists()
    staging = Path(f".{OUT}.partial-1-of-2")
    done = {file: (staging / file).stat().st_ino for file in json.loads((staging / JOURNAL).read_text())["done"]}
    assert done
    write(model, "1/2", resume=True)
    assert {file: (Path(OUT) / file).stat().st_ino for file in done} == done
    write(model, "2/2")
    api.join(OUT)
    assert contents(OUT) == whole(model, monkeypatch)


def test_the_same_part_twice_at_once(model):
    def again(done, said=[]):  # noqa: B006
        if not said:
            said.append(pytest.raises(RekindleError, match="Another process is writing part 1/2"))
            with said[0]:
                write(model, "1/2")

    write(model, "1/2", progress=again)
    assert len(list(Path(OUT).glob("*.safetensors"))) > 2
    assert [path.name for path in Path.cwd().iterdir()] == [OUT]


def test_a_lock_that_was_left_behind_is_no_lock(model, tmp_path):
    Path(f".{OUT}.partial-1-of-2.lock").touch()
    write(model, "1/2")
    second = alone(tmp_path / "lock", "second")
    with alone(tmp_path / "lock", "first"), pytest.raises(RekindleError, match="Another process is second"), second:
        raise AssertionError
    assert not (tmp_path / "lock").exists()


# -- what does not belong together -----------------------------------------------------------------------------


def test_join_names_the_parts_that_are_missing(model):
    write(model, "2/4")
    error = refused("out lacks part 1, 3, 4 of 4", api.join, OUT)
    assert "--part 1/4" in error.hint


def test_join_names_the_shards_that_are_missing_or_cut(model):
    write(model, "1/2", "2/2")
    gone, cut, *_ = sorted(Path(OUT).glob("*.safetensors"))
    size = cut.stat().st_size
    gone.unlink()
    cut.write_bytes(cut.read_bytes()[:100])
    error = refused("2 problems", api.join, OUT)
    assert f"{gone.name}, of " in str(error)
    assert "is not there" in str(error)
    assert f"{cut.name}, of {size} bytes, has 100 bytes" in str(error)
    assert "with --overwrite" in str(error)


def test_join_where_there_is_nothing_to_join(model):
    refused("has no parts: there is nothing to join", api.join, OUT)
    model.save(OUT)
    refused("out is whole: there is nothing to join", api.join, OUT)


def test_joining_twice(model):
    write(model, "1/2", "2/2")
    api.join(OUT)
    refused("is whole: there is nothing to join", api.join, OUT)
    refused("out exists and is not empty", write, model, "1/2", overwrite=True)


def test_join_without_what_belongs_beside_the_shards(model):
    write(model, "1/2", "2/2")
    shutil.rmtree(Path(OUT) / "parts" / "rest")
    refused("The files that belong beside the shards are missing", api.join, OUT)
    write(model, "2/2", overwrite=True)
    assert api.open(api.join(OUT))


OTHER_PLANS = {
    "other experts": ({"experts": 3}, {}),
    "another seed": ({"experts": 4, "seed": 1}, {}),
    "other shards": ({"experts": 4}, {"max_shard_size": "30kB"}),
    "with checksums": ({"experts": 4}, {"checksum": True}),
}


@pytest.mark.parametrize("what", OTHER_PLANS)
def test_parts_of_different_plans(parent, model, tmp_path, monkeypatch, what):
    method, layout = OTHER_PLANS[what]
    other = api.upcycle(parent, **method)
    write(model, "1/2")
    error = refused("Part 1/2 and part 2/2 are of different plans", write, other, "2/2", **layout)
    assert "the same command for every part" in error.hint
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "there")
        write(other, "2/2", **layout)
    shutil.copytree(tmp_path / "there" / OUT, OUT, dirs_exist_ok=True)
    refused("are of different plans", api.join, OUT)
    if "max_shard_size" not in layout and "experts" not in what:
        write(model, "2/2", overwrite=True)
        assert api.open(api.join(OUT))


def test_parts_of_different_numbers(model):
    write(model, "1/2")
    refused("Part 1/2 and part 2/3 divide the result differently", write, model, "2/3")


def test_parts_of_different_steps_of_a_training(parent, model):
    """Same names, same sizes, other values."""
    write(model, "1/2")
    write_llama(parent, shards=2, tensors={n: (d, s, bytes(len(b))) for n, (d, s, b) in llama_tensors().items()})
    other = api.upcycle(parent, experts=4)
    refused("are made from different source files", write, other, "2/2")
    write(other, "1/2", overwrite=True)
    write(other, "2/2")
    assert api.open(api.join(OUT))


def test_a_record_that_cannot_be_read(model):
    write(model, "1/2")
    record = Path(OUT) / "parts" / "1-of-2.json"
    for text in ("", "[]", "{}", '{"part": 1}', "null", "\0"):
        record.write_text(text)
        refused("The record of a part cannot be read", api.join, OUT)
        refused("The record of a part cannot be read", write, model, "2/2")


@pytest.mark.parametrize("overwrite", [True, False])
def test_a_part_replaces_no_whole(model, overwrite):
    model.save(OUT)
    refused("out exists and is not empty", write, model, "1/2", overwrite=overwrite)


# -- values ----------------------------------------------------------------------------------------------------


@pytest.fixture
def measuring(model):
    """A child whose routers are noise as large as the weights they are measured on, and what was looked at."""
    looks = []

    class Looking(Statistics):
        def find(self, reader, activations):
            looks.append(self.name)
            return super().find(reader, activations)

    child, sources = model.checkpoint, list(model.checkpoint.origin.tensors.values())
    for layer, role in enumerate(role for role in child.tensors if role.part == "router"):
        std = Looking(sources[layer])["std"]
        child.tensors[role] = Normal(child.tensors[role].dtype, child.tensors[role].shape, std, 0, "test")
    return model, looks


def test_a_part_measures_what_its_own_shards_need(measuring, monkeypatch):
    model, looks = measuring
    write(model, "1/8", "2/8", "3/8")
    assert len(looks) == len(set(looks))
    model.save(OUT, part="4/8", **SMALL)
    write(model, *(f"{i}/8" for i in range(5, 9)))
    assert sorted(looks) == sorted(set(looks)), "each once: the others take over what one has measured"
    assert len(looks) == 2
    records = [json.loads(path.read_text()) for path in Path(OUT, "parts").glob("*.json")]
    assert 0 < sum(bool(record["measured"]) for record in records) < 8
    api.join(OUT)
    assert contents(OUT) == whole(model, monkeypatch)
    assert "measurements/found.safetensors" in contents(OUT)


def test_parts_on_other_discs_measure_for_themselves(measuring, tmp_path, monkeypatch):
    model, looks = measuring
    with monkeypatch.context() as patch:
        patch.chdir(tmp_path / "there")
        write(model, "2/2", max_shard_size="1")
    write(model, "1/2", max_shard_size="1")
    assert len(set(looks)) == 2
    shutil.copytree(tmp_path / "there" / OUT, OUT, dirs_exist_ok=True)
    api.join(OUT)
    assert contents(OUT) == whole(model, monkeypatch, max_shard_size="1")


def test_parts_that_measured_different_values(model, monkeypatch):
    class Told(Statistics):
        def told(self):
            return "row", {"std": float(self.found["std"])}

    model.checkpoint.telling(Told(next(iter(model.checkpoint.origin.tensors.values()))))
    write(model, "1/2", "2/2")
    record = Path(OUT) / "parts" / "1-of-2.json"
    text = record.read_text()
    (digest,) = json.loads(text)["measured"].values()
    record.write_text(text.replace(digest, "f" * 16))
    error = refused("Part 1/2 and part 2/2 measured different values", api.join, OUT)
    assert "finish one part first" in error.hint
    record.write_text(text)
    api.join(OUT)
    assert contents(OUT) == whole(model, monkeypatch), "what is told of them is in the card and the manifest"


def test_nan_is_reported_by_the_part_and_by_join(tmp_path, monkeypatch):
    tensors = llama_tensors("F32")
    dtype, shape, data = tensors["lm_head.weight"]
    tensors["lm_head.weight"] = (dtype, shape, b"\xff" * 4 + data[4:])
    model = api.rewrite(write_llama(tmp_path / "parent", tensors=tensors), dtype="bfloat16")
    monkeypatch.chdir(tmp_path)
    found = []
    for part in ("1/2", "2/2"):
        try:
            write(model, part)
        except CheckFailed as error:
            found.append(error)
    assert len(found) == 1
    with pytest.raises(CheckFailed, match="1 computed value is NaN") as again:
        api.join(OUT)
    assert str(again.value) == str(found[0])
    assert api.open(OUT)
