"""A real BERT: opened, written again, and compared on text."""

from __future__ import annotations

import pytest
from safetensors.torch import load_file

from rekindle import api


def test_inspect_says_what_it_is(minilm):
    found = api.inspect(minilm)
    assert (found["family"], found["layers"], found["hidden_size"]) == ("bert", 6, 384)
    assert found["heads"] == {"query": 12, "key_value": 12, "dim": 32}
    assert found["parameters"] == {"total": 22_713_216, "active": 22_713_216}
    assert found["unused"] == ["embeddings.position_ids"]
    assert found["can"]["rewrite"].startswith("yes")
    assert found["can"]["upcycle"].startswith("no")


@pytest.mark.slow
@pytest.mark.parametrize("blockwise", [False, True])
def test_rewrite_is_the_same_model(minilm, tmp_path, blockwise):
    model = api.rewrite(minilm)
    assert model.job().plan.counts["copied"]["tensors"] == len(model.job().plan.tensors) == 103
    out = model.save(tmp_path / "out", max_shard_size=50_000_000)
    before = load_file(minilm / "model.safetensors")
    after = {name: tensor for shard in out.glob("*.safetensors") for name, tensor in load_file(shard).items()}
    assert before.keys() - after.keys() == {"embeddings.position_ids"}
    assert all((before[name] == after[name]).all() for name in after)
    verdict = api.verify(out, against=minilm, tokens=512, blockwise=blockwise)
    assert verdict.held
    assert verdict.relative_difference == 0
    assert verdict.compared == "hidden states"
    assert "standard library" in verdict.text
    assert verdict.loss_parent is None


@pytest.mark.slow
def test_half_precision_of_it_is_measured(minilm, tmp_path):
    out = api.rewrite(minilm, dtype="float16").save(tmp_path / "out")
    verdict = api.verify(out, against=minilm, tokens=256)
    assert verdict.promise == "lossy"
    assert 0 < verdict.relative_difference < 0.01


@pytest.mark.slow
@pytest.mark.parametrize(
    ("order", "sources"), [("interpose", (0, 1, 1, 2, 3, 3, 4, 5, 5)), ("stack", (*range(6), 0, 1, 2))]
)
def test_half_as_many_layers_more(minilm, tmp_path, order, sources):
    out = api.grow_depth(minilm, factor=1.5, order=order).save(tmp_path / "out")
    before, after = load_file(minilm / "model.safetensors"), load_file(out / "model.safetensors")
    name = "encoder.layer.{}.attention.self.query.weight"
    found = [next(o for o in range(6) if (after[name.format(n)] == before[name.format(o)]).all()) for n in range(9)]
    assert tuple(found) == sources
    verdict = api.verify(out, against=minilm, tokens=256)
    assert verdict.held
    assert 0.05 < verdict.relative_difference < 2
