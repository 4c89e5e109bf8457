"""T5 into Switch: nearly the same function, every expert in use, nothing dropped."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from rekindle import api
from rekindle.apply.load import quietly
from rekindle.errors import RekindleError

DEEP = {"num_layers": 4, "num_decoder_layers": 4}
GATED = {"feed_forward_proj": "gated-gelu", "tie_word_embeddings": False}


def loaded(folder: Path):
    from transformers import AutoModelForSeq2SeqLM

    with quietly():
        return AutoModelForSeq2SeqLM.from_pretrained(folder).eval()


def shown(length: int = 40) -> dict[str, torch.Tensor]:
    draw = torch.Generator().manual_seed(0)
    source, target = (torch.randint(3, 64, (4, length), generator=draw) for _ in range(2))
    return {"input_ids": source, "labels": target}


@pytest.fixture(scope="module")
def pair(tiny, tmp_path_factory):
    parent = tiny("t5", **DEEP)
    return parent, api.upcycle(parent, experts=8, tower="both").save(tmp_path_factory.mktemp("switch") / "out")


def test_it_is_nearly_the_parent_as_promised(pair):
    parent, out = pair
    verdict = api.verify(out, against=parent, tokens=256)
    assert verdict.promise == "lossy"
    assert verdict.held
    assert 0 < verdict.relative_difference <= 1e-3
    assert verdict.loss_child == pytest.approx(verdict.loss_parent, abs=1e-3)


@pytest.mark.parametrize(("std", "low", "high"), [(0.02, 3e-2, 0.5), (1e-3, 2e-3, 2e-2), (1e-5, 1e-5, 2e-4)])
def test_the_router_s_first_opinion_is_what_is_lost(tiny, tmp_path, std, low, high):
    parent = tiny("t5", **DEEP)
    out = api.upcycle(parent, experts=8, tower="both", router_std=std).save(tmp_path / "out")
    assert low < api.verify(out, against=parent, tokens=256).relative_difference < high


def test_every_second_layer_of_both_towers_has_experts(pair):
    towers = api.open(pair[1]).checkpoint.settings.towers
    assert {name: own.sparse_layers for name, own in towers.items()} == {"encoder": (1, 3), "decoder": (1, 3)}
    config = json.loads((pair[1] / "config.json").read_text())
    assert config["architectures"] == ["SwitchTransformersForConditionalGeneration"]
    assert config["expert_capacity"] > 10**6  # nothing is dropped
    model = loaded(pair[1])
    for stack in (model.encoder, model.decoder):
        assert [block.layer[-1].is_sparse for block in stack.block] == [False, True, False, True]


def test_gradient_reaches_the_routers_and_the_experts_that_tokens_go_to(pair):
    model, visits = loaded(pair[1]).train(), {}
    routers = {name: module for name, module in model.named_modules() if name.endswith("router")}
    for name, module in routers.items():
        module.register_forward_hook(lambda _, __, out, name=name: visits.__setitem__(name, out[0].sum((0, 1))))
    model(**shown(400)).loss.backward()
    assert len(routers) == 4
    for name, router in routers.items():
        assert router.classifier.weight.grad.abs().max() > 0
        assert visits[name].sum() == 4 * 400  # none is dropped
        experts = model.get_submodule(name.removesuffix("router") + "experts")
        for expert, tokens in enumerate(visits[name].tolist()):
            grad = experts[f"expert_{expert}"].wi.weight.grad
            assert (grad is not None and grad.abs().max() > 0) == (tokens > 0)
    assert sum((tokens > 0).sum() for tokens in visits.values()) >= 20  # of 32: untrained routers have favourites


def test_it_generates_and_is_saved_and_loaded_by_transformers(pair, tmp_path):
    model, inputs = loaded(pair[1]), shown(8)
    written = [
        model.generate(inputs["input_ids"], max_new_tokens=6, do_sample=False, use_cache=c) for c in (True, False)
    ]
    assert torch.equal(*written)
    model.save_pretrained(tmp_path)
    with torch.no_grad():
        assert torch.equal(loaded(tmp_path)(**inputs).logits, model(**inputs).logits)


@pytest.mark.parametrize("experts", [4, 6])
def test_experts_are_the_feed_forward_with_a_louder_end(tiny, tmp_path, experts):
    parent = tiny("t5", **DEEP)
    out = api.upcycle(parent, experts=experts, tower="both").save(tmp_path / "out")
    child, before = load_file(out / "model.safetensors"), load_file(parent / "model.safetensors")
    for expert in range(experts):
        for tower, branch in (("encoder", 1), ("decoder", 2)):
            there = f"{tower}.block.3.layer.{branch}"
            own = f"{there}.mlp.experts.expert_{expert}"
            assert torch.equal(child[f"{own}.wi.weight"], before[f"{there}.DenseReluDense.wi.weight"])
            louder = before[f"{there}.DenseReluDense.wo.weight"] * experts
            assert torch.equal(child[f"{own}.wo.weight"], louder)


@pytest.mark.parametrize(
    ("changes", "options", "words"),
    [
        ({}, {"tower": "encoder"}, "both towers of this t5 go into"),
        ({}, {}, "which of them is meant"),
        ({}, {"tower": "both", "top_k": 2}, "has top_k 1; what is asked for has top_k 2"),
        ({}, {"tower": "both", "shared_experts": 1}, "has no shared expert"),
        ({}, {"tower": "both", "layers": "0,2"}, "second of every so many layers"),
        ({}, {"tower": "both", "target": "mixtral"}, "cannot become mixtral"),
        ({}, {"tower": "both", "target": "nllb_moe"}, "must be one of"),
        (GATED, {"tower": "both"}, "has feed-forwards without a gate"),
    ],
    ids=str,
)
def test_what_switch_cannot_be_is_refused_with_the_reason(tiny, changes, options, words):
    with pytest.raises(RekindleError, match=words):
        api.upcycle(tiny("t5", **DEEP, **changes), **({"experts": 4} | options))


def test_why_nllb_is_no_target(tiny):
    with pytest.raises(RekindleError) as refused:
        api.upcycle(tiny("t5"), experts=4, tower="both", target="nllb_moe")
    assert refused.value.why is not None
    assert "experts 0 and 1 alone" in refused.value.why


def test_inspect_says_how(tiny):
    assert api.inspect(tiny("t5", **DEEP))["can"]["upcycle"].endswith("(--tower both)")
    assert api.inspect(tiny("t5", **DEEP))["can"]["upcycle"].startswith("yes: switch_transformers, encoder: 8 experts")
    assert "without a gate" in api.inspect(tiny("t5", **DEEP, **GATED))["can"]["upcycle"]
