"""Repair: what is lost is made of what is left, or of another checkpoint, and nothing else moves."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from apply.apply_moments import write_moments
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.torch import load_file

import rekindle
from rekindle.api import load_recipe, not_finite
from rekindle.errors import RekindleError
from rekindle.methods.repair import Config, named, repair, stand_in


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return {name: x for file in folder.glob("*.safetensors") for name, x in load_file(file).items()}


def layer_of(name: str) -> int:
    return next((int(part) for part in name.split(".") if part.isdecimal()), -1)


def at(name: str, layer: int) -> str:
    return name.replace(f".{layer_of(name)}.", f".{layer}.", 1)


@pytest.fixture(scope="module")
def deep(tiny) -> Path:
    return tiny("llama", num_hidden_layers=8)


@pytest.fixture
def shards(deep, tmp_path) -> Path:
    return rekindle.rewrite(deep).save(tmp_path / "shards", max_shard_size="60KB")


def of_layers(folder: Path, layers: set[int]) -> list[str]:
    """Shards that hold tensors of these layers alone."""
    placed = json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]
    held: dict[str, set[int]] = {}
    for name, file in placed.items():
        held.setdefault(file, set()).add(layer_of(name))
    return sorted(file for file, found in held.items() if found <= layers)


@pytest.mark.parametrize(
    ("lost", "way", "made"),
    [
        ("layers:3", "neighbours", {3: (2, 4)}),
        ("layers:3-4", "neighbours", {3: (1, 5), 4: (2, 6)}),
        ("layers:3,4", "copy", {3: (1,), 4: (2,)}),
        ("layers:2,5", "neighbours", {2: (1, 3), 5: (4, 6)}),
        ("layers:0", "neighbours", {0: (1,)}),
        ("layers:7", "neighbours", {7: (6,)}),
        ("layers:0-1", "copy", {0: (2,), 1: (3,)}),
        ("layers:1-6", "neighbours", dict.fromkeys(range(1, 7), (0, 7))),
        ("layers:2,4", "neighbours", {2: (1, 3), 4: (3, 5)}),
    ],
)
def test_lost_layers_are_averages_of_the_layers_beside_them(deep, tmp_path, lost, way, made):
    before, after = tensors(deep), tensors(rekindle.repair(deep, lost=lost, from_=way).save(tmp_path / "out"))
    for name, x in after.items():
        sources = made.get(layer_of(name))
        expected = before[name] if sources is None else sum(before[at(name, one)] for one in sources) / len(sources)
        torch.testing.assert_close(x, expected, rtol=1e-6, atol=1e-7)
        assert sources is not None or torch.equal(x, before[name])


@given(
    x=st.lists(st.floats(-1e3, 1e3, width=32), min_size=2, max_size=2),
    norms=st.lists(st.floats(0, 1e3), min_size=2, max_size=2),
)
def test_an_average_lies_between_its_neighbours_and_equal_ones_come_back(x, norms):
    left, right = (np.full((2, 3), value, np.float32) for value in x)
    total = sum(norm + 1e-4 for norm in norms)
    found = values(left, right, [(norm + 1e-4) / total for norm in norms])
    assert (found >= np.minimum(left, right) - 1e-3).all()
    assert (found <= np.maximum(left, right) + 1e-3).all()
    assert (values(left, left, [(norm + 1e-4) / total for norm in norms]) == left).all()


def values(left: np.ndarray, right: np.ndarray, shares: list[float]) -> np.ndarray:
    from rekindle.edit.expressions import Leaf
    from rekindle.store.files import Files
    from rekindle.store.legacy import Held

    leaves = [Leaf("x", Held("", "F32", x.shape, x, x.nbytes)) for x in (left, right)]
    with Files() as files:
        return stand_in(leaves, shares).values(0, 2, files)


@pytest.mark.parametrize("harm", ["missing", "truncated", "whole", "no index"])
def test_a_shard_that_is_gone_or_broken_is_made_of_others(shards, tmp_path, harm):
    whole = tensors(shards)
    file = of_layers(shards, {2, 3, 4, 5})[0]
    gone = load_file(shards / file)
    if harm == "truncated":
        (shards / file).write_bytes((shards / file).read_bytes()[:-100])
    elif harm != "whole":
        (shards / file).unlink()
    if harm == "no index":
        (shards / "model.safetensors.index.json").unlink()
    if harm != "whole":
        with pytest.raises(RekindleError) as refused:
            rekindle.open(shards)
        assert f"rekindle repair {shards} OUT --lost shard:{file}" in str(refused.value.hint)
    out = rekindle.repair(shards, lost=f"shard:{file}").save(tmp_path / "out")
    after = tensors(out)
    assert after.keys() == whole.keys()
    assert all(torch.equal(after[name], x) for name, x in whole.items() if name not in gone)
    assert all(not torch.equal(after[name], x) for name, x in gone.items() if x.dim() > 1)
    verdict = rekindle.verify(out, against=shards, tokens=128)
    assert verdict.held
    assert (verdict.relative_difference is None) == (harm != "whole")
    assert np.isfinite(verdict.loss_child)


def test_another_checkpoint_has_what_is_lost(shards, tmp_path, tiny):
    file = sorted(path.name for path in shards.glob("*.safetensors"))[0]  # with the embeddings
    gone = load_file(shards / file)
    (shards / file).unlink()
    with pytest.raises(RekindleError, match="no layer has the like") as refused:
        rekindle.repair(shards, lost=f"shard:{file}")
    assert "--from SRC2" in str(refused.value.hint)
    other = tiny("llama", seed=1, num_hidden_layers=8)
    model = rekindle.repair(shards, lost=f"shard:{file}", from_=other)
    out = model.save(tmp_path / "out")
    before, after = tensors(shards) | gone, tensors(out)
    assert all(torch.equal(after[name], tensors(other)[name]) for name in gone)
    assert all(torch.equal(after[name], before[name]) for name in before.keys() - gone.keys())
    again = load_recipe(out / "rekindle.yaml")[0].save(tmp_path / "again")
    assert all(torch.equal(x, tensors(again)[name]) for name, x in after.items())
    assert f"--from {other}" in json.loads((out / "rekindle.json").read_text())["lineage"][-1]["command"]


def test_the_parts_of_a_packed_tensor_are_lost_together(tiny, tmp_path):
    parent = rekindle.rewrite(tiny("phi3", num_hidden_layers=3)).save(tmp_path / "phi3", max_shard_size="20KB")
    file = of_layers(parent, {1})[0]
    gone = load_file(parent / file)
    (parent / file).unlink()
    out = rekindle.repair(parent, lost=f"shard:{file}").save(tmp_path / "out")
    there, after = tensors(parent), tensors(out)
    for name in gone:
        both = [there.get(at(name, one), gone.get(at(name, one))) for one in (0, 2)]
        torch.testing.assert_close(after[name], (both[0] + both[1]) / 2)


def test_a_layer_of_nan_is_made_whole(deep, tmp_path):
    from safetensors.torch import save_file

    hurt = Path(shutil.copytree(deep, tmp_path / "hurt"))
    bad = {name: x * float("nan") if layer_of(name) == 2 else x for name, x in tensors(deep).items()}
    save_file(bad, hurt / "model.safetensors", {"format": "pt"})
    out = rekindle.repair(hurt, lost="layers:2").save(tmp_path / "out")
    assert not not_finite(out)
    verdict = rekindle.verify(out, against=hurt, tokens=128)
    assert verdict.held
    assert "computes NaN" in verdict.alone


def test_moments_of_what_was_lost_start_empty(deep, tmp_path):
    state = write_moments(tmp_path / "state", deep)
    out = rekindle.repair(deep, lost="layers:3").save(tmp_path / "out", optimizer_state=str(state))
    steps = json.loads((out / "optimizer" / "optimizer.json").read_text())["steps"]
    assert {layer_of(name) for name, step in steps.items() if not step} == {3}


def test_of_two_towers_layers_are_named_with_theirs(tiny, tmp_path):
    parent = tiny("t5")
    with pytest.raises(RekindleError, match="which is meant") as refused:
        rekindle.repair(parent, lost="layers:1")
    assert refused.value.hint == "--lost encoder.layers:1"
    before = tensors(parent)
    after = tensors(rekindle.repair(parent, lost="decoder.layers:1").save(tmp_path / "out"))
    changed = {name for name, x in after.items() if not torch.equal(x, before[name])}
    assert changed
    assert all(name.startswith("decoder.block.1.") for name in changed)


@pytest.mark.parametrize(
    ("lost", "words", "hint"),
    [
        ("layers:8", "no layer 8", "layers:7"),
        ("layers:0-7", "No layer that is left", "SRC2"),
        ("layer:3", "names nothing", "layers:8-11"),
        ("3", "names nothing", "layers:8-11"),
        ("layers:5-3", "names nothing", "layers:8-11"),
        ("layers:", "names nothing", "layers:8-11"),
        ("shard:model-9.safetensors", "no shard", None),
        ("shard:model.safetensors", "nothing is left", "again"),
        ("encoder.layers:1", "no towers", "--lost layers:1"),
    ],
)
def test_what_cannot_be_lost_is_said(deep, lost, words, hint):
    with pytest.raises(RekindleError, match=words) as refused:
        rekindle.repair(deep, lost=lost)
    assert hint is None or hint in refused.value.hint


def test_another_shape_is_refused(deep, tiny):
    with pytest.raises(RekindleError, match="These models differ"):
        rekindle.repair(deep, lost="layers:1", from_=tiny("llama"))
    with pytest.raises(RekindleError, match="does not exist") as refused:
        rekindle.repair(deep, lost="layers:1", from_="neigbours")
    assert "neighbours or copy" in refused.value.hint


@settings(max_examples=30)
@given(layers=st.sets(st.integers(0, 7), min_size=1, max_size=6), way=st.sampled_from(["neighbours", "copy"]))
def test_nothing_is_made_of_what_is_lost(deep, layers, way):
    parent = rekindle.open(deep).checkpoint
    child = repair(parent, Config(lost="layers:" + ",".join(map(str, layers)), from_=way))
    for role, x in child.tensors.items():
        used = {layer_of(leaf.name) for leaf in x.leaves()}
        assert used.isdisjoint(layers)
        assert role.layer in layers or used == {role.layer}


def test_words_for_what_is_lost():
    assert named("layers:3,8-10,shard:a.safetensors,decoder.layers:1") == (
        ("a.safetensors",),
        (("", 3), ("", 8), ("", 9), ("", 10), ("decoder", 1)),
    )


# -- what is lost is what the index says, and no more ----------------------------------------------------------------


def index_of(folder: Path) -> dict[str, str]:
    return json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"]


def test_what_no_shard_ever_held_is_not_invented(shards):
    """A tensor that is in no file and no index is missing, whichever shard is lost."""
    path = shards / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    name = "model.layers.5.mlp.up_proj.weight"
    file = index["weight_map"].pop(name)
    held = load_file(shards / file)
    held.pop(name)
    from safetensors.torch import save_file

    save_file(held, shards / file, {"format": "pt"})
    path.write_text(json.dumps(index))
    other = next(one for one in of_layers(shards, {0, 1, 2, 3, 4}) if one != file)
    with pytest.raises(RekindleError, match="layer 5"):
        rekindle.repair(shards, lost=f"shard:{other}")


def test_what_no_table_names_cannot_be_made_again(tiny, tmp_path):
    parent = rekindle.rewrite(tiny("t5gemma2")).save(tmp_path / "parent", max_shard_size="100KB")
    eye = next(name for name in index_of(parent) if "vision_tower" in name)
    file = index_of(parent)[eye]
    (parent / file).unlink()
    with pytest.raises(RekindleError, match=r"vision_tower.* is lost"):
        rekindle.repair(parent, lost=f"shard:{file}")


def test_a_checkpoint_is_not_repaired_out_of_itself(shards):
    file = of_layers(shards, {2, 3, 4, 5})[0]
    with pytest.raises(RekindleError, match="is the checkpoint that lost it"):
        rekindle.repair(shards, lost=f"shard:{file}", from_=shards)


def test_files_that_are_no_shards_are_not_lost(shards):
    with pytest.raises(RekindleError, match="has no shard config.json"):
        rekindle.repair(shards, lost="shard:config.json")
    with pytest.raises(RekindleError, match="no model has"):
        rekindle.repair(shards, lost="layers:0-9999999999")


def split_off(parent: Path, out: Path, name: str, **changes) -> str:
    """The same model in two shards, the second of this tensor alone. Its file."""
    from safetensors.torch import save_file

    shutil.copytree(parent, out, ignore=shutil.ignore_patterns("*.safetensors"))
    held = tensors(parent)
    one, two = (f"model-0000{i}-of-00002.safetensors" for i in (1, 2))
    save_file({name: held.pop(name)}, out / two, {"format": "pt"})
    save_file(held, out / one, {"format": "pt"})
    index = {"metadata": {}, "weight_map": dict.fromkeys(held, one) | {name: two}}
    (out / "model.safetensors.index.json").write_text(json.dumps(index))
    config = json.loads((out / "config.json").read_text())
    (out / "config.json").write_text(json.dumps(config | changes))
    return two


def test_a_head_that_is_lost_where_the_config_ties_it_is_told(tiny, tmp_path):
    """Two matrices that differ, under a config that says they are one."""
    folder = tmp_path / "untied"
    file = split_off(tiny("llama"), folder, "lm_head.weight", tie_word_embeddings=True)
    assert not rekindle.open(folder).checkpoint.settings.tie_word_embeddings
    (folder / file).unlink()
    found = rekindle.open(folder, without=[file]).checkpoint
    assert any("lm_head.weight was stored and is lost" in note for note in found.notes)
    with pytest.raises(RekindleError, match="Nothing of the model is lost"):
        rekindle.repair(folder, lost=f"shard:{file}")


def test_embeddings_that_are_lost_are_still_in_their_copies(tiny, tmp_path):
    parent = tiny("t5")
    held = tensors(parent)
    folder = Path(shutil.copytree(parent, tmp_path / "copies"))
    shared = held.pop("shared.weight")
    from safetensors.torch import save_file

    copies = {f"{tower}.embed_tokens.weight": shared.clone() for tower in ("encoder", "decoder")}
    (folder / "model.safetensors").unlink()
    files = {"model-00001-of-00002.safetensors": held | copies}
    for file, own in files.items():
        save_file(own, folder / file, {"format": "pt"})
    placed = {name: file for file, own in files.items() for name in own} | {
        "shared.weight": "model-00002-of-00002.safetensors"
    }
    index = {"metadata": {}, "weight_map": placed}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    opened = rekindle.open(folder, without=["model-00002-of-00002.safetensors"])
    assert opened.checkpoint.tensors


def test_a_repair_of_a_repair_is_verified_against_the_first(shards, tmp_path):
    file = of_layers(shards, {2, 3, 4, 5})[0]
    (shards / file).unlink()
    once = rekindle.repair(shards, lost=f"shard:{file}").save(tmp_path / "once")
    twice = rekindle.repair(once, lost="layers:6").save(tmp_path / "twice")
    assert rekindle.verify(twice, against=shards, tokens=128).held
