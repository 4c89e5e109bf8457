"""V-MoE's experts against sums that are written out, and its folders in transformers."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import AutoModel, AutoModelForImageClassification

from rekindle import api
from rekindle.errors import RekindleError
from rekindle.models import VMoEConfig, VMoEForImageClassification, VMoEModel
from rekindle.models.vmoe import VMoEFeedForward
from rekindle.train.losses import expert_grid

D, X = 6, 10
SMALL = {"hidden_size": 16, "num_hidden_layers": 4, "num_attention_heads": 2, "intermediate_size": 24, "image_size": 8,
         "patch_size": 2, "num_channels": 1, "num_labels": 5, "num_experts": 4, "initializer_range": 0.5}  # fmt: skip


def layer(experts: int, top_k: int, seed: int, **how) -> VMoEFeedForward:
    torch.manual_seed(seed)
    config = VMoEConfig(hidden_size=D, intermediate_size=X, num_attention_heads=1, num_experts=experts,
                        num_experts_per_tok=top_k, **how)  # fmt: skip
    made = VMoEFeedForward(config)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter)
    return made


def one(ffn: VMoEFeedForward, expert: int, token: torch.Tensor) -> torch.Tensor:
    e = ffn.experts
    hidden = torch.nn.functional.gelu(e.up_proj[expert] @ token + e.up_proj_bias[expert])
    return e.down_proj[expert] @ hidden + e.down_proj_bias[expert]


def choosing(ffn: VMoEFeedForward, x_nD: torch.Tensor) -> torch.Tensor:
    """Zhou et al. 2022, section 3, of one group, renormalised; leftovers to their own best expert."""
    p = torch.softmax(x_nD @ ffn.router.weight.T, -1)
    n, experts = p.shape
    count = min(n, max(1, round(ffn.config.num_experts_per_tok * n / experts)))
    taken = [set(p[:, expert].argsort(descending=True)[:count].tolist()) for expert in range(experts)]
    rows = []
    for token in range(n):
        by = [expert for expert in range(experts) if token in taken[expert]] or [int(p[token].argmax())]
        total = sum(p[token, expert] for expert in by)
        rows.append(sum(p[token, expert] / total * one(ffn, expert, x_nD[token]) for expert in by))
    return torch.stack(rows)


@given(st.integers(1, 6), st.integers(1, 9), st.integers(1, 3), st.data())
@settings(max_examples=40, deadline=None)
def test_each_expert_takes_its_best_tokens(experts, tokens, images, data):
    ffn = layer(experts, data.draw(st.integers(1, experts)), tokens)
    x = torch.randn(images, tokens, D)
    with torch.no_grad():
        expected = torch.stack([choosing(ffn, image) for image in x])
        assert torch.allclose(ffn(x), expected, atol=1e-4)
        ffn.config.routing_group = "batch"
        assert torch.allclose(ffn(x).flatten(0, 1), choosing(ffn, x.flatten(0, 1)), atol=1e-4)


@given(st.integers(1, 6), st.data())
@settings(max_examples=20, deadline=None)
def test_each_token_takes_its_best_experts(experts, data):
    top_k = data.draw(st.integers(1, experts))
    ffn, x = layer(experts, top_k, 3, routing="tokens"), torch.randn(2, 5, D)
    with torch.no_grad():
        p = torch.softmax(x.flatten(0, 1) @ ffn.router.weight.T, -1)
        for token, own, found in zip(x.flatten(0, 1), p, ffn(x).flatten(0, 1), strict=True):
            by = own.argsort(descending=True)[:top_k].tolist()
            expected = sum(own[expert] / own[by].sum() * one(ffn, expert, token) for expert in by)
            assert torch.allclose(found, expected, atol=1e-4)


@given(st.integers(1, 8), st.integers(1, 17), st.sampled_from(["experts", "tokens"]), st.floats(0, 10), st.data())
@settings(max_examples=40, deadline=None)
def test_equal_experts_are_the_feed_forward_whatever_the_router_says(experts, tokens, routing, spread, data):
    ffn = layer(experts, data.draw(st.integers(1, experts)), 5, routing=routing)
    for parameter in ffn.experts.parameters():
        parameter.data[:] = parameter.data[:1].clone()
    ffn.router.weight.data *= spread
    x = torch.randn(3, tokens, D)
    with torch.no_grad():
        expected = torch.stack([torch.stack([one(ffn, 0, token) for token in image]) for image in x])
        assert torch.allclose(ffn(x), expected, atol=1e-4)


def test_tokens_that_no_expert_took_go_to_their_own_best():
    ffn, x = layer(4, 1, 0), torch.ones(1, 8, D)  # all alike: experts take two each, the same ones or not
    with torch.no_grad():
        best = int((ffn.router.weight.sum(1)).argmax())
        rows = ffn(x)[0]
        left = sum(torch.allclose(row, one(ffn, best, x[0, 0]), atol=1e-4) for row in rows)
    assert left >= 8 - 4 * 2


@pytest.mark.parametrize(("group", "moves"), [("image", False), ("batch", True)])
def test_what_an_image_is_taken_for_depends_on_its_group(group, moves):
    torch.manual_seed(0)
    model = VMoEForImageClassification(VMoEConfig(**SMALL, routing_group=group)).eval()
    images, others = torch.randn(1, 1, 8, 8), torch.randn(7, 1, 8, 8)
    with torch.no_grad():
        alone, beside = model(images).logits, model(torch.cat([images, others])).logits[:1]
    assert ((alone - beside).abs().max() > 1e-3) == moves


@pytest.mark.parametrize(
    ("made", "auto"), [(VMoEModel, AutoModel), (VMoEForImageClassification, AutoModelForImageClassification)]
)
def test_a_folder_is_loaded_by_the_auto_classes(tmp_path, made, auto):
    torch.manual_seed(0)
    model, pixels = made(VMoEConfig(**SMALL, moe_layers=[0, 3])).eval(), torch.randn(2, 1, 8, 8)
    model.save_pretrained(tmp_path)
    again, report = auto.from_pretrained(tmp_path, output_loading_info=True)
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    assert torch.equal(model(pixels)[0], again.eval()(pixels)[0])
    assert torch.equal(model(pixels)[0], api.load(tmp_path)(pixels)[0])
    assert api.inspect(tmp_path)["experts"] == {"count": 4, "top_k": 2, "layers": [0, 3], "choice": "experts"}


def test_router_logits_are_given_where_they_are_asked_for():
    model, pixels = VMoEForImageClassification(VMoEConfig(**SMALL)), torch.randn(2, 1, 8, 8)
    assert model(pixels).router_logits is None
    told = model(pixels, output_router_logits=True, labels=torch.tensor([0, 1]))
    assert [tuple(logits.shape) for logits in told.router_logits] == [(34, 4)] * 2
    told.loss.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in model.vit.layers[1].mlp.parameters())
    assert expert_grid(model) is None  # the load is even as it is
    assert expert_grid(VMoEForImageClassification(VMoEConfig(**SMALL, routing="tokens"))) == (2, 4)


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"routing": "both"}, "routing is 'both'"),
        ({"routing_group": "row"}, "routing_group is 'row'"),
        ({"num_experts_per_tok": 5}, "num_experts_per_tok is 5, of 4 experts"),
        ({"num_experts_per_tok": 0}, "num_experts_per_tok is 0, of 4 experts"),
    ],
)
def test_what_makes_no_mixture_is_refused(changes, said):
    with pytest.raises(ValueError, match=said):
        VMoEConfig(**SMALL | changes)


@pytest.mark.parametrize(
    ("family", "options", "said"),
    [
        ("llama", {"routing": "experts"}, "The experts of a mixtral do not choose"),
        ("vit", {"init": "virtual-group", "granularity": 2}, "one shard of its virtual group"),
        ("vit", {"routing": "tokens", "group": "batch"}, "--group is for experts that choose"),
        ("vit", {"shared_experts": 1}, "no shared expert"),
        ("vit", {"engine": "vllm"}, "vllm"),
        ("deit", {}, "No family with experts can hold a deit"),
    ],
)
def test_what_no_vmoe_can_be_is_refused(tiny, family, options, said):
    with pytest.raises(RekindleError, match=said):
        api.upcycle(tiny(family), experts=4, **options).job()


def test_notes_say_how_it_is_loaded(tiny, tmp_path):
    chosen, choosing = (api.upcycle(tiny("vit"), experts=4, top_k=1, routing=r) for r in ("tokens", "experts"))
    assert "rekindle.load" in choosing.checkpoint.notes[-1]
    assert any("gives the router no gradient" in note for note in chosen.checkpoint.notes)
    assert not any("gives the router no gradient" in note for note in choosing.checkpoint.notes)
    card = (choosing.save(tmp_path / "out") / "README.md").read_text()
    assert "after `import rekindle.models`" in card
    assert "library_name: rekindle" in card


def test_plain_transformers_says_that_it_knows_no_such_model(tmp_path):
    """As the docs quote it; and knows it once rekindle.models is imported."""
    VMoEModel(VMoEConfig(**SMALL)).save_pretrained(tmp_path)
    load = f"from transformers import AutoModel; AutoModel.from_pretrained({str(tmp_path)!r})"
    plain = subprocess.run([sys.executable, "-c", load], capture_output=True, text=True, check=False)
    assert plain.returncode == 1
    assert "model type `vmoe` but Transformers does not recognize this architecture" in plain.stderr
    ours = subprocess.run([sys.executable, "-c", f"import rekindle.models; {load}"], capture_output=True, check=False)
    assert ours.returncode == 0
