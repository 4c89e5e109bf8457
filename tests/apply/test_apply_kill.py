"""kill -9 at every call that changes the disc: nothing that looks finished is left, and --resume finishes it."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from apply_moments import write_moments
from store.folders import write_llama

from rekindle import api

pytestmark = pytest.mark.slow


def kills(parent: Path, tmp_path: Path, **options) -> tuple[dict, list[dict]]:
    """The whole result, and what each kill left."""
    (tmp_path / "work").mkdir()
    program = [sys.executable, str(Path(__file__).parent / "kill_points.py"), str(parent), str(tmp_path / "work")]
    ran = subprocess.run([*program, json.dumps(options)], capture_output=True, text=True, timeout=500, check=False)
    assert ran.returncode == 0, ran.stderr
    first, *rest = map(json.loads, ran.stdout.splitlines())
    assert len(rest) > 20
    assert {kill["status"] for kill in rest} == {-9}
    return first["whole"], rest


def weights(state: dict[str, str]) -> dict[str, str]:
    return {file: digest for file, digest in state.items() if file.endswith(".safetensors")}


@pytest.mark.parametrize(
    "options",
    [
        {"experts": 2, "workers": 1, "max_shard_size": "25kB"},
        {"every": 2, "experts": 2, "workers": 3, "max_shard_size": "20kB"},
    ],
    ids=["one worker", "three workers"],
)
def test_a_kill_leaves_nothing_or_all_and_resume_finishes(tmp_path, options):
    parent = write_llama(tmp_path / "parent", shards=2)
    (parent / "tokenizer.json").write_text("{}")
    whole, killed = kills(parent, tmp_path, checksum=True, **options)
    assert len(weights(whole)) > 2
    for kill in killed:
        assert kill["out"] in (None, whole), f"at {kill['point']} OUT was there, but not whole"
        assert kill["resumed"] == whole
        assert kill["kept"] == kill["done"], f"at {kill['point']} a finished shard was written again"
        assert kill["left"] == ["out"] or kill["out"]
    assert max(len(kill["done"]) for kill in killed) == len(weights(whole))
    assert sum(kill["out"] is None for kill in killed) > len(killed) * 0.9


def test_moments_too(tmp_path):
    parent = write_llama(tmp_path / "parent")
    state = write_moments(tmp_path / "state", parent)
    whole, killed = kills(parent, tmp_path, every=3, experts=2, optimizer_state=str(state), max_shard_size="100kB")
    assert "optimizer/optimizer.json" in whole
    for kill in killed:
        assert kill["out"] in (None, whole)
        assert kill["resumed"] == whole
        assert kill["kept"] == kill["done"]


def test_overwriting_leaves_the_old_or_the_new(tmp_path):
    """But for the moment between two renames, when the old one lies beside OUT, whole."""
    parent = write_llama(tmp_path / "parent")
    old = api.rewrite(parent).save(tmp_path / "old")
    before = {path.name for path in old.iterdir()}
    whole, killed = kills(parent, tmp_path, experts=2, overwrite=True, old=str(old))
    for kill in killed:
        assert kill["out"] is None or kill["out"] == whole or kill["out"].keys() == before
        assert weights(kill["resumed"]) == weights(whole)
        assert kill["left"] == ["out"]
    assert sum(kill["out"] is None for kill in killed) == 1


def test_a_part_is_there_with_its_record_or_not_at_all(tmp_path):
    parent = write_llama(tmp_path / "parent", shards=2)
    (parent / "tokenizer.json").write_text("{}")
    whole, killed = kills(parent, tmp_path, experts=2, part="1/2", max_shard_size="8kB", checksum=True)
    assert len(weights(whole)) > 2
    for kill in killed:
        state = kill["out"] or {}
        assert "parts/1-of-2.json" not in state or state == whole
        assert not {"config.json", "model.safetensors.index.json"} & state.keys()
        assert state.items() <= whole.items(), "no file of OUT is ever half of one"
        assert kill["resumed"] == whole
        assert kill["left"] == ["out"] or "parts/1-of-2.json" in state
    assert sum(kill["kept"] == kill["done"] for kill in killed) > len(killed) * 0.6
    assert sum("parts/1-of-2.json" in (kill["out"] or {}) for kill in killed) > 1


def test_a_join_makes_it_whole_or_can_be_done_again(tmp_path):
    parent = write_llama(tmp_path / "parent")
    (parent / "tokenizer.json").write_text("{}")
    for part in ("1/2", "2/2"):
        old = api.upcycle(parent, experts=2).save(tmp_path / "old", part=part, max_shard_size="60kB")
    whole, killed = kills(parent, tmp_path, experts=2, join=True, old=str(old))
    assert "config.json" in whole
    assert not {name for name in whole if name.startswith("parts/")}
    for kill in killed:
        assert "config.json" not in kill["out"] or whole.items() <= kill["out"].items()
        assert kill["resumed"] == whole
        assert kill["left"] == ["out"] or kill["out"] == whole
    assert sum("config.json" in kill["out"] for kill in killed) > 1


def test_a_merge_that_measures_too(tmp_path):
    one, two, base = (write_llama(tmp_path / name, shards=2) for name in ("one", "two", "base"))
    for folder, seed in ((one, 1), (two, 2)):
        for shard in folder.glob("*.safetensors"):
            data = bytearray(shard.read_bytes())
            data[-64 * seed :: 4] = data[: len(data[-64 * seed :: 4])]
            shard.write_bytes(data)
    merge = {"sources": [str(one), str(two)], "how": "ties", "base": str(base)}
    whole, killed = kills(one, tmp_path, every=4, merge=merge, max_shard_size="20kB", checksum=True)
    assert "measurements/found.safetensors" in whole
    for kill in killed:
        assert kill["out"] in (None, whole)
        assert kill["resumed"] == whole
        assert kill["kept"] == kill["done"]
    assert max(len(kill["done"]) for kill in killed) == len(weights(whole)) - 1  # but for what was measured
